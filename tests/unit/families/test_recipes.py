from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from detrkit.config import Config, read_config, update_config, write_config
from detrkit.families.detr.config import DetrConfig
from detrkit.families.presets import PRESETS, get_preset
from detrkit.families.recipes import DEIM, FAST, FROM_SCRATCH, preset_config, resolve_config
from detrkit.preprocess import Preprocessing

WITH_WEIGHTS = [name for name, preset in PRESETS.items() if preset.published or preset.backbone_file]
WITHOUT = [name for name in PRESETS if name not in WITH_WEIGHTS]


def values(config: Config, keys: Any) -> dict[str, Any]:
    found = config.model_dump()
    return {key: found[key.partition(".")[0]][key.partition(".")[2]] for key in keys}


@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_with_pretrained_weights_plain_is_the_default_and_from_random_ones_fast(name: str):
    for init in (None, "auto", "backbone", "published", "runs/some-run"):
        config = resolve_config(name, None, {} if init is None else {"train.init": init})
        assert config.train.recipe == "plain"
        assert values(config, FAST) == values(get_preset(name).config(), FAST)
    config = resolve_config(name, None, {"train.init": "none"})
    assert config.train.recipe == "fast"
    wanted = {**FAST, **FROM_SCRATCH, **get_preset(name).fast}
    assert values(config, wanted) == wanted
    assert config.train.lr > 1e-4


@pytest.mark.parametrize("name", WITHOUT)
def test_presets_without_pretrained_weights_are_fast(name: str):
    config = preset_config(name)
    assert config == resolve_config(name, None, {})
    assert config.train.recipe == "fast"
    wanted = {**FAST, **PRESETS[name].fast}
    assert values(config, wanted) == wanted


@pytest.mark.parametrize("name", PRESETS)
def test_plain_is_exactly_as_published(name: str):
    """The values of the paper and its code are those that the config has by itself; no preset sets others."""
    config = resolve_config(name, None, {"train.recipe": "plain"})
    assert config.train.recipe == "plain"
    own = get_preset(name).config()
    assert update_config(config, {"train.recipe": "auto"}) == own
    if own.model.family not in ("detr", "two_stage"):  # published with other values, which their presets hold
        return
    set_by_fast = {**FAST, **FROM_SCRATCH, **get_preset(name).fast}
    assert values(own, set_by_fast) == values(Config(), set_by_fast)


@pytest.mark.parametrize("name", PRESETS)
def test_a_recipe_never_changes_what_the_model_computes(name: str):
    """Only how queries begin, which no weights that are loaded keep."""
    plain, fast = (resolve_config(name, None, {"train.recipe": recipe}) for recipe in ("plain", "fast"))
    assert plain.model.model_dump(exclude={"query_init"}) == fast.model.model_dump(exclude={"query_init"})
    assert plain.data == fast.data
    rules = [Preprocessing.from_config(config.transforms) for config in (plain, fast)]
    assert rules[0] == rules[1]  # of evaluation; augmentation may differ
    assert plain.train.epochs == fast.train.epochs


def test_the_config_of_detr_r50_is_what_it_was():
    before = Config(model=DetrConfig(preset="detr-r50", backbone="resnet50"))
    assert preset_config("detr-r50") == update_config(before, {"train.recipe": "plain"})
    assert before == Config()
    published = {
        "model": {"hidden_dim": 256, "num_heads": 8, "encoder_layers": 6, "decoder_layers": 6, "ffn_dim": 2048},
        "loss": {"class_cost": 1, "l1_cost": 5, "giou_cost": 2, "l1_weight": 5, "giou_weight": 2},
        "train": {"lr": 1e-4, "backbone_lr": 1e-5, "weight_decay": 1e-4, "clip_norm": 0.1, "schedule": "step"},
    }
    assert update_config(preset_config("detr-r50"), published) == preset_config("detr-r50")


def test_fine_tuning_at_the_pace_of_fast_keeps_the_learning_rates_of_pretrained_weights():
    config = resolve_config("detr-r50", None, {"train.recipe": "fast"})
    assert (config.train.lr, config.train.backbone_lr) == (1e-4, 1e-5)
    assert (config.train.schedule, config.aids.dense) == ("cosine", "center")
    nano = resolve_config("dfine-n", None, {"train.recipe": "fast"}).train
    assert (nano.lr, nano.backbone_lr, nano.muon) == (8e-4, 4e-4, 0.0)


@pytest.mark.parametrize("name", ["rtdetr-r18", "dfine-n", "rtdetr-nano", "detr-nano"])
@pytest.mark.parametrize("init", ["none", "auto"])
def test_deim_goes_over_what_would_be_set_anyway(name: str, init: str):
    usual = resolve_config(name, None, {"train.init": init})
    config = resolve_config(name, None, {"train.init": init, "train.recipe": "deim"})
    assert config == update_config(usual, {**DEIM, "train.recipe": "deim"})
    assert values(config, DEIM) == DEIM


@pytest.mark.parametrize("recipe", ["plain", "fast", "auto"])
def test_what_is_asked_for_goes_over_the_recipe(recipe: str, tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text("train: {clip_norm: 0.7, lr: 5.0e-4}\naids: {groups: 4}\n")
    changes = {"train.recipe": recipe, "train.init": "none", "train.lr": 2e-4, "aids.dense": "aligned"}
    config = resolve_config("detr-r18", file, changes)
    assert (config.train.clip_norm, config.train.lr) == (0.7, 2e-4)
    assert (config.aids.groups, config.aids.dense) == (4, "aligned")
    assert config.train.recipe == ("plain" if recipe == "plain" else "fast")
    assert config.train.schedule == ("step" if recipe == "plain" else "cosine")


def test_a_file_names_the_recipe_and_the_command_line_another(tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text("train: {recipe: fast}\n")
    assert resolve_config("detr-r50", file, {}).train.ema_decay == FAST["train.ema_decay"]
    config = resolve_config("detr-r50", file, {"train.recipe": "plain"})
    assert (config.train.recipe, config.train.ema_decay) == ("plain", None)
    file.write_text("train: {init: none}\n")
    assert resolve_config("detr-r50", file, {}).train.recipe == "fast"
    assert resolve_config("detr-r50", file, {"train.init": "backbone"}).train.recipe == "plain"


def test_a_resolved_config_read_again_is_itself(tmp_path: Path):
    preset = "detr-nano-two-stage"
    config = resolve_config(preset, None, {"aids.denoising": 5, "train.init": "none", "train.lr": 7e-4})
    write_config(config, tmp_path / "config.yaml")
    assert resolve_config(preset, tmp_path / "config.yaml", {}) == config
    assert resolve_config("detr-r50", tmp_path / "config.yaml", {}) == config  # the preset is in the file
    assert read_config(tmp_path / "config.yaml") == config
