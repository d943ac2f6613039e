from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from detrkit.classes import ClassMap
from detrkit.cli.models import model_parts
from detrkit.config import Config, update_config
from detrkit.errors import WeightsError
from detrkit.families.build import build_model, get_family, load_model
from detrkit.families.detr.panoptic import edge_maps
from detrkit.families.family import build_criterion
from detrkit.families.parts import Place, find_places, part_names
from detrkit.families.recipes import preset_config
from detrkit.families.transfer import transfer
from detrkit.families.weights import Weights
from detrkit.families.writers import get_writers
from detrkit.nn.recompute import set_recompute
from detrkit.training.optim import apply_gradients, build_optimizer
from detrkit.types import Outputs
from tests.parity.conftest import padded_batch
from tests.unit.families.conftest import make_truth

CLASSES = ClassMap(("a", "b", "c"), (1, 2, 3))
PRESET = "detr-nano-two-stage"
SMALL = {
    "backbone": "tiny",
    "hidden_dim": 32,
    "num_heads": 4,
    "ffn_dim": 48,
    "num_queries": 12,
    "decoder_layers": 2,
}
NO_AIDS = {"aids": {"dense": "none", "denoising": 0}}
WITH_AIDS = {"aids": {"dense": "aligned", "denoising": 2}}


def make_config(**model: Any) -> Config:
    return update_config(preset_config(PRESET), {"model": {**SMALL, **model}, **NO_AIDS})


def build(config: Config, classes: ClassMap = CLASSES) -> nn.Module:
    """A model whose norms and heads do something, as those of a trained one would."""
    torch.manual_seed(0)
    model = build_model(config, classes).model
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        with torch.no_grad():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif name.endswith("running_mean") or (tensor.ndim == 1 and "weight" not in name):
                tensor.uniform_(-0.3, 0.3)
            elif tensor.ndim > 1 and not tensor.any():
                nn.init.normal_(tensor, std=0.05)
    return model


def alone_and_padded(model: nn.Module, sizes: list[tuple[int, int]], extra: int) -> tuple[list[Outputs], Outputs]:
    images, mask = padded_batch(sizes, extra=extra)
    images[mask[:, None].expand_as(images)] = 0.0
    model.eval()
    with torch.no_grad():
        together = model(images, mask)
        alone = [
            model(images[row : row + 1, :, :height, :width].contiguous())
            for row, (height, width) in enumerate(sizes)
        ]
    return alone, together


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("levels", [1, 3, 5])
def test_padding_changes_no_detection(norm: str, levels: int):
    model = build(make_config(backbone_norm=norm, levels=levels))
    alone, together = alone_and_padded(model, [(70, 90), (45, 63), (33, 97)], 13)
    for row, own in enumerate(alone):
        torch.testing.assert_close(together.logits[:, row : row + 1], own.logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(together.boxes_cxcywh[:, row : row + 1], own.boxes_cxcywh, rtol=1e-4, atol=1e-4)


def test_padding_changes_no_mask():
    model = build(make_config(masks=True, backbone_norm="group"))
    alone, together = alone_and_padded(model, [(70, 90), (45, 63)], 13)
    assert together.masks is not None
    maps, regions = together.masks.all(), together.masks.regions
    for row, own in enumerate(alone):
        assert own.masks is not None
        height, width = own.masks.regions[0, 0].tolist()
        assert own.masks.regions[:, 0].tolist() == regions[:, row].tolist()
        torch.testing.assert_close(maps[row, :, :height, :width], own.masks.all()[0], rtol=1e-3, atol=1e-3)
        assert own.masks.all().std() > 0.1


def test_maps_of_edges_tell_what_lies_in_a_box():
    places = torch.tensor([[[0.5, 0.5], [0.31, 0.5], [0.29, 0.5], [0.5, 0.95]]])
    maps = edge_maps(torch.tensor([[0.5, 0.5, 0.4, 0.8]]), places)
    assert (maps > 0).all(dim=1).tolist() == [[True, True, False, False]]
    torch.testing.assert_close(maps[0, :, 0], torch.full((4,), 0.5))


def test_an_image_of_fewer_tokens_than_queries_gives_the_same_in_any_batch():
    """Its missing queries must neither be padding nor be seen by the others, and find nothing."""
    model = build(make_config(num_queries=60))
    alone, together = alone_and_padded(model, [(96, 96), (32, 40)], 0)
    assert alone[1].logits.shape[2] == 60
    tokens = sum(h * w for h, w in ((4, 5), (2, 3), (1, 2)))
    assert tokens < 60
    for row, own in enumerate(alone):
        torch.testing.assert_close(together.logits[:, row : row + 1], own.logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(together.boxes_cxcywh[:, row : row + 1], own.boxes_cxcywh, rtol=1e-4, atol=1e-4)
    scores = alone[1].logits[-1, 0].softmax(-1)[:, :-1].amax(-1)
    assert (scores[tokens:] < 1e-8).all()
    assert (scores[:tokens] > 1e-4).all()


def test_a_few_steps_on_two_images_lower_every_loss():
    config = update_config(preset_config(PRESET), {"model": SMALL, **WITH_AIDS, "loss.class_targets": "hard"})
    torch.manual_seed(0)
    model = build_model(config, CLASSES).model.train()
    criterion, truth = build_criterion(config, CLASSES), make_truth((3, 1))
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    optimizer = build_optimizer(model, config.train, find_places(model))
    losses = []
    for _ in range(40):
        found = criterion(model(images, None, criterion.objects(truth)), truth)
        found.total.backward()
        apply_gradients(optimizer, config.train.clip_norm)
        optimizer.zero_grad()
        losses.append(found.terms)
    for name in ("class", "l1", "giou", "dense", "denoising"):
        first, last = (sum(float(terms[name]) for terms in part) for part in (losses[:5], losses[-5:]))
        assert last < 0.75 * first, f"{name}: {first / 5:.3f} to {last / 5:.3f}"


@pytest.mark.parametrize(("norm", "padded"), [("batch", False), ("group", True)])
def test_recomputing_gives_the_same_bits(norm: str, padded: bool):
    config = update_config(
        preset_config(PRESET), {"model": {**SMALL, "backbone_norm": norm, "dropout": 0.1}, **WITH_AIDS}
    )
    plain = build(config).train()
    saving = copy.deepcopy(plain)
    assert set_recompute(saving, True) == 3  # backbone, the pyramid's encoder, decoder
    images, mask = padded_batch([(64, 96), (70, 50)])
    criterion, truth = build_criterion(config, CLASSES), make_truth((3, 1))
    for model in (plain, saving):
        torch.manual_seed(5)
        outputs = model(images, mask if padded else None, criterion.objects(truth))
        criterion(outputs, truth).total.backward()
    found = dict(saving.named_parameters())
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter.grad, found[name].grad), name  # type: ignore[arg-type]
    buffers = dict(saving.named_buffers())
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in plain.named_buffers())


def test_part_and_depth_of_every_kind_of_parameter():
    places = find_places(build_model(preset_config(PRESET), CLASSES).model)
    wanted = {
        "decoder.class_embed.2.weight": Place("class_head", 0),
        "decoder.bbox_embed.0.layers.1.bias": Place("box_head", 0),
        "decoder.layers.2.linear1.weight": Place("decoder.layer3", 1),
        "decoder.query_pos.layers.0.weight": Place("queries", 3),
        "token_proj.weight": Place("selection", 4),
        "token_heads.class_embed.bias": Place("selection.class_head", 4),
        "pyramid.encoder.layers.0.norm1.bias": Place("pyramid", 5),
        "backbone.0.body.layer1.0.bn1.weight": Place("backbone.stage1", 8),
        "backbone.0.body.conv1.weight": Place("backbone.stem", 9),
    }
    assert {name: places[name] for name in wanted} == wanted


def test_parts_are_listed_with_their_sizes_and_can_be_frozen():
    sizes = model_parts(PRESET)
    assert list(sizes)[:2] == ["backbone", "backbone.stem"]
    assert list(sizes)[-2:] == ["class_head", "box_head"]
    outer = sum(size for name, size in sizes.items() if "." not in name)
    assert 3.2e6 < outer < 3.9e6
    frozen = update_config(make_config(), {"train.freeze": ["backbone", "pyramid", "selection.class_head"]})
    model = build(frozen)
    places = find_places(model)
    still = {places[name].part.partition(".")[0] for name, p in model.named_parameters() if not p.requires_grad}
    assert still == {"backbone", "pyramid", "selection"}
    assert not model.token_heads.class_embed.weight.requires_grad
    assert model.token_heads.bbox_embed.layers[0].weight.requires_grad
    assert set(part_names(places)) >= {"backbone.stage1", "decoder.layer2", "queries"}


def test_rows_of_every_class_head_follow_their_names():
    before, now = ClassMap(("cat", "dog", "bird"), (1, 2, 3)), ClassMap(("horse", "Bird", "cat"), (4, 5, 6))
    config = make_config()
    source, model = build(config, before), build(config, now)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    report = transfer(model, Weights(source.state_dict(), config.model, before, "before"), now)
    assert report.carried == ("Bird", "cat")
    assert report.new_classes == ("horse",)
    heads = ["token_heads.class_embed", "decoder.class_embed.0", "decoder.class_embed.1"]
    assert set(report.replaced) == {f"{head}.{leaf}" for head in heads for leaf in ("weight", "bias")}
    assert (report.missing, report.left_over) == ((), ())
    old, new = source.state_dict(), model.state_dict()
    for name in report.replaced:
        torch.testing.assert_close(new[name][[1, 2, 3]], old[name][[2, 0, 3]])
        assert not torch.equal(new[name][0], old[name][1])
    assert all(torch.equal(new[name], old[name]) for name in report.loaded)


def test_a_layout_that_nobody_published_is_refused(tmp_path: Path):
    advice = "a two-stage model has no published layout; pass on its run folder or a checkpoint"
    with pytest.raises(WeightsError, match=rf"model\.pth cannot be written: {advice}"):
        get_writers(get_family(make_config().model), "model.pth cannot be written")
    (tmp_path / "some.pth").write_bytes(b"")
    with pytest.raises(WeightsError, match=rf"some\.pth cannot be read as {PRESET}: {advice}"):
        load_model(tmp_path / "some.pth", PRESET)
