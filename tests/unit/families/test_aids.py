from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from detrkit.checkpoint import AIDS
from detrkit.classes import ClassMap
from detrkit.config import Config, update_config
from detrkit.errors import ConfigError
from detrkit.families.build import build_model
from detrkit.families.family import build_criterion
from detrkit.families.recipes import preset_config
from detrkit.training.optim import build_optimizer
from tests.unit.families.conftest import make_truth

CLASSES = ClassMap(("a", "b", "c"), (1, 2, 3))
SMALL = {"hidden_dim": 32, "num_heads": 4, "ffn_dim": 48, "num_queries": 6, "decoder_layers": 2}


def make_config(family: str = "classic", **changes: Any) -> Config:
    preset, model = ("detr-tiny", SMALL) if family == "classic" else ("detr-nano-two-stage", SMALL)
    backbone = {"backbone": "tiny"}
    aids = {"aids.dense": "center", "aids.groups": 3 if family == "classic" else 1, "aids.denoising": 2}
    return update_config(preset_config(preset), {"model": {**model, **backbone}, **aids, **changes})


def build(config: Config) -> nn.Module:
    torch.manual_seed(0)
    return build_model(config, CLASSES).model.train()


def step(model: nn.Module, config: Config, counts: tuple[int, ...], **options: Any) -> torch.Tensor:
    criterion, truth = build_criterion(config, CLASSES), make_truth(counts)
    images = torch.randn(len(counts), 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=options.get("bf16", False)):
        outputs = model(images, None, criterion.objects(truth))
    losses = criterion(outputs, truth)
    losses.total.backward()
    return losses.total.detach()


FAMILIES = pytest.mark.parametrize("family", ["classic", "two-stage"])


@FAMILIES
@pytest.mark.parametrize("bf16", [False, True])
def test_every_parameter_of_the_aids_learns(family: str, bf16: bool):
    config = make_config(family)
    model = build(config)
    for parameter in model.parameters():
        if not parameter.any():  # a layer that begins at zero lets nothing through to those before it
            nn.init.normal_(parameter, std=0.02)
    step(model, config, (3, 0, 2), bf16=bf16)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(grad is not None and bool(grad.isfinite().all()) for grad in gradients.values())
    assert [name for name, grad in gradients.items() if name.startswith(AIDS) and not grad.any()] == []


@FAMILIES
def test_a_batch_without_objects_still_reaches_every_parameter(family: str):
    """Or processes would wait for gradients that never come."""
    config = make_config(family)
    model = build(config)
    assert step(model, config, (0, 0)).isfinite()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_the_two_stage_family_has_no_sets_of_queries():
    with pytest.raises(ConfigError, match=r"aids\.groups is 2, .*set it to 1"):
        build(make_config("two-stage", **{"aids.groups": 2}))


@FAMILIES
def test_a_noised_object_begins_where_it_lies(family: str):
    """Before anything is learnt, the answer to a noised object is its noised box."""
    config = make_config(family, **{"aids.box_noise": 1e-3})
    model = build(config)
    truth = make_truth((3, 2))
    if family == "classic":
        nn.init.zeros_(model.bbox_embed.layers[-1].weight)
    outputs = model(torch.randn(2, 3, 64, 64), None, build_criterion(config, CLASSES).objects(truth))
    found = outputs.denoised
    assert found is not None
    positive = found.objects >= 0
    wanted = truth.boxes_cxcywh[found.objects.clamp(min=0)].expand_as(found.boxes_cxcywh)
    torch.testing.assert_close(found.boxes_cxcywh[:, positive], wanted[:, positive], rtol=0, atol=2e-3)


def test_the_queries_of_aids_do_not_decay():
    config = make_config()
    groups = build_optimizer(build(config), config.train).param_groups
    decay = {name: group["weight_decay"] for group in groups for name in group["param_names"]}
    embeddings = ("aids.group_queries", "aids.group_query_references", "aids.label_embed.weight")
    assert [decay[name] for name in embeddings] == [0.0, 0.0, 0.0]
    assert decay["aids.box_embed.layers.0.weight"] == config.train.weight_decay
