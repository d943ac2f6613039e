"""A model with training aids beside the same model without: the aids change nothing that detects."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detrkit.checkpoint import AIDS
from detrkit.classes import ClassMap
from detrkit.config import Config, update_config
from detrkit.families.build import build_model
from detrkit.families.recipes import preset_config
from detrkit.types import Objects, Outputs
from tests.parity.conftest import padded_batch

CLASSES = ClassMap(("a", "b", "c"), (1, 2, 3))
SMALL = {"hidden_dim": 32, "num_heads": 4, "ffn_dim": 48, "num_queries": 9, "decoder_layers": 2}
EVERY_AID: dict[str, Any] = {"aids.dense": "aligned", "aids.groups": 3, "aids.denoising": 2}
WITHOUT: dict[str, Any] = {"aids.dense": "none", "aids.groups": 1, "aids.denoising": 0}


def classic(**changes: Any) -> Config:
    model = {**SMALL, "encoder_layers": 1, "dropout": 0.0, **changes}
    return update_config(preset_config("detr-tiny"), {"model": model, **EVERY_AID})


def published() -> Config:
    """As the paper has it: queries without references, norms after, a ResNet."""
    model = {**SMALL, "backbone": "resnet18", "backbone_norm": "frozen", "encoder_layers": 1, "dropout": 0.0}
    return update_config(preset_config("detr-r18"), {"model": model, **EVERY_AID})


def two_stage(**changes: Any) -> Config:
    model = {**SMALL, "backbone": "tiny", **changes}
    return update_config(preset_config("detr-nano-two-stage"), {"model": model, **EVERY_AID, "aids.groups": 1})


CONFIGS = {
    "classic": classic(),
    "learned": classic(position="learned", query_init="normal", query_reference=False, position_at_input=False),
    "published": published(),
    "two-stage": two_stage(),
    "two-stage-group-norm": two_stage(backbone_norm="group", num_queries=60),  # more than some images have tokens
}


def build(config: Config) -> nn.Module:
    torch.manual_seed(3)
    return build_model(config, CLASSES).model


@pytest.fixture(params=CONFIGS)
def pair(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module]:
    """The same weights with aids and without."""
    config = CONFIGS[request.param]
    return build(config), build(update_config(config, WITHOUT))


PADDED = pytest.mark.parametrize("padded", [False, True])


def inputs(padded: bool) -> tuple[Tensor, Tensor | None]:
    images, mask = padded_batch([(64, 80), (40, 64), (33, 50)], seed=2)
    return (images, mask) if padded else (images[:, :, :32, :48].contiguous(), None)


def objects(seed: int = 0) -> Objects:
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.cat((torch.rand(5, 2, generator=generator), torch.full((5, 2), 0.3)), dim=1)
    return torch.randint(0, 3, (5,), generator=generator), boxes, (3, 0, 2)


@PADDED
def test_detection_is_bit_equal_with_and_without_aids(pair: tuple[nn.Module, nn.Module], padded: bool):
    aided, plain = (model.eval() for model in pair)
    with torch.no_grad():
        wanted = plain(*inputs(padded))
        for given in (None, objects()):
            found = aided(*inputs(padded), given)
            assert torch.equal(found.logits, wanted.logits)
            assert torch.equal(found.boxes_cxcywh, wanted.boxes_cxcywh)
            assert found[2:] == Outputs(found.logits, found.boxes_cxcywh)[2:]


@PADDED
def test_the_models_own_queries_learn_as_if_alone(pair: tuple[nn.Module, nn.Module], padded: bool):
    """Answers, and what their loss teaches: no other query may be seen by them."""
    aided, plain = (model.train() for model in pair)
    gradients = []
    answers: list[Outputs] = []
    for model in (aided, plain):
        outputs = model(*inputs(padded), objects())
        loss = outputs.logits.square().mean() + outputs.boxes_cxcywh.square().mean()
        loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        answers.append(outputs)
    torch.testing.assert_close(answers[0].logits, answers[1].logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(answers[0].boxes_cxcywh, answers[1].boxes_cxcywh, rtol=1e-4, atol=1e-5)
    assert answers[0].denoised is not None
    assert answers[0].dense is not None
    for name, wanted in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], wanted, rtol=1e-2, atol=1e-4, msg=name)
    strangers = [name for name, grad in gradients[0].items() if name.startswith(AIDS) and grad.any()]
    assert strangers == []


def test_each_set_of_queries_answers_as_if_it_were_the_models_own():
    config = CONFIGS["classic"]
    aided, plain = build(config).train(), build(update_config(config, WITHOUT)).train()
    outputs = aided(*inputs(True), objects())
    assert outputs.groups is not None
    assert outputs.groups.logits.shape == (2, 3, 2, 9, 4)
    for number in range(2):
        state = copy.deepcopy(plain.state_dict())
        state["query_embed.weight"] = aided.aids.group_queries[number]
        state["query_reference"] = aided.aids.group_query_references[number]
        plain.load_state_dict(state)
        alone = plain(*inputs(True))
        torch.testing.assert_close(outputs.groups.logits[:, :, number], alone.logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            outputs.groups.boxes_cxcywh[:, :, number], alone.boxes_cxcywh, rtol=1e-4, atol=1e-5
        )
