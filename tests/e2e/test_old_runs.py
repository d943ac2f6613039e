"""Run folders written by earlier versions are still read: predicted with, evaluated, gone on with.

``tests/data/run_COMMIT*.tar.xz`` hold one each, written by the named commit: two epochs on ``write_synthetic(
"shapes", train_images=8, val_images=4, size=64, seed=1)``, both checkpoints, and in ``expected.json`` what that
commit predicted, measured, and lost in a third epoch.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import detrkit
from detrkit.curation.synthetic import write_synthetic

from .conftest import records

ARCHIVES = sorted((Path(__file__).parents[1] / "data").glob("run_*.tar.xz"))


@pytest.fixture(params=ARCHIVES, ids=lambda path: path.name.partition(".")[0])
def old_run(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder beside its data set, whose path it has relative to where it lies."""
    monkeypatch.chdir(tmp_path)
    write_synthetic("shapes", train_images=8, val_images=4, size=64, seed=1)
    with tarfile.open(request.param) as archive:
        archive.extractall(tmp_path, filter="data")
    (run,) = tmp_path.glob("run_*")
    return run


def _expected(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "expected.json").read_text(encoding="utf-8")))


def test_old_run_predicts_and_evaluates_as_before(old_run: Path) -> None:
    expected = _expected(old_run)
    detector = detrkit.load(old_run, device="cpu")
    for before in expected["predictions"]:
        now = detector.predict(Path("shapes/val2017") / before["file"], threshold=0.0)
        assert not isinstance(now, list)
        np.testing.assert_allclose(now.confidence, before["scores"], atol=1e-4)
        np.testing.assert_allclose(now.xyxy, before["boxes"], atol=0.02)
        np.testing.assert_array_equal(now.class_id, before["classes"])
    evaluation = detrkit.evaluate(old_run, "shapes", explain=False, resamples=0)
    assert evaluation["AP"] == pytest.approx(expected["AP"], abs=1e-6)


def test_old_run_goes_on_as_it_would_have(old_run: Path) -> None:
    detrkit.resume(old_run, epochs=3)
    third = [step["loss"] for step in records(old_run, "step") if step["epoch"] == 3]
    assert third == pytest.approx(_expected(old_run)["resumed"], rel=1e-3)
