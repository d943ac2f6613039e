from __future__ import annotations

from typing import Any

import pytest

from detrkit.config import TrainConfig
from detrkit.errors import ConfigError
from detrkit.families.parts import Place, check_parts, find_places, freeze_parts, part_names
from tests.unit.families.conftest import build, small_config

CONFIG = small_config(encoder_layers=2, decoder_layers=3)


def test_part_and_depth_of_every_kind_of_parameter():
    """Also of those that only some models have."""
    changes = {"position": "learned", "pre_norm": True, "query_reference": True}
    places = find_places(build(small_config(encoder_layers=2, decoder_layers=3, **changes)))
    wanted = {
        "class_embed.weight": Place("class_head", 0),
        "bbox_embed.layers.2.bias": Place("box_head", 0),
        "transformer.decoder.norm.weight": Place("decoder.norm", 0),
        "transformer.decoder.layers.2.linear1.weight": Place("decoder.layer3", 1),
        "transformer.decoder.layers.0.norm1.bias": Place("decoder.layer1", 3),
        "query_embed.weight": Place("queries", 3),
        "query_reference": Place("queries", 3),
        "transformer.encoder.norm.weight": Place("encoder.norm", 4),
        "transformer.encoder.layers.1.linear1.weight": Place("encoder.layer2", 4),
        "transformer.encoder.layers.0.linear1.weight": Place("encoder.layer1", 5),
        "input_proj.weight": Place("input_proj", 6),
        "backbone.1.row_embed.weight": Place("position", 6),
        "backbone.0.body.layer4.1.conv2.weight": Place("backbone.stage4", 7),
        "backbone.0.body.layer1.0.conv1.weight": Place("backbone.stage1", 10),
        "backbone.0.body.conv1.weight": Place("backbone.stem", 11),
    }
    assert {name: places[name] for name in wanted} == wanted


def test_parts_are_listed_from_the_image_to_the_detections():
    assert part_names(find_places(build(CONFIG))) == (
        "backbone",
        *("backbone.stem", "backbone.stage1", "backbone.stage2", "backbone.stage3", "backbone.stage4"),
        "input_proj",
        *("encoder", "encoder.layer1", "encoder.layer2"),
        *("decoder", "decoder.layer1", "decoder.layer2", "decoder.layer3", "decoder.norm"),
        "queries",
        "class_head",
        "box_head",
    )


@pytest.mark.parametrize(
    ("settings", "trained"),
    [
        ({"only": ("decoder.layer1", "box_head")}, {"decoder.layer1", "box_head"}),
        ({"only": ("decoder",), "freeze": ("decoder.layer1",)}, {"decoder.layer2", "decoder.norm"}),
    ],
)
def test_parts_that_alone_are_trained(settings: dict[str, Any], trained: set[str]):
    model = build(small_config())
    places = find_places(model)
    freeze_parts(model, places, TrainConfig(**settings))
    assert {places[name].part for name, p in model.named_parameters() if p.requires_grad} == trained
    with pytest.raises(ConfigError, match="nothing is left to train"):
        check_parts(places, TrainConfig(only=("decoder",), freeze=("decoder",)), "detr-tiny")


def test_freezing_a_part_freezes_exactly_its_parameters():
    model = build(small_config(frozen_stages=1))
    places = find_places(model)
    freeze_parts(model, places, TrainConfig(freeze=("backbone.stage4", "decoder")))
    frozen = {places[name].part for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {"backbone.stem", "backbone.stage4", "decoder.layer1", "decoder.layer2", "decoder.norm"}
    trained = {places[name].part for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert not frozen & trained
