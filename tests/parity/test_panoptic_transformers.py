"""DETR with masks against Hugging Face transformers' independent implementation, float32, the same weights."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from detrkit.config import Config, LossConfig
from detrkit.families.detr.config import DetrConfig
from detrkit.families.detr.export import write_hub
from detrkit.families.detr.model import Detr, build_detr
from detrkit.families.detr.weights import coco_panoptic_class_map
from detrkit.families.recipes import preset_config
from detrkit.families.weights import Weights
from detrkit.losses.criterion import Criterion
from detrkit.types import GroundTruth
from tests.parity.conftest import Pair, padded_batch, randomize

SIZES = [(70, 96), (90, 61)]
SMALL = {"encoder_layers": 1, "decoder_layers": 2, "ffn_dim": 64, "num_queries": 12, "hidden_dim": 64}


@pytest.fixture(
    scope="module",
    params=[
        {"preset": "detr-r50-panoptic", **SMALL},
        {"preset": "detr-r50-dc5-panoptic", **SMALL},
        *(
            pytest.param({"preset": f"detr-{name}-panoptic"}, marks=pytest.mark.slow)
            for name in ("r50", "r50-dc5", "r101")
        ),
    ],
    ids=lambda values: f"{values['preset']}{'-small' if len(values) > 1 else ''}",
)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    from transformers import DetrForSegmentation

    torch.manual_seed(0)
    changes = {"padding": "published", "dropout": 0.0, "backbone_norm": "frozen", "frozen_stages": 2}
    config = preset_config(request.param["preset"]).model.model_copy(update={**request.param, **changes})
    assert isinstance(config, DetrConfig)
    ours = build_detr(config, 250).eval()
    randomize(ours)
    folder = tmp_path_factory.mktemp("hub")
    write_hub(folder, Weights(ours.state_dict(), config, coco_panoptic_class_map(), "random"), Config())
    theirs, report = DetrForSegmentation.from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    return Pair(ours, theirs.eval(), config)


def exactly_padded(model: Detr) -> Any:
    patch = pytest.MonkeyPatch()
    patch.setattr(model.backbone[0], "exact_padding", True)
    return patch


def test_padded_batch_gives_transformers_logits_boxes_and_masks(pair: Pair):
    images, mask = padded_batch(SIZES)
    with torch.no_grad():
        ours = pair.ours(images, mask)
        theirs = pair.theirs(images, pixel_mask=(~mask).long())
    assert ours.masks is not None
    masks = ours.masks.all()
    assert theirs.pred_masks.std() > 0.1  # the comparison is of something
    assert masks.shape == theirs.pred_masks.shape
    torch.testing.assert_close(ours.logits[-1], theirs.logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(ours.boxes_cxcywh[-1], theirs.pred_boxes, atol=1e-4, rtol=0)
    torch.testing.assert_close(masks, theirs.pred_masks, atol=1e-4, rtol=0)
    some = ours.masks(torch.tensor([1, 0, 1]), torch.tensor([3, 0, 11]))
    torch.testing.assert_close(some, masks[[1, 0, 1], [3, 0, 11]], atol=1e-5, rtol=0)


def test_exact_padding_gives_what_transformers_gives_for_each_image_alone(pair: Pair):
    images, mask = padded_batch(SIZES, extra=9)
    patch = exactly_padded(pair.ours)
    with torch.no_grad():
        ours = pair.ours(images, mask)
        alone = [pair.theirs(images[i : i + 1, :, :h, :w]) for i, (h, w) in enumerate(SIZES)]
    patch.undo()
    assert ours.masks is not None
    masks = ours.masks.all()
    for index, theirs in enumerate(alone):
        height, width = theirs.pred_masks.shape[-2:]
        cells, pixels, own = ours.masks.regions[:, index].tolist()
        assert (cells, pixels, own) == ([height, width], list(SIZES[index]), list(SIZES[index]))
        torch.testing.assert_close(masks[index, :, :height, :width], theirs.pred_masks[0], atol=1e-4, rtol=0)


def make_truth(counts: tuple[int, ...], height: int, width: int) -> GroundTruth:
    generator = torch.Generator().manual_seed(2)
    total = sum(counts)
    boxes = torch.rand(total, 4, generator=generator) * 0.3 + 0.2
    labels = torch.randint(0, 133, (total,), generator=generator)
    coarse = torch.rand(total, 1, height // 8, width // 8, generator=generator)
    masks = torch.nn.functional.interpolate(coarse, (height, width))[:, 0] > 0.6
    row = 0
    for (own_height, own_width), count in zip(SIZES, counts, strict=True):
        masks[row : row + count, own_height:] = False
        masks[row : row + count, :, own_width:] = False
        row += count
    return GroundTruth(labels, boxes, counts, masks)


def their_loss(theirs: Any, images: Tensor, mask: Tensor, truth: GroundTruth) -> Any:
    assert truth.masks is not None
    logit_index = torch.tensor(coco_panoptic_class_map().logit_index)[truth.labels]
    parts = (each.split(list(truth.counts)) for each in (logit_index, truth.boxes_cxcywh, truth.masks.float()))
    labels = [{"class_labels": a, "boxes": b, "masks": c} for a, b, c in zip(*parts, strict=True)]
    return theirs(images, pixel_mask=(~mask).long(), labels=labels)


@pytest.mark.parametrize("counts", [(3, 5), (0, 4)])
def test_losses_and_gradients_of_the_mask_head_equal_transformers(
    pair: Pair, counts: tuple[int, int], monkeypatch: pytest.MonkeyPatch
):
    images, mask = padded_batch(SIZES)
    monkeypatch.setattr("detrkit.losses.masks._PIXELS_AT_ONCE", 2 * images[0, 0].numel())  # in several pieces
    truth = make_truth(counts, *images.shape[-2:])
    pair.ours.zero_grad()
    pair.theirs.zero_grad()
    criterion = Criterion(LossConfig(aux=False), coco_panoptic_class_map(), pair.config.num_queries)
    losses = criterion(pair.ours(images, mask), truth)
    theirs = their_loss(pair.theirs, images, mask, truth)
    for own, their in {"mask": "loss_mask", "dice": "loss_dice", "l1": "loss_bbox", "class": "loss_ce"}.items():
        torch.testing.assert_close(losses.terms[own], theirs.loss_dict[their], rtol=1e-5, atol=0)
    torch.testing.assert_close(losses.total, theirs.loss, rtol=1e-5, atol=0)

    losses.total.backward()
    theirs.loss.backward()
    gradients = {our_name(name): p.grad for name, p in pair.theirs.named_parameters()}
    compared = 0
    for name, parameter in pair.ours.named_parameters():
        if name.startswith(("mask_head.", "bbox_attention.", "input_proj.")):
            their = gradients[name.replace("input_proj.", "detr.model.input_projection.")]
            compared += 1
            difference = (parameter.grad - their).norm() / their.norm().clamp(min=1e-12)
            # the keys' bias cancels in the softmax: its gradient is rounding
            assert difference < 1e-3 or their.norm() < 1e-6, f"{name}: {difference:.1e} of {their.norm():.1e}"
    assert compared == 34


def our_name(name: str) -> str:
    """Return the published name for that which transformers has in memory."""
    step = re.match(r"mask_head\.fpn_stages\.(\d)\.(.+)", name)
    if step:
        number = int(step[1])
        name = f"mask_head.{step[2]}".replace("fpn_adapter", f"adapter{number + 1}")
        name = name.replace("refine.conv", f"lay{number + 3}").replace("refine.norm", f"gn{number + 3}")
    name = re.sub(r"mask_head\.conv(\d)\.conv", r"mask_head.lay\1", name)
    name = re.sub(r"mask_head\.conv(\d)\.norm", r"mask_head.gn\1", name)
    name = name.replace("mask_head.output_conv", "mask_head.out_lay")
    return re.sub(r"bbox_attention\.([qk])_proj", r"bbox_attention.\1_linear", name)


def test_masks_of_exact_padding_are_taught_as_those_of_each_image_alone(pair: Pair):
    images, mask = padded_batch(SIZES, extra=5)
    truth = make_truth((3, 5), *images.shape[-2:])
    assert truth.masks is not None
    criterion = Criterion(LossConfig(), coco_panoptic_class_map(), pair.config.num_queries)
    whole = criterion.normalizers(truth.counts)
    patch = exactly_padded(pair.ours)
    with torch.no_grad():
        together = criterion(pair.ours(images, mask), truth)
        alone = []
        for index, (height, width) in enumerate(SIZES):
            rows = slice(0, 3) if index == 0 else slice(3, 8)
            own = GroundTruth(
                truth.labels[rows],
                truth.boxes_cxcywh[rows],
                (truth.counts[index],),
                truth.masks[rows, :height, :width],
            )
            outputs = pair.ours(images[index : index + 1, :, :height, :width])
            alone.append(criterion(outputs, own, whole))
    patch.undo()
    for name in ("mask", "dice"):
        torch.testing.assert_close(
            together.terms[name], sum(part.terms[name] for part in alone), rtol=1e-5, atol=0
        )
