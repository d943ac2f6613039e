from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from detrkit.api.profile import profile
from detrkit.curation.synthetic import write_synthetic
from detrkit.errors import DataError
from detrkit.profiling.report import Profile

SETTINGS: dict[str, Any] = {
    "transforms.scales": [64],
    "transforms.eval_size": 64,
    "train.batch_size": 4,
    "train.device": "cpu",
    "train.ema_decay": 0.9,
    "data.workers": 0,
}
FORWARD_PARTS = {
    "forward",
    "forward: backbone.0 (ResNetBackbone)",
    "forward: backbone.1 (SinePosition)",
    "forward: bbox_embed (MLP)",
    "forward: class_embed (Linear)",
    "forward: input_proj (Conv2d)",
    "forward: transformer.decoder (Decoder)",
    "forward: transformer.encoder (Encoder)",
}
OTHERS = {"data", "transfer", "normalisation", "matching", "loss", "backward", "optimiser", "EMA", "rest"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("shapes"), train_images=6, val_images=2, size=64, seed=1)


def watch(data: Path, out: Path, said: list[str] | None = None, **changes: Any) -> Profile:
    say = (lambda _message: None) if said is None else said.append
    named = {key.replace("__", "."): value for key, value in changes.items()}
    return profile("detr-tiny", data, steps=2, out=out, changes={**SETTINGS, **named}, say=say)


@pytest.fixture(scope="module")
def plain(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Profile:
    return watch(data, tmp_path_factory.mktemp("profile") / "plain")


def test_every_part_of_a_step_is_told_and_they_add_up(plain: Profile):
    assert set(plain.measured.phases) == FORWARD_PARTS | OTHERS
    assert list(plain.measured.phases)[-1] == "rest"
    assert len(plain.measured.timed) == 2
    for made in plain.measured.timed:
        assert made.seconds == pytest.approx(sum(made.phases.values()))
        assert made.images in (2, 4)  # 6 images make a batch of 4 and one of 2
        assert all(seconds >= 0 for seconds in made.phases.values())
    shares = [row[2] for row in plain.tables()[0].rows]
    assert sum(shares) == pytest.approx(1)
    assert plain.measured.images_per_s > 0
    assert plain.utilisation is None  # no CPU is in the table


def test_memory_is_told_by_kind(plain: Profile):
    memory = plain.measured.memory
    trained = memory.gradients
    assert memory.parameters == pytest.approx(trained, rel=0.01)
    assert memory.optimizer == pytest.approx(2 * trained, rel=0.01)  # two moments
    assert memory.ema == pytest.approx(trained, rel=0.01)
    assert set(memory.activations) <= FORWARD_PARTS
    assert memory.kept > 2**20
    assert memory.others >= 0
    assert memory.limit > memory.peak
    assert plain.measured.flops > 10**8


def test_files_hold_what_was_said(plain: Profile):
    found = json.loads((plain.folder / "profile.json").read_text())
    assert found["phases_s"] == plain.measured.phases
    assert found["memory"]["activations"] == plain.measured.memory.activations
    assert found["batch_size"] == 4
    page = (plain.folder / "profile.html").read_text()
    assert "transformer.encoder (Encoder)" in page
    assert "src=" not in page
    text = "\n".join(plain.lines())
    assert "detr-tiny, 4 images a batch, float32" in text
    assert "matching" in text
    assert not (plain.folder / "trace.json").exists()


def test_recomputing_keeps_less(plain: Profile, data: Path, tmp_path: Path):
    saving = watch(data, tmp_path / "saving", train__recompute=True, train__ema_decay=None)
    assert saving.measured.memory.kept < 0.5 * plain.measured.memory.kept
    assert saving.measured.memory.ema == 0
    assert "EMA" not in saving.measured.phases


def test_a_trace_is_for_the_browser_and_names_the_phases(data: Path, tmp_path: Path):
    found = profile(
        "detr-tiny", data, steps=1, out=tmp_path / "p", changes=SETTINGS, trace=True, say=lambda _message: None
    )
    events = json.loads((found.folder / "trace.json").read_text())["traceEvents"]
    assert {"matching", "backward", "optimiser", "data"} <= {event.get("name") for event in events}


def test_data_without_a_readable_image_is_an_error(tmp_path: Path):
    broken = write_synthetic(tmp_path / "broken", train_images=2, val_images=1, size=64)
    for image in (broken / "train2017").iterdir():
        image.write_bytes(b"no image")
    with pytest.raises(DataError, match="not one training image"):
        watch(broken, tmp_path / "p")
