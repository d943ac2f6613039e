from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from typing import Any

import pytest

from detrkit.training import alarms, step
from detrkit.training.alarms import Alarms, Progressed
from detrkit.training.health import QueryUse
from tests.unit.training.conftest import toy_config
from tests.unit.training.test_loop import records

SOUND = {
    "objects_share": 0.12,
    "object_probability": 0.2,
    "matched_share": 0.12,
    "box_spread_images": 0.06,
    "box_spread_queries": 0.2,
}
TERMS = {"class": 1.0, "l1": 0.2, "giou": 0.6, "class_error": 0.8}


def falling(steps: int, first: float = 20.0, last: float = 8.0, noise: float = 0.05) -> list[float]:
    """Losses that fall from first to last, with noise of so large a share."""
    generator = random.Random(0)
    pace = [math.exp(-3 * step / steps) for step in range(steps)]
    return [(last + (first - last) * share) * (1 + noise * generator.gauss(0, 1)) for share in pace]


def hear(
    losses: Sequence[float],
    *,
    watched: Alarms | None = None,
    log_every: int = 10,
    health: dict[str, float] | None = None,
    terms: dict[str, float] | None = None,
    use: QueryUse | None = None,
    begin: int = 0,
    total_steps: int | None = None,
    **train: Any,
) -> list[tuple[int, str]]:
    """What is said of a training, and at which step."""
    watched = watched or Alarms(toy_config(**train))
    said = []
    for start in range(0, len(losses), log_every):
        part = losses[start : start + log_every]
        steps = range(begin + start + 1, begin + start + 1 + len(part))
        ids = [(1000 + number, 2000 + number) for number in steps]
        line = Progressed(
            steps,
            part,
            ids,
            total_steps or len(losses),
            {**TERMS, **(terms or {})},
            {**SOUND, **(health or {})},
            use,
        )
        said += [(steps[-1], message) for message in watched.look(line)]
    return said


def kinds(said: Sequence[tuple[int, str]]) -> list[str]:
    return [message.split(":")[0] for _, message in said]


@pytest.mark.parametrize("log_every", [1, 10, 100])
@pytest.mark.parametrize("noise", [0.02, 0.3])
def test_sound_training_is_silent(log_every: int, noise: float):
    assert hear(falling(3000, noise=noise), log_every=log_every) == []


@pytest.mark.parametrize("log_every", [1, 10, 100])
def test_spike_names_step_loss_and_images(log_every: int):
    losses = falling(400)
    losses[256] = 60.0
    ((at, message),) = hear(losses, log_every=log_every)
    assert at == math.ceil(257 / log_every) * log_every
    assert message.startswith("ALARM loss_spike: step 257 had a loss of 60, expected about 1")
    assert "images: 1257, 2257." in message
    assert "detrkit data check" in message


@pytest.mark.parametrize("log_every", [1, 10, 100])
def test_loss_that_rises_and_stays_up_is_too_high_a_rate(log_every: int):
    losses = falling(500) + [14.0 + 0.1 * (place % 7) for place in range(500)]
    said = hear(losses, log_every=log_every, lr=0.5)
    assert kinds(said) == ["ALARM loss_spike", "ALARM lr_too_high"]
    at, message = said[1]
    assert at == (550 if log_every < 100 else 600)
    assert "Lower train.lr from 0.5" in message
    assert "clip_norm" not in message
    assert "train.clip_norm=0.1" in hear(losses, clip_norm=0)[1][1]


@pytest.mark.parametrize("log_every", [1, 10, 100])
@pytest.mark.parametrize("last", [19.5, 20.0])
def test_loss_that_hardly_falls_is_too_low_a_rate(log_every: int, last: float):
    said = hear(falling(400, 20.0, last, noise=0.01), log_every=log_every, lr=1e-7)
    assert kinds(said) == ["ALARM lr_too_low"]
    assert said[0][0] == 300
    assert "Raise train.lr from 1e-07" in said[0][1]


@pytest.mark.parametrize("log_every", [1, 10, 100])
def test_same_boxes_for_every_image(log_every: int):
    said = hear(falling(400), log_every=log_every, health={"box_spread_images": 0.0004})
    assert kinds(said) == ["ALARM same_boxes"]
    assert said[0][0] == 200
    assert "by 0.0004 of a side" in said[0][1]
    # the same boxes are right where they fit
    assert hear(falling(400), log_every=log_every, health={"box_spread_images": 0.0}, terms={"giou": 0.1}) == []


@pytest.mark.parametrize("log_every", [1, 10, 100])
def test_no_objects_for_long(log_every: int):
    said = hear(falling(400), log_every=log_every, health={"objects_share": 0.0})
    assert kinds(said) == ["ALARM no_objects"]
    assert said[0][0] == 300
    assert "no_object_weight" not in said[0][1]


def test_dead_queries_are_a_remark():
    said = hear(falling(30), use=QueryUse(dead=70, queries=100, images=2000, matches=6000))
    assert kinds(said) == ["REMARK dead_queries"]
    assert "70 of 100 queries" in said[0][1]
    assert "3.0 objects" in said[0][1]
    assert "model.num_queries=30" in said[0][1]
    assert hear(falling(30), use=QueryUse(dead=49, queries=100, images=2000, matches=6000)) == []


@pytest.mark.parametrize("cut", [130, 250, 420, 610])
def test_restored_history_raises_the_same_alarms(cut: int):
    losses = falling(500) + [14.0 + 0.1 * (place % 7) for place in range(500)]
    losses[440] = 70.0
    health = {"objects_share": 0.0, "box_spread_images": 0.0}
    whole = hear(losses, health=health)
    first = Alarms(toy_config())
    said = hear(losses[:cut], watched=first, total_steps=1000, health=health)
    second = Alarms(toy_config())
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    said += hear(losses[cut:], watched=second, begin=cut, total_steps=1000, health=health)
    assert said == whole
    assert len(whole) == 4


@pytest.fixture
def touchy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thresholds by which the toy raises alarms within a few steps."""
    monkeypatch.setattr(step, "PROBE_EVERY", 2)
    for name, value in {
        "BLOCK": 4,
        "SAME_STEPS": 4,
        "EMPTY_STEPS": 4,
        "FEW_OBJECTS": 100,
        "DEAD_SHARE": -1,
    }.items():
        monkeypatch.setattr(alarms, name, value)
    monkeypatch.setattr(alarms, "LEAST_SPREAD", 1.0)
    monkeypatch.setattr(alarms, "POOR_FIT", 0.0)
    monkeypatch.setattr(alarms, "SAY_AGAIN_AFTER", 2)
    monkeypatch.setattr("detrkit.training.health.MATCHES_TO_JUDGE", 1)


def alarm_events(run_dir: Any) -> list[str]:
    return [record["message"] for record in records(run_dir, "event") if record["message"][:2] in ("AL", "RE")]


@pytest.mark.usefixtures("touchy")
def test_alarms_are_events_and_can_be_turned_off(toy, tmp_path, make_config):
    toy.fit(make_config(epochs=4, log_every=3))
    found = {message.split(":")[0] for message in alarm_events(toy.run_dir)}
    assert found >= {"ALARM same_boxes", "REMARK dead_queries"}
    quiet = type(toy)(tmp_path / "quiet")
    quiet.fit(make_config(epochs=4, log_every=3, alarms=False))
    assert alarm_events(quiet.run_dir) == []
    assert "objects_share" in records(quiet.run_dir, "step")[0]


@pytest.mark.usefixtures("touchy")
def test_looking_at_the_boxes_changes_no_weight(tmp_path, toy, make_config):
    toy.fit(make_config(alarms=True))
    other = type(toy)(tmp_path / "other")
    other.fit(make_config(alarms=False))
    for name, value in toy.evaluated[-1].items():
        assert value.equal(other.evaluated[-1][name]), name
