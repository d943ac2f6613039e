from __future__ import annotations

import json
import math

import torch

from detrkit.preflight.overfit_test import OverfitTest, Trial
from detrkit.preflight.report import PreflightReport
from detrkit.preflight.training_questions import check_overfit_test
from detrkit.types import Batch, GroundTruth


def trial(lr: float, *losses: float, apart: float = 0.1) -> Trial:
    terms = {"class": (losses[0], losses[-1])}
    return Trial(lr, losses, terms, tuple(0.0 * loss for loss in losses), (0.1, apart))


def overfit(main: Trial, *slower: Trial) -> OverfitTest:
    truth = GroundTruth(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), (0,))
    batch = Batch(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.zeros(1, 8, 8, dtype=torch.bool), truth, ())
    return OverfitTest(main, slower, (0.1, 0.1), batch)


def names(main: Trial, *slower: Trial, pretrained: bool = False, preset_lr: float | None = None) -> set[str]:
    return {item.name for item in check_overfit_test(overfit(main, *slower), preset_lr, pretrained)}


def test_loss_that_ends_at_once_is_a_rate_too_high_where_slower_ones_go_on():
    lost = trial(1.0, 20.0, math.nan)
    slow = trial(0.1, *[20.0 - step for step in range(15)]), trial(0.01, *[20.0] * 15)
    assert names(lost, *slow) == {"learning_rate_too_high"}
    assert names(trial(1.0, math.nan), trial(0.1, math.nan), trial(0.01, math.nan)) == {"not_finite"}


def test_slower_rates_that_get_further_tell_of_a_rate_too_high():
    high = trial(1e-1, *[20.0] * 15)
    assert names(high, trial(1e-2, *[20.0 - step for step in range(15)]), trial(1e-3, *[20.0] * 15)) == {
        "learning_rate_too_high"
    }


def test_trained_model_may_lose_a_little_less_at_first():
    main = trial(1e-3, *[2.0 - 0.01 * step for step in range(15)])
    slower = trial(1e-4, *[2.0 - 0.05 * step for step in range(15)]), trial(1e-5, *[2.0] * 15)
    assert "learning_rate_too_high" in names(main, *slower)
    assert "learning_rate_too_high" not in names(main, *slower, pretrained=True)


def test_images_that_fall_together_and_rates_far_above_the_preset_are_named():
    same = trial(1e-2, *[20.0 - 0.5 * step for step in range(15)], apart=0.0)
    slower = trial(1e-3, *[20.0] * 15), trial(1e-4, *[20.0] * 15)
    assert names(same, *slower) == {"learning_rate_too_high"}
    alive = trial(1e-2, *[20.0 - 0.5 * step for step in range(15)])
    assert "learning_rate_too_high" not in names(alive, *slower, preset_lr=1e-3)
    assert names(alive, *slower, preset_lr=1e-4) == {"learning_rate_too_high"}


def test_figures_of_a_single_image_that_are_not_finite_are_null_in_the_file():
    rates = (trial(lr, *[20.0, 10.0] * 8, apart=math.nan) for lr in (1e-3, 1e-4, 1e-5))
    found = check_overfit_test(overfit(*rates), None, False)
    written = json.dumps(PreflightReport(tuple(found)).to_dict(), allow_nan=False)
    assert '"over_images": null' in written
