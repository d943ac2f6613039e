"""How a bundle is run is measured, and never at the price of a digit."""

from __future__ import annotations

import pytest

from detrkit.runtimes.predictor import Predictor
from detrkit.serving import measure
from detrkit.serving.settings import ServeSettings


@pytest.mark.parametrize("changed", ["batches", "streams", "nothing"])
def test_what_changes_a_digit_is_not_used(bundle, changed, monkeypatch):
    detect = Predictor.detect_together

    def shifted(self, images, sizes_hw):
        found = detect(self, images, sizes_hw)
        if (changed == "batches" and len(images) > 1) or (changed == "streams" and self.engine.streams > 1):
            found = [one._replace(scores=one.scores * 1.0000001) for one in found]
        return found

    monkeypatch.setattr(Predictor, "detect_together", shifted)
    # all that is tried is said to be faster than what came before it
    rates = iter(range(10, 10_000, 10))
    monkeypatch.setattr(measure, "_rate", lambda *_arguments: float(next(rates)) ** 2)
    found = measure.choose_running(bundle, ServeSettings(threads=2))
    expected = {"batches": (2, 1), "streams": (1, 8), "nothing": (2, 8)}
    assert (found.predictor.engine.streams, found.batch_size) == expected[changed]


def test_what_is_asked_for_is_taken(bundle):
    found = measure.choose_running(bundle, ServeSettings(threads=2, streams=2, batch_size=3))
    assert (found.predictor.engine.streams, found.predictor.engine.threads, found.batch_size) == (2, 2, 3)


def test_a_slow_model_is_not_tried_in_batches(bundle, monkeypatch):
    sizes = []
    monkeypatch.setattr(measure, "_rate", lambda predictor, size, probe: sizes.append(size) or 1.0)
    assert measure.choose_running(bundle, ServeSettings(threads=1)).batch_size == 1
    assert sizes == [1]
