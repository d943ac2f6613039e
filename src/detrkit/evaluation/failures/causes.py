"""Properties that go with failure: rate ratios of the bins of each property, with bootstrap intervals.

Objects of one image fail together, so images are resampled, not objects. The intervals hold for all bins of all
properties together: they reach as far as the largest of all deviations does in 95 % of the resamples (max-t;
P. Westfall, S. Young, "Resampling-Based Multiple Testing", 1993).

Shapes: n objects or detections, B bins of a property, S strata, I images, K resamples; column 0 of ``1 + K`` is
the data as it is.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Literal

import numpy as np
from scipy import sparse

from detrkit.evaluation.bootstrap import image_weights
from detrkit.evaluation.failures.properties import Property
from detrkit.evaluation.weighted_ap import count_pairs

Target = Literal["missed objects", "wrong detections"]

_LEAST_COUNT, _LEAST_IMAGES = 10, 5  # in a bin, and of how many images


@dataclasses.dataclass(frozen=True)
class Bin:
    """Objects or detections alike in one property: label such as "under 23 px", number, share that failed."""

    label: str
    count: int
    rate: float


@dataclasses.dataclass(frozen=True)
class Cause:
    """A property that goes with failure; it need not be what makes things fail.

    Args:
        name: Name of the property.
        target: Kind of failure.
        bins: Bins by value.
        worst: Place of the bin that surely fails most.
        others: Share of failures outside that bin.
        ratio: Rate of that bin over the others'.
        low: Lower end of the ratio's interval, above 1.
        high: Upper end.
        explained_by: A stronger cause; among objects alike in that one, this one shows nothing.
        sampled: Known for a sample of the images only.
    """

    name: str
    target: Target
    bins: tuple[Bin, ...]
    worst: int
    others: float
    ratio: float
    low: float
    high: float
    explained_by: str | None = None
    sampled: bool = False

    def sentence(self) -> str:
        """Return what was found, with figures."""
        worst = self.bins[self.worst]
        things, fail = ("objects", "missed") if self.target == "missed objects" else ("detections", "wrong")
        name = f"{self.name[:1].upper()}{self.name[1:]}"
        return (
            f"{name}, {worst.label}: {100 * worst.rate:.0f} % of {worst.count:,} {things} are {fail}, of the "
            f"others {100 * self.others:.0f} % ({self.ratio:.1f} times as often, 95 % interval "
            f"{self.low:.1f} to {self.high:.1f})"
        )


@dataclasses.dataclass(frozen=True)
class Question:
    """A kind of failure, and the properties that it may have to do with.

    Args:
        target: Kind of failure.
        failed: bool ``[n]``.
        image_rows: int64 ``[n]``.
        properties: Of the same ``n``.
    """

    target: Target
    failed: np.ndarray
    image_rows: np.ndarray
    properties: Sequence[Property]


@dataclasses.dataclass(frozen=True)
class _Candidate:
    """A property of a question, its usable bins ``[n]`` (-1: none), their log ratios ``[B, 1 + K]`` and errors."""

    question: Question
    property: Property
    bins: np.ndarray
    ratios: np.ndarray
    errors: np.ndarray


CONFIDENCE = 0.95
"""Share of data sets in which all intervals hold the true ratio: where there is nothing, nothing is claimed."""

LEAST_DIFFERENCE = 0.05
"""Between the rate of the worst bin and the others'; less is of no use to anybody, however sure."""

RESAMPLES = 500


def find_causes(questions: Sequence[Question], seed: int = 0) -> list[Cause]:
    """Find properties with a bin that fails more often than the others, beyond chance and by ``LEAST_DIFFERENCE``.

    Args:
        questions: Kinds of failure with their properties.
        seed: Seed of the resamples.

    Returns:
        Causes with the greatest lower end of the ratio first; those that only go along with a stronger one last.
    """
    # properties with two usable bins or more, of failures that happen to some and not to all
    usable = [
        (question, entry, bins)
        for question in questions
        if question.failed.any() and not question.failed.all()
        for entry in question.properties
        if (bins := _usable_bins(entry, question.image_rows)).max(initial=-1) >= 0
    ]
    # log rate ratios of every bin, and how far they deviate at most in 95 % of the resamples
    sums = _resampled([_cells(question, bins, np.zeros_like(bins)) for question, _, bins in usable], seed)
    candidates = [_Candidate(*parts, *_log_ratios(own)) for parts, own in zip(usable, sums, strict=True)]
    largest = [
        (np.abs(entry.ratios[:, 1:] - entry.ratios[:, :1]) / entry.errors).max(axis=0) for entry in candidates
    ]
    reach = float(np.quantile(np.max(largest, axis=0), CONFIDENCE)) if largest else 0.0
    # the surest first; then ask of each whether a stronger one explains it
    found = [(cause, entry) for entry in candidates if (cause := _cause(entry, reach)) is not None]
    found.sort(key=lambda pair: -pair[0].low)
    kept: list[tuple[Cause, _Candidate]] = []
    explained: list[Cause] = []
    for cause, entry in found:
        stronger = next((other for other, rival in kept if _explains(rival, entry, cause, reach, seed)), None)
        if stronger is None:
            kept.append((cause, entry))
        else:
            explained.append(dataclasses.replace(cause, explained_by=stronger.name))
    return [cause for cause, _ in kept] + explained


def _usable_bins(entry: Property, image_rows: np.ndarray) -> np.ndarray:
    """Return bins with enough objects of enough images, others as -1; none where fewer than two remain."""
    bins = entry.bins
    known = bins >= 0
    rows = int(image_rows.max(initial=0)) + 1
    counts = np.bincount(bins[known] * rows + image_rows[known], minlength=len(entry.labels) * rows)
    counts = counts.reshape(-1, rows)
    large = (counts.sum(axis=1) >= _LEAST_COUNT) & ((counts > 0).sum(axis=1) >= _LEAST_IMAGES)
    if large.sum() < 2:
        return np.full_like(bins, -1)
    numbers = np.where(large, np.cumsum(large) - 1, -1)
    usable: np.ndarray = np.where(known, numbers[bins], -1)
    return usable


def _cells(
    question: Question, bins: np.ndarray, strata: np.ndarray
) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """Return cell and image of all that has a bin and a stratum, and the shape ``(S, B, 2)`` of the cells."""
    known = (bins >= 0) & (strata >= 0)
    shape = (int(strata.max(initial=0)) + 1, int(bins.max(initial=0)) + 1, 2)
    cells = np.ravel_multi_index((strata[known], bins[known], question.failed[known].astype(int)), shape)
    return cells, question.image_rows[known], shape


def _resampled(tables: Sequence[tuple[np.ndarray, np.ndarray, tuple[int, ...]]], seed: int) -> list[np.ndarray]:
    """Count the cells of each table, on the data and on resamples of the images, ``[S, B, 2, 1 + K]`` each."""
    if not tables:
        return []
    images = np.unique(np.concatenate([rows for _, rows, _ in tables]))
    pairs = [
        count_pairs(cells, np.searchsorted(images, rows), (int(np.prod(shape)), len(images)))
        for cells, rows, shape in tables
    ]
    counts = sparse.vstack(pairs, format="csr")  # type: ignore[no-untyped-call]
    weights = image_weights(len(images), RESAMPLES, np.random.default_rng(seed))
    as_it_is = np.ones((len(images), 1))
    sums = np.concatenate([counts @ part for part in itertools.chain([as_it_is], weights)], axis=1)
    parts = np.split(sums, np.cumsum([np.prod(shape) for _, _, shape in tables])[:-1])
    return [part.reshape(*shape, -1) for part, (_, _, shape) in zip(parts, tables, strict=True)]


def _log_ratios(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return log rate ratios of each bin to the others, ``[B, 1 + K]``, and their standard errors, ``[B, 1]``.

    Of several strata Mantel and Haenszel's (1959) ratio. One failure more is dealt out by chance, so that a bin
    without any has a ratio too. The error is the spread over the resamples, but no less than that of independent
    objects (Haldane's halves added), since resampling cannot see what few failures leave open.
    """
    failures, boxes = counts[:, :, 1], counts.sum(axis=2)
    all_failures, all_boxes = failures.sum(axis=1, keepdims=True), np.maximum(boxes.sum(axis=1, keepdims=True), 1)
    inside = (failures * (all_boxes - boxes) / all_boxes).sum(axis=0)
    outside = ((all_failures - failures) * boxes / all_boxes).sum(axis=0)
    number, failed = boxes[:, :, :1].sum(axis=0), failures[:, :, :1].sum(axis=0)
    share = number / number.sum()
    chance = share * (1 - share)
    ratios = np.log((inside + chance) / (outside + chance))
    independent = sum(
        1 / (part + 0.5) - 1 / (whole + 0.5)
        for part, whole in ((failed, number), (failed.sum() - failed, number.sum() - number))
    )
    return ratios, np.maximum(ratios[:, 1:].std(axis=1, keepdims=True), np.sqrt(independent))


def _cause(entry: _Candidate, reach: float) -> Cause | None:
    """Return a property as a cause, by the bin whose ratio has the greatest lower end; None where it is none."""
    half = reach * entry.errors[:, 0]
    worst = int(np.argmax(entry.ratios[:, 0] - half))
    # its interval, and the plain rates of all bins
    ratio, low, high = np.exp(entry.ratios[worst, 0] + half[worst] * np.array([0, -1, 1])).tolist()
    known = entry.bins >= 0
    bins, failed = entry.bins[known], entry.question.failed[known]
    counts, failures = np.bincount(bins), np.bincount(bins, failed)
    rates = failures / counts
    others = (failures.sum() - failures[worst]) / (counts.sum() - counts[worst])
    if low <= 1 or rates[worst] - others < LEAST_DIFFERENCE:
        return None
    first = [int(entry.property.bins[entry.bins == number][0]) for number in range(len(counts))]
    labels = [entry.property.labels[label] for label in first]
    told = tuple(map(Bin, labels, counts.tolist(), rates.tolist()))
    name, target, sampled = entry.property.name, entry.question.target, entry.property.sampled
    return Cause(name, target, told, worst, float(others), ratio, low, high, sampled=sampled)


def _explains(rival: _Candidate, entry: _Candidate, cause: Cause, reach: float, seed: int) -> bool:
    """Return True if, among objects alike in the rival's property, the ratio is not surely above 1."""
    if rival.question is not entry.question:
        return False
    (sums,) = _resampled([_cells(entry.question, entry.bins, rival.bins)], seed)
    ratios, errors = _log_ratios(sums)
    return float(ratios[cause.worst, 0] - reach * errors[cause.worst, 0]) <= 0
