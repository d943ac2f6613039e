"""Fine-tuning from the command line: what is carried over, what stays still, what learns at which rate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from detrkit.checkpoint import load_checkpoint, read_model
from detrkit.classes import COCO_NAMES, ClassMap
from detrkit.config import update_config
from detrkit.curation.synthetic import write_synthetic
from detrkit.families.build import build_model
from detrkit.families.detr.config import DetrConfig
from detrkit.families.detr.export import write_published
from detrkit.families.detr.model import build_detr
from detrkit.families.recipes import preset_config
from detrkit.families.weights import Weights
from detrkit.families.writers import get_writers
from tests.e2e.conftest import (
    BATCH,
    SIDE,
    TRAIN_IMAGES,
    assert_equal,
    records,
    run_here,
    run_until_step_2,
    run_well,
    train_arguments,
    trained,
)

EPOCH_STEPS = TRAIN_IMAGES // BATCH
BODY = ("backbone", "input_proj", "encoder", "queries", "decoder")
CLASS_HEAD = {"class_embed.weight", "class_embed.bias"}


@pytest.fixture(scope="module")
def source(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run to go on from, with all that could move: batch norm, and averaged weights."""
    run = tmp_path_factory.mktemp("runs") / "source"
    settings: dict[str, Any] = {"model__backbone_norm": "batch", "train__ema_decay": 0.5, "train__log_images": 0}
    run_well(*train_arguments(tiny_data, run, epochs=1, **settings))
    return run


@pytest.fixture(scope="module")
def other_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four classes, two of which the source knows, one of them in other letters."""
    root = tmp_path_factory.mktemp("others")
    write_synthetic(root, train_images=TRAIN_IMAGES, val_images=4, size=SIDE, seed=5, num_classes=4)
    for path in (root / "annotations").iterdir():
        content = json.loads(path.read_text())
        for category, name in zip(content["categories"], ("gem", "Square", "comet", "star"), strict=True):
            category["name"] = name
        path.write_text(json.dumps(content))
    return root


def fine_tune(source: Path, data: Path, run: Path, epochs: int = 1, **settings: Any) -> list[str]:
    settings = {"train__init": str(source), "train__log_images": 0, **settings}
    return train_arguments(data, run, epochs=epochs, **settings)


def changed(run: Path, source: Path) -> set[str]:
    """Tensors of the network, running statistics included, that a training has changed."""
    before = read_model(source).state_dict
    now = load_checkpoint(run / "checkpoints" / "last.pt")["model"]
    assert now.keys() == before.keys()
    return {name for name, tensor in now.items() if not torch.equal(tensor, before[name])}


def parts_of(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def test_a_run_goes_on_with_other_classes_from_its_averaged_best_weights(
    source: Path, other_data: Path, tmp_path: Path
):
    run = tmp_path / "run"
    out = run_well(*fine_tune(source, other_data, run, train__freeze=[*BODY, "box_head"], train__lr=1e-30))
    assert "classes carried over by name: 2 (Square, star)" in out
    assert "classes that start anew: 2 (gem, comet)" in out
    assert "frozen: backbone, input_proj, encoder, queries, decoder, box_head; 0.00 of" in out
    averages = load_checkpoint(source / "checkpoints" / "best.pt")["ema"]["weights"]
    state = load_checkpoint(run / "checkpoints" / "last.pt")["model"]
    for name, average in averages.items():
        assert name in CLASS_HEAD or torch.equal(state[name], average), name
    rows, old_rows = state["class_embed.weight"], averages["class_embed.weight"]
    torch.testing.assert_close(rows[[1, 3, 4]], old_rows[[1, 3, 6]])  # square, star and no-object
    assert read_model(run).class_map.names == ("gem", "Square", "comet", "star")


def test_frozen_parts_are_bit_equal_after_training_and_the_heads_are_not(
    source: Path, other_data: Path, tmp_path: Path
):
    run_well(*fine_tune(source, other_data, tmp_path / "run", train__freeze=list(BODY)))
    found = changed(tmp_path / "run", source)
    assert parts_of(found) == {"class_embed", "bbox_embed"}
    assert len(found) == 2 + 6


def test_in_the_head_steps_nothing_else_moves_not_even_the_optimiser(
    source: Path, other_data: Path, tmp_path: Path
):
    run = tmp_path / "run"
    out = run_well(*fine_tune(source, other_data, run, train__head_steps=EPOCH_STEPS))
    assert f"train.head_steps {EPOCH_STEPS}: at first only what is new learns, class_head" in out
    assert changed(run, source) == CLASS_HEAD
    optimizer = load_checkpoint(run / "checkpoints" / "last.pt")["optimizer"]
    new = [number for group in optimizer["param_groups"] if group["new"] for number in group["params"]]
    assert set(optimizer["state"]) == set(new)
    assert {record["lr"] for record in records(run, "step")} == {0.0}
    run_well("resume", run, "--epochs", "2")
    assert len(changed(run, source)) > len(read_model(source).state_dict) / 2
    assert [record["lr"] > 0 for record in records(run, "step")] == [False] * EPOCH_STEPS + [True] * EPOCH_STEPS


def test_a_run_resumed_within_the_head_steps_ends_with_the_same_weights(
    source: Path, other_data: Path, tmp_path: Path
):
    steps = 2 * EPOCH_STEPS
    settings = {"epochs": 2, "train__head_steps": steps - 3, "train__layer_decay": 0.8, "model__dropout": 0.1}
    run_well(*fine_tune(source, other_data, tmp_path / "whole", **settings))
    run = tmp_path / "run"
    run_until_step_2(fine_tune(source, other_data, run, **settings))
    assert load_checkpoint(run / "checkpoints" / "last.pt")["progress"]["step"] == 2
    assert changed(run, source) == CLASS_HEAD
    run_well("resume", run)
    assert_equal(trained(run), trained(tmp_path / "whole"))
    assert len(changed(run, source)) > len(CLASS_HEAD)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train__freeze": ["backbon"]}, "'backbon', which is no part of detr-tiny; did you mean"),
        ({"train__lr_scale": {"neck": 0.1}}, "Parts: backbone, backbone.stem, backbone.stage1"),
        ({"train__freeze": [*BODY, "class_head", "box_head"]}, "nothing is left to train"),
    ],
)
def test_parts_that_cannot_be_are_refused_before_anything_is_written(
    settings: dict[str, Any], message: str, tiny_data: Path, tmp_path: Path
):
    result = run_here(*train_arguments(tiny_data, tmp_path / "run", **settings))
    assert result.exit_code == 2
    assert message in result.output
    assert not (tmp_path / "run" / "config.yaml").exists()


SMALL = {
    "model.hidden_dim": 32,
    "model.num_heads": 1,
    "model.encoder_layers": 1,
    "model.decoder_layers": 2,
    "model.ffn_dim": 32,
    "model.num_queries": 10,
    "transforms.recipe": "resize",
    "train.freeze": ["backbone"],  # keeps checkpoints small
    "train.log_images": 0,
}


def published(preset: str, path: Path) -> Path:
    """Random weights of a preset with a small transformer, in the published layout."""
    small = {key.partition(".")[2]: value for key, value in SMALL.items() if key.startswith("model.")}
    config = DetrConfig.model_validate(
        {**preset_config(preset).model.model_dump(), **small, "backbone_norm": "frozen", "frozen_stages": 2}
    )
    torch.manual_seed(0)
    write_published(path, build_detr(config, 91).state_dict())
    return path


SMALL_REALTIME = {
    "model.hidden_dim": 32,
    "model.encoder_dim": 32,
    "model.ffn_dim": 32,
    "model.encoder_ffn_dim": 32,
    "model.num_queries": 10,
}


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["native", "hub"])
@pytest.mark.parametrize("preset", ["rtdetr-r18", "dfine-n"])
def test_published_files_of_real_time_models_go_on_with_other_classes(
    preset: str, layout: str, tiny_data: Path, other_data: Path, tmp_path: Path
):
    """At the defaults of fine-tuning: the preset's own recipe, counts by the steps of this training."""
    config = update_config(preset_config(preset), SMALL_REALTIME)
    classes = ClassMap(tuple("star" if name == "dog" else name for name in COCO_NAMES), tuple(range(80)))
    torch.manual_seed(0)
    built = build_model(update_config(config, {"aids.denoising": 0}), classes)
    state = built.model.state_dict()
    init, writers = tmp_path / "random", get_writers(built.family, "")
    if layout == "hub":
        writers.hub(init, Weights(state, built.config.model, classes, "random"), built.config)
    else:
        init = init.with_suffix(".pth")
        writers.published(init, state, built.config)
        init.with_suffix(".classes.json").write_text(json.dumps(classes.to_dict()))
    settings = {key.replace(".", "__"): value for key, value in SMALL_REALTIME.items()}
    arguments = fine_tune(init, other_data, tmp_path / "run", train__lr=1e-30, train__backbone_lr=0, **settings)
    arguments[arguments.index("detr-tiny")] = preset
    out = run_well(*arguments)
    assert "classes carried over by name: 1 (star)" in out
    assert "classes that start anew: 3 (gem, Square, comet)" in out
    assert f"{EPOCH_STEPS} steps of {BATCH} images in 1 epochs" in out
    now = load_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt")["model"]
    column = COCO_NAMES.index("dog")
    rows = [name for name in state if "class_embed" in name and name.endswith("weight")]
    for name in (*rows, "label_embed.weight"):
        torch.testing.assert_close(now[name][3], state[name][column])
    assert torch.equal(now["token_proj.weight"], state["token_proj.weight"])
    assert read_model(tmp_path / "run").class_map.names == ("gem", "Square", "comet", "star")


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        pytest.param("detr-r18", "detr-r34", "8 backbone blocks are new", marks=pytest.mark.slow),
        pytest.param("detr-r50", "detr-r50-dc5", "model.dilation False", marks=pytest.mark.slow),
    ],
)
def test_a_backbone_goes_over_into_a_larger_one(
    before: str, after: str, said: str, tiny_data: Path, tmp_path: Path
):
    init = published(before, tmp_path / "random.pth")
    settings = {key.replace(".", "__"): value for key, value in SMALL.items()}
    arguments = train_arguments(tiny_data, tmp_path / "run", epochs=1, **settings, train__init=str(init))
    arguments[arguments.index("detr-tiny")] = after
    assert said in run_well(*arguments)
    state, given = read_model(tmp_path / "run").state_dict, torch.load(init, weights_only=True)["model"]
    body = {name for name in given if name.startswith("backbone.0.body.")}
    assert body <= set(state)
    assert all(torch.equal(state[name], given[name]) for name in body)
    assert read_model(tmp_path / "run").config.model.preset == after
