"""What goes with failure beyond chance.

Objects of one image fail together, so that counting them as independent would find causes everywhere. Every test
and interval here takes images as the units: the score test and the variance of a ratio with clusters (Liang and
Zeger, Biometrika 1986; Rao, Scott, Skinner, Statistica Sinica 1998). What is claimed holds for all tests together
(Holm).

Shapes: n objects or detections, B bins of a property, I images.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from scipy.special import chdtrc  # scipy.stats takes a second to import

from detrkit.evaluation.failures.properties import Property

Target = Literal["missed objects", "wrong detections"]

LEVEL = 0.05
"""Chance that anything at all is claimed where nothing is."""
LEAST_DIFFERENCE = 0.05
"""Between the worst bin and the others; less is of no use to anybody, however sure."""

_LEAST_COUNT = 10
_LEAST_IMAGES = 5


@dataclasses.dataclass(frozen=True)
class Bin:
    """Objects or detections alike in one property.

    Args:
        label: Such as "under 23 px".
        count: How many.
        rate: Share that failed.
        low: Lower end of Wilson's 95 % interval.
        high: Its upper end.
    """

    label: str
    count: int
    rate: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Cause:
    """A property that goes with failure; it need not be what makes things fail.

    Args:
        name: Of the property.
        target: What fails.
        bins: By value.
        worst: Which of them fails most.
        difference: Rate of the worst bin less that of all others.
        low: Lower end of its 95 % interval.
        high: Its upper end.
        p_value: Of the test of all bins, corrected for the number of tests.
        information: Share of the uncertainty about what fails that the property takes away, beyond chance.
        explained_by: A stronger cause; among objects alike in that one, this one shows nothing.
        sampled: Known for a sample of the images only.
    """

    name: str
    target: Target
    bins: tuple[Bin, ...]
    worst: int
    difference: float
    low: float
    high: float
    p_value: float
    information: float
    explained_by: str | None = None
    sampled: bool = False

    def sentence(self) -> str:
        """What was found, with figures."""
        worst = self.bins[self.worst]
        things = "objects" if self.target == "missed objects" else "detections"
        fail = "missed" if self.target == "missed objects" else "wrong"
        others = worst.rate - self.difference
        name = f"{self.name[:1].upper()}{self.name[1:]}"
        return (
            f"{name}, {worst.label}: {100 * worst.rate:.0f} % of {worst.count:,} {things} are {fail}, of the "
            f"others {100 * others:.0f} % ({100 * self.difference:.1f} points more, 95 % interval "
            f"{100 * self.low:.1f} to {100 * self.high:.1f})"
        )


@dataclasses.dataclass(frozen=True)
class Question:
    """What fails, and what it may have to do with.

    Args:
        target: What fails.
        failed: bool ``[n]``.
        image_rows: int64 ``[n]``.
        properties: Of the same ``n``.
    """

    target: Target
    failed: np.ndarray
    image_rows: np.ndarray
    properties: Sequence[Property]


@dataclasses.dataclass(frozen=True)
class _Tested:
    question: Question
    property: Property
    bins: np.ndarray  # -1: unknown, or in a bin too small to be tested
    p_value: float


def find_causes(questions: Sequence[Question]) -> list[Cause]:
    """Properties that go with failure beyond chance and by ``LEAST_DIFFERENCE``, most telling first.

    Causes that only go along with a stronger one come last and name it.
    """
    tested = [
        _Tested(question, entry, bins, _test(bins, question.failed, question.image_rows))
        for question in questions
        for entry in question.properties
        if (bins := _usable_bins(entry, question.image_rows)).max(initial=-1) >= 0
    ]
    adjusted = holm([entry.p_value for entry in tested])
    found = [
        (_cause(entry, p_value), entry) for entry, p_value in zip(tested, adjusted, strict=True) if p_value < LEVEL
    ]
    found = [pair for pair in found if pair[0].difference >= LEAST_DIFFERENCE and pair[0].low > 0]
    found.sort(key=lambda pair: -pair[0].information)
    level = LEVEL / max(len(tested), 1)
    kept: list[tuple[Cause, _Tested]] = []
    explained: list[Cause] = []
    for cause, entry in found:
        stronger = next((other for other, rival in kept if _explains(rival, entry, level)), None)
        if stronger is None:
            kept.append((cause, entry))
        else:
            explained.append(dataclasses.replace(cause, explained_by=stronger.name))
    return [cause for cause, _ in kept] + explained


def holm(p_values: Sequence[float]) -> np.ndarray:
    """P-values that hold for all tests together (Holm, Scandinavian Journal of Statistics 1979)."""
    values = np.array(p_values, dtype=np.float64)
    order = np.argsort(values)
    adjusted = np.empty_like(values)
    factors = len(values) - np.arange(len(values))
    adjusted[order] = np.minimum(np.maximum.accumulate(values[order] * factors), 1)
    return adjusted


def wilson(failures: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (JASA 1927), which is right for few and for extreme shares too."""
    z = 1.959964
    share = failures / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, centre - half), min(1.0, centre + half)


def _usable_bins(entry: Property, image_rows: np.ndarray) -> np.ndarray:
    """Bins with enough objects from enough images, the others as -1; no bin at all where fewer than two remain."""
    bins = entry.bins
    known = bins >= 0
    rows = int(image_rows.max(initial=0)) + 1
    counts = np.bincount(bins[known] * rows + image_rows[known], minlength=len(entry.labels) * rows)
    counts = counts.reshape(-1, rows)
    large = (counts.sum(axis=1) >= _LEAST_COUNT) & ((counts > 0).sum(axis=1) >= _LEAST_IMAGES)
    if large.sum() < 2:
        return np.full_like(bins, -1)
    usable: np.ndarray = np.where((bins >= 0) & large[bins], bins, -1)
    return usable


def _test(bins: np.ndarray, failed: np.ndarray, image_rows: np.ndarray, strata: np.ndarray | None = None) -> float:
    """P-value of the score test that failure has nothing to do with the bins, within strata if there are any.

    The greater of two: with images as units, and with objects as units. The first is too bold where a small bin
    happens to have no failure at all, the second where objects of an image fail together.
    """
    known = bins >= 0 if strata is None else (bins >= 0) & (strata >= 0)
    bins, failed = bins[known], failed[known].astype(np.float64)
    images = image_rows[known]
    strata = np.zeros_like(bins) if strata is None else strata[known]
    totals = np.maximum(np.bincount(strata), 1)
    rate = (np.bincount(strata, failed) / totals)[strata]
    residual = failed - rate
    inner, columns = [], []
    for bin_number in np.flatnonzero(np.bincount(bins))[1:]:  # the first follows from the others
        inside = (bins == bin_number).astype(np.float64)
        inside -= (np.bincount(strata, inside) / totals)[strata]
        inner.append(inside)
        columns.append(np.bincount(images, inside * residual))
    if not columns:
        return 1.0
    by_image, by_object = np.stack(columns, axis=1), np.stack(inner, axis=1)
    score = by_image.sum(axis=0)
    return max(
        _score_test(score, by_image.T @ by_image),
        _score_test(score, (by_object * (rate * (1 - rate))[:, None]).T @ by_object),
    )


def _score_test(score: np.ndarray, covariance: np.ndarray) -> float:
    rank = int(np.linalg.matrix_rank(covariance, hermitian=True))
    if rank == 0:
        return 1.0
    statistic = score @ np.linalg.pinv(covariance, hermitian=True) @ score
    return float(chdtrc(rank, statistic))


def _explains(rival: _Tested, entry: _Tested, level: float) -> bool:
    """Whether an association vanishes among objects that are alike in the rival's property."""
    if rival.question is not entry.question:
        return False
    question = entry.question
    return _test(entry.bins, question.failed, question.image_rows, strata=rival.bins) > level


def _cause(entry: _Tested, p_value: float) -> Cause:
    question = entry.question
    known = entry.bins >= 0
    bins, failed, images = entry.bins[known], question.failed[known], question.image_rows[known]
    counts, failures = np.bincount(bins), np.bincount(bins, failed)
    present = np.flatnonzero(counts)
    counts, failures = counts[present], failures[present]
    worst = int(np.argmax(failures / counts))
    difference, half = _difference(bins == present[worst], failed, images)
    rows = tuple(
        Bin(entry.property.labels[int(label)], int(count), float(fails / count), *wilson(int(fails), int(count)))
        for label, count, fails in zip(present, counts, failures, strict=True)
    )
    return Cause(
        name=entry.property.name,
        target=question.target,
        bins=rows,
        worst=worst,
        difference=difference,
        low=difference - half,
        high=difference + half,
        p_value=p_value,
        information=_information(counts, failures),
        sampled=entry.property.sampled,
    )


def _difference(inside: np.ndarray, failed: np.ndarray, image_rows: np.ndarray) -> tuple[float, float]:
    """Rate inside a bin less that outside, and half the width of its 95 % interval with images as units."""
    rate_in, rate_out = float(failed[inside].mean()), float(failed[~inside].mean())
    count_in = int(inside.sum())
    influence = np.where(inside, (failed - rate_in) / count_in, -(failed - rate_out) / (len(inside) - count_in))
    by_image = np.bincount(image_rows, influence)
    images = int(np.count_nonzero(np.bincount(image_rows)))
    correction = images / max(images - 1, 1)
    return rate_in - rate_out, 1.959964 * math.sqrt(correction * float((by_image**2).sum()))


def _information(counts: np.ndarray, failures: np.ndarray) -> float:
    """Mutual information of bin and failure over the entropy of failure, less its expectation under chance."""
    total = counts.sum()
    whole = float(_entropy(failures.sum() / total))
    within = float((counts * _entropy(failures / counts)).sum() / total)
    chance = (len(counts) - 1) / (2 * total)  # Miller (1955)
    return max(0.0, (whole - within - chance) / whole) if whole > 0 else 0.0


def _entropy(share: np.ndarray | float) -> np.ndarray:
    """Of a coin, in nats."""
    share = np.clip(share, 1e-12, 1 - 1e-12)
    entropy: np.ndarray = -(share * np.log(share) + (1 - share) * np.log(1 - share))
    return entropy
