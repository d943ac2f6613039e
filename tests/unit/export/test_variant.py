"""Variants: the first layers give what the whole model's heads give there, and nothing else changes."""

import dataclasses

import pytest
import torch

from detrkit.errors import UsageError
from detrkit.export.variant import Variant
from detrkit.families.build import get_family
from detrkit.families.family import BuiltModel
from tests.support.exporting import PRESETS, small_detector


def small_model(preset: str) -> BuiltModel:
    found = small_detector(preset)
    return BuiltModel(found.model.eval(), get_family(found.config.model), found.config, found.class_map)


@pytest.mark.parametrize("preset", [*PRESETS, "rtdetr-nano", "dfine-n"])
@torch.no_grad()
def test_first_layers_and_some_queries_give_what_they_gave(preset: str):
    built = small_model(preset)
    image = torch.randn(1, 3, 96, 128)
    whole = Variant.whole(built)
    before = built.model(image)
    shallow = dataclasses.replace(whole, decoder_layers=1).apply(built)
    found = shallow.model(image)
    assert torch.allclose(found.logits[-1], before.logits[0], atol=1e-5)
    assert torch.allclose(found.boxes_cxcywh[-1], before.boxes_cxcywh[0], atol=1e-5)
    kept = (1, 4, 5) if built.family.learned_queries else (0, 1, 2)
    few = Variant(2, kept, 64).apply(built)
    built.family.prepare_inference(few.model)
    assert few.model(image).logits.shape[-2] == 3
    assert (few.config.model.decoder_layers, few.config.model.num_queries) == (2, 3)
    usual, own = built.config.transforms, few.config.transforms
    assert (own.eval_size, own.max_size) == (64, round(64 * usual.max_size / usual.eval_size))
    # queries see each other, so that fewer give other logits; those of a single layer's input are the same rows
    if built.family.learned_queries:
        assert torch.equal(few.model.query_embed.weight, built.model.query_embed.weight[list(kept)])
    assert torch.equal(built.model(image).logits, before.logits)


@pytest.mark.parametrize(
    "wrong", [{"decoder_layers": 3}, {"decoder_layers": 0}, {"queries": (0, 99)}, {"queries": ()}]
)
def test_more_than_the_model_has_is_refused(wrong: dict[str, object]):
    built = small_model(PRESETS[0])
    with pytest.raises(UsageError, match="d2-q12-s128"):
        dataclasses.replace(Variant.whole(built), **wrong).apply(built)
