"""Trainings of masks: with boxes, after them, and on a finished run; stopped in between, and with bad steps."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor

from detrkit.checkpoint import load_checkpoint, read_model
from detrkit.config import Config, update_config
from detrkit.curation.synthetic import write_synthetic
from detrkit.errors import ConfigError
from detrkit.families.recipes import resolve_config
from detrkit.training import loop
from detrkit.training.nonfinite.replay import find_step, read_step, replay_step
from detrkit.training.run import resume_run, start_run
from detrkit.training.telemetry.log import RunLog

PRESET = "detr-tiny-two-stage-panoptic"
SMALL = {
    "model.hidden_dim": 32,
    "model.ffn_dim": 32,
    "model.decoder_layers": 2,
    "model.num_queries": 10,
    "transforms.scales": [48],
    "transforms.eval_size": 48,
    "data.workers": 0,
    "train.epochs": 2,
    "train.batch_size": 2,
    "train.warmup_steps": 0,
    "train.log_every": 1,
    "train.ema_decay": 0.5,
    "train.eval_every": 2,
    "train.device": "cpu",
    "train.trackers": [],
    "train.log_images": 0,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("shapes"), train_images=4, val_images=1, size=48, masks=True)


def config_of(data: Path, preset: str = PRESET, **changes: Any) -> Config:
    named = {f"train.{name}": value for name, value in changes.items()}
    return update_config(resolve_config(preset, None, SMALL), {"data.root": str(data), **named})


def coco(config: Config) -> Config:
    """The same on the objects alone, without stuff."""
    return update_config(config, {"data.layout": "coco"})


def last(run: Path) -> dict[str, Any]:
    return load_checkpoint(run / "checkpoints" / "last.pt")


def steps_of(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == "step"]


def changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> set[str]:
    """Whether masks, and whether boxes differ."""
    names = [name for name in before if name in after and not torch.equal(before[name], after[name])]
    return {"masks" if name.startswith(("mask_head.", "bbox_attention.")) else "boxes" for name in names}


def run_until(config: Config, run: Path, stop_at: int) -> None:
    """Train until a signal comes after a step."""
    advance = RunLog.advance

    def stop(log: RunLog, step: int, epoch: int) -> None:
        advance(log, step, epoch)
        if step == stop_at:
            signal.raise_signal(signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunLog, "advance", stop)
        assert start_run(config, run, lambda _line: None).stopped == "interrupted"


def assert_same(one: dict[str, Any], two: dict[str, Any]) -> None:
    for part in ("model", "ema", "optimizer"):
        first, second = (torch.utils._pytree.tree_flatten(each[part])[0] for each in (one, two))
        assert len(first) == len(second)
        for left, right in zip(first, second, strict=True):
            same = torch.equal(left, right) if isinstance(left, Tensor) else left == right
            assert same, part


@pytest.mark.parametrize(
    ("box_epochs", "stop_at"),
    [(1, 3), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((1, 1), (1, 2), (0, 3)))],
)
def test_a_run_stopped_in_either_stage_goes_on_to_the_same_weights(
    box_epochs: int, stop_at: int, data: Path, tmp_path: Path
):
    config = config_of(data, box_epochs=box_epochs)
    whole = start_run(config, tmp_path / "whole", lambda _line: None)
    assert {"AP", "mask_AP", "PQ"} <= whole.last_metrics.keys()
    run = tmp_path / "run"
    run_until(config, run, stop_at)
    stopped = last(run)["model"]
    assert resume_run(run, lambda _line: None).stopped == "finished"
    assert_same(last(run), last(tmp_path / "whole"))
    assert changed(stopped, last(run)["model"]) == (
        {"masks"} if box_epochs and stop_at == 3 else {"boxes", "masks"}
    )


def test_masks_learn_alone_after_boxes_and_on_a_finished_run(data: Path, tmp_path: Path):
    boxes = tmp_path / "boxes"
    start_run(config_of(data, "detr-tiny-two-stage", epochs=1, init="none"), boxes, lambda _line: None)
    masks, said = tmp_path / "masks", list[str]()
    frozen = config_of(data, epochs=1, init=str(boxes), only=["mask_head"])
    with pytest.raises(ConfigError, match="class_head"):  # which stuff needs, too
        start_run(frozen, masks, said.append)
    start_run(coco(frozen), masks, said.append)
    given, found = (read_model(run).state_dict for run in (boxes, masks))
    assert changed(given, found) == set()
    assert any("all but mask_head" in line for line in said)

    run_until(config_of(data, box_epochs=1), tmp_path / "both", 1)
    first = last(tmp_path / "both")["model"]
    resume_run(tmp_path / "both", lambda _line: None)
    assert changed(first, last(tmp_path / "both")["model"]) == {"boxes", "masks"}
    assert [step["loss_dice"] > 0 for step in steps_of(tmp_path / "both")] == [False, False, True, True]


@pytest.mark.slow
@pytest.mark.parametrize("box_epochs", [0, 1])
def test_workers_and_float16_learn_the_same(
    box_epochs: int, data: Path, tmp_path: Path, float16_fabric: Fabric, monkeypatch: pytest.MonkeyPatch
):
    config = config_of(data, box_epochs=box_epochs, eval_every=9)

    def losses(name: str, **changes: Any) -> list[dict[str, float]]:
        start_run(update_config(config, changes), tmp_path / name, lambda _line: None)
        return [
            {key: step[key] for key in ("loss", "loss_mask", "loss_dice")} for step in steps_of(tmp_path / name)
        ]

    plain = losses("plain")
    assert losses("workers", **{"data.workers": 2}) == plain
    monkeypatch.setattr("detrkit.training.run.make_fabric", lambda _config: float16_fabric)
    scaler = float16_fabric.strategy.precision.scaler
    scaler.load_state_dict({**scaler.state_dict(), "scale": 16.0})  # no step is skipped
    for found, expected in zip(losses("float16", **{"train.precision": "16"}), plain, strict=True):
        assert found == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("box_epochs", [0, 1])
def test_a_bad_step_is_repeated_bit_for_bit(
    box_epochs: int, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from detrkit.families.build import build_model

    train_step = loop.train_step

    def spoil(run: Any, batches: Any, plan: Any) -> None:
        if run.state.progress.step + 1 == 4:
            with torch.no_grad():  # finite before and after it: the loss overflows
                run.state.module.get_parameter("mask_head.out_lay.weight").mul_(1e38)
        train_step(run, batches, plan)

    monkeypatch.setattr(loop, "train_step", spoil)
    run = tmp_path / "run"
    start_run(config_of(data, box_epochs=box_epochs, max_bad_steps=9), run, lambda _line: None)
    saved = read_step(find_step(run))
    assert saved.step == 4
    built = build_model(saved.config, saved.class_map)
    diagnosis = replay_step(saved, built.model, built.family.build_criterion(saved.config, saved.class_map))
    assert diagnosis.is_equal
