from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from detrkit.cli.shared import parse_assignments
from detrkit.config import RECIPES, Config, RecipeName, TransformConfig, read_config, update_config, write_config
from detrkit.errors import ConfigError
from detrkit.families.configs import MODEL_CONFIGS
from tests.support.mutations import yaml_bomb


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train.lrr": 1}, r"unknown config key train\.lrr; did you mean train\.lr\?"),
        ({"trian": {"lr": 1}}, r"trian.*did you mean train\?"),
        ({"model.epochs": 3}, r"did you mean train\.epochs\?"),
        ({"train.epochs": -1}, r"train\.epochs is -1"),
        ({"train": 3}, "train is a section"),
        ({"model.hidden_dim": 100}, "not a multiple of num_heads"),
        ({"model.dense_supervision": "perhaps"}, r"aids\.dense is 'perhaps'"),
        ({"train.lr_scale": 3}, r"train\.lr_scale is 3"),
        ({"train.lr_scale": {"encoder": 0}}, r"train\.lr_scale\.encoder is 0: .*greater than 0"),
        ({"train.lr_scale.encoder": "much"}, r"train\.lr_scale\.encoder is 'much'"),
        ({"train.freeze": 3}, r"train\.freeze is 3"),
        ({"transforms.recipe": "stong"}, r"recipe is 'stong'.*'strong'"),
        ({"transforms.crop_range": [600, 384]}, "crop_range is from 600 to 384"),
        ({"transforms.scale_jitter": [0.0, 1.0]}, "expected factors"),
        ({"transforms.mosaic": 1.2}, r"mosaic is 1\.2"),
        ({"transforms.zoom_out_factor": 0.5}, r"zoom_out_factor is 0\.5"),
        ({"transforms.scales": [480, 0]}, "scales has 0"),
        ({"transforms.std": [0.2, 0.0, 0.2]}, "expected numbers above 0"),
        ({"transforms.close_after": 5}, "close_after is 5"),
    ],
)
def test_keys_and_values_that_cannot_be_are_refused(changes: dict[str, object], message: str):
    with pytest.raises(ConfigError, match=message):
        update_config(Config(), changes)


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("train.lr=1e-4", "lr", 1e-4),
        ("train.precision=16", "precision", "16"),
        ("train.ema_decay=null", "ema_decay", None),
        ("train.freeze=backbone", "freeze", ("backbone",)),  # one part needs no brackets
    ],
)
def test_assignments_of_the_command_line(text: str, key: str, value: object):
    config = update_config(Config(), parse_assignments([text]))
    assert getattr(config.train, key) == value
    with pytest.raises(ConfigError, match="expected KEY=VALUE"):
        parse_assignments(["train.lr"])


@pytest.mark.parametrize(
    "assignments",
    [
        ["train.lr_scale={backbone: 0.1, backbone.stem: 0.5}"],
        ["train.lr_scale={backbone: 0.1}", "train.lr_scale.backbone.stem=0.5"],
        ["train.lr_scale.backbone=0.1", "train.lr_scale.backbone.stem=0.5"],
    ],
)
def test_a_mapping_is_set_whole_or_by_its_names(assignments: list[str]):
    config = update_config(Config(), parse_assignments(assignments))
    assert config.train.lr_scale == {"backbone": 0.1, "backbone.stem": 0.5}


def test_a_mapping_given_whole_replaces_and_by_a_name_adds(tmp_path: Path):
    config = update_config(Config(), {"train": {"lr_scale": {"encoder": {"layer1": 0.5}}}})
    assert config.train.lr_scale == {"encoder.layer1": 0.5}
    assert update_config(config, {"train.lr_scale.decoder": 2}).train.lr_scale == {
        "encoder.layer1": 0.5,
        "decoder": 2,
    }
    assert update_config(config, {"train": {"lr_scale": {"decoder": 2}}}).train.lr_scale == {"decoder": 2}
    assert update_config(config, {"train.lr_scale": {}}).train.lr_scale == {}
    assert config.train.lr_scale == {"encoder.layer1": 0.5}
    write_config(config, tmp_path / "c.yaml")
    assert read_config(tmp_path / "c.yaml") == config


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "not valid YAML"), ("- 1", "holds a list"), ("train: {x: 1}", "unknown config key train.x")],
)
def test_a_bad_file_is_named(tmp_path: Path, text: str, message: str):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_config(path)
    assert "c.yaml" in str(caught.value)
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        read_config(tmp_path / "nowhere.yaml")


def test_an_empty_file_changes_nothing(tmp_path: Path):
    (tmp_path / "c.yaml").write_text("")
    assert read_config(tmp_path / "c.yaml") == Config()


def test_a_recipe_brings_its_values_and_keys_beside_it_override_them():
    config = update_config(Config(), {"transforms.recipe": "strong", "transforms.zoom_out": 0.1})
    assert (config.transforms.zoom_out, config.transforms.iou_crop, config.transforms.crop) == (0.1, 0.8, 0.0)
    again = update_config(config, {"transforms.recipe": "detr"})
    assert again.transforms == TransformConfig()


def test_a_recipe_leaves_values_alone_that_no_recipe_sets():
    config = update_config(Config(), {"transforms.flip": 0.0, "transforms.scales": [100]})
    changed = update_config(config, {"transforms": {"recipe": "mosaic"}})
    assert (changed.transforms.flip, changed.transforms.scales) == (0.0, (100,))
    assert changed.transforms.mosaic == 0.5


def test_other_changes_leave_what_was_set_over_a_recipe():
    config = update_config(Config(), {"transforms.recipe": "strong", "transforms.zoom_out": 0.1})
    assert update_config(config, {"train.lr": 0.5}).transforms == config.transforms
    assert update_config(config, {"transforms.iou_crop": 0.3}).transforms.zoom_out == 0.1


def test_a_run_with_a_changed_recipe_is_written_and_read_whole(tmp_path: Path):
    changes = {"transforms.recipe": "mosaic", "transforms.mixup": 0.9, "transforms.scales": [100, 200]}
    config = update_config(Config(), {**changes, "data.root": "a b", "train.lr": 3e-4})
    write_config(config, tmp_path / "c.yaml")
    assert read_config(tmp_path / "c.yaml") == config


def test_every_recipe_has_a_name_and_only_known_keys():
    assert set(RECIPES) == set(get_args(RecipeName))
    for name, changes in RECIPES.items():
        config = TransformConfig(recipe=name)
        as_read = {key: tuple(value) if isinstance(value, list) else value for key, value in changes.items()}
        assert {key: getattr(config, key) for key in changes} == as_read


@pytest.mark.parametrize(("before", "now"), [(True, "center"), (False, "none")])
def test_keys_of_older_files_are_still_read(before: bool, now: str, tmp_path: Path):
    path = tmp_path / "config.yaml"
    path.write_text(f"model: {{num_queries: 7, dense_supervision: {str(before).lower()}}}\n")
    for base in (None, update_config(Config(), {"aids.dense": "aligned"})):
        config = read_config(path, base)
        assert (config.aids.dense, config.model.num_queries) == (now, 7)
    assert update_config(Config(), {"model.dense_supervision": before}).aids.dense == now
    assert not hasattr(config.model, "dense_supervision")


def test_todays_name_of_a_key_goes_over_its_old_one():
    for changes in (
        {"aids.dense": "aligned", "model.dense_supervision": True},
        {"model.dense_supervision": True, "aids.dense": "aligned"},
    ):
        assert update_config(Config(), changes).aids.dense == "aligned"


def test_each_family_has_its_own_fields():
    two_stage = update_config(Config(), {"model.family": "two_stage", "model.levels": 3, "model.num_queries": 7})
    assert (two_stage.model.levels, two_stage.model.num_queries) == (3, 7)
    assert not hasattr(Config().model, "levels")
    with pytest.raises(ConfigError, match=r"model\.levels; detr has none, only two_stage"):
        update_config(Config(), {"model.levels": 3})
    with pytest.raises(ConfigError, match=r"model\.query_reference; two_stage has none, only detr"):
        update_config(two_stage, {"model": {"query_reference": True}})
    with pytest.raises(ConfigError, match=r"model\.family is 'yolo', expected one of detr, two_stage"):
        update_config(Config(), {"model.family": "yolo"})
    with pytest.raises(ConfigError, match=r"model\.num_queries is 0"):
        update_config(two_stage, {"model.num_queries": 0})


def test_a_file_of_the_time_before_families_had_their_own_fields_is_read(tmp_path: Path):
    file = tmp_path / "config.yaml"
    foreign = "position: sine, query_init: normal, query_reference: false, position_at_input: false"
    file.write_text(f"model: {{family: two_stage, levels: 2, {foreign}}}\n")
    assert read_config(file).model.model_dump().keys() == MODEL_CONFIGS["two_stage"].model_fields.keys()
    file.write_text("model: {family: detr, levels: 1, query_reference: true}\n")
    assert read_config(file).model.query_reference


def test_every_section_names_its_family():
    assert all(section().family == name for name, section in MODEL_CONFIGS.items())


@pytest.mark.parametrize(
    "text", ["[" * 3000, "a: !!bool x", "a: !!timestamp x", "a: 2001-99-99", yaml_bomb().decode()]
)
def test_yaml_that_is_odd_nested_or_unfolds_without_end_is_no_yaml(text: str, tmp_path: Path):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"c\.yaml is not valid YAML"):
        read_config(tmp_path / "c.yaml")


def test_an_error_of_values_that_do_not_go_together_names_these_alone():
    with pytest.raises(ConfigError) as caught:
        update_config(Config(), {"train.box_epochs": 1})
    assert str(caught.value) == "train.box_epochs is 1, but detr-r50 has no masks"
