from __future__ import annotations

import math

import pytest
import torch

from detrkit.training.window import StepWindow


def add(window: StepWindow, step: int, loss: float, norm: float = 1.0) -> None:
    window.add(step, {"loss": torch.tensor(loss), "grad_norm": torch.tensor(norm)}, (step, step + 1), images=2)
    window.add_time(0.5, 0.1)


def test_means_over_finite_values_and_rates():
    window = StepWindow()
    add(window, 1, 1.0, math.inf)
    add(window, 2, 4.0, 3.0)
    means = window.means()
    assert means.values == {"loss": 2.5, "grad_norm": 3.0}
    assert means.images_per_s == pytest.approx(4.0)
    assert means.data_wait == pytest.approx(0.2)
    assert window.steps == [1, 2]
    window.clear()
    assert len(window) == 0
    assert math.isnan(window.means().values["loss"])


def test_nothing_is_read_or_reduced_before_it_is_asked_for():
    calls = []
    window = StepWindow(lambda rows: calls.append(rows.shape) or rows)
    add(window, 1, 1.0)
    add(window, 2, 2.0)
    assert calls == []
    window.rows()
    add(window, 3, 3.0)
    assert window.rows()[:, 0].tolist() == [1.0, 2.0, 3.0]
    assert calls == [(2, 2), (1, 2)]
