"""Differences in words."""

from __future__ import annotations

import pytest

from detrkit.comparison.result import difference_in_words
from detrkit.evaluation.bootstrap import Difference


@pytest.mark.parametrize(
    ("difference", "words"),
    [
        (Difference(0.018, 0.009, 0.026, 1.0), "B is better than A by 1.8 AP, 95 % interval 0.9 to 2.6"),
        (Difference(-0.018, -0.026, -0.009, 0.0), "B is worse than A by 1.8 AP, 95 % interval 0.9 to 2.6"),
        (
            Difference(0.003, -0.005, 0.011, 0.8),
            "no difference beyond chance between B and A: +0.3 AP, 95 % interval -0.5 to +1.1",
        ),
        (
            Difference(0.0, -0.0004, 0.0126, 0.5),
            "no difference beyond chance between B and A: 0.0 AP, 95 % interval 0.0 to +1.3",
        ),
    ],
)
def test_who_is_better_is_said_with_the_interval(difference: Difference, words: str):
    assert difference_in_words("A", "B", difference, 0.95) == words
