"""Intervals of AP by bootstrap: by resampling whole images, of one model and of the difference between two.

Images are resampled, not objects, since what is in one image hangs together (B. Efron, R. Tibshirani, "An
Introduction to the Bootstrap", 1993, ch. 8). Both models of a pair see the same resamples, so what is hard for
both cancels (ch. 16). The matching is done once; see :mod:`detrkit.evaluation.weighted_ap`.

AP of a finite set is too high on average: interpolation takes the greatest of noisy precisions. The excess falls
like the square root of the number of images or little faster, as the standard error does, so no set is large
enough to forget it, and a resample, which repeats images, has more of it. Plain percentile intervals therefore
hold the true value too seldom, and so do the usual remedies (basic, BC, BCa; ``python -m benchmarks.coverage``
prints a table). What is done instead, each step by measurement:

- The spread is the standard deviation over the resamples (ch. 6).
- The excess is extrapolated from random halves of the set (Richardson's extrapolation; Quenouille's jackknife,
  1956, is the case of an excess that falls like 1 / n): where it falls like n to the power of -1/2 to -2/3, it
  is 1.7 to 2.4 times what the halves' mean AP lies above the whole's. Two errors of it are added to the variance:
  that of the factor, and that of the halves' mean, which goes with how much the splits differ.
- Student's t with the images that hold the class, less one, as degrees of freedom; for the mean over classes
  Satterthwaite's (1946).
- The interval is taken on the logit scale, so that it stays between 0 and 1 and leans to the middle.
- In a difference of two models on the same images the excess cancels: value and t times the spread.

hotcoco's ``compare`` (1.3) resamples too, but only pairs, takes about ten times as long, and counts an image that
is drawn twice once, so that its standard errors are a quarter too small; a test shows it.

Shapes: I images, S resamples, C classes; axis of C + 1: the classes and, last, their mean.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Generic, TypeVar

import numpy as np
from scipy.special import stdtrit

from detrkit.errors import DataError, UsageError
from detrkit.evaluation.matching import Matches
from detrkit.evaluation.weighted_ap import MEASURES, WeightedAP, mean_over_classes

LEAST_IMAGES = 5
"""With objects (of a class), for an interval; with fewer, resampling tells nothing of use."""

LEAST_RESAMPLES = 10
RESAMPLES = 1000
"""Resamples if not asked for otherwise; the ends of an interval are then known to some 3 % of its width."""
_CHUNK = 32  # resamples at a time: their sums by rank then stay in the processor's cache
_SPLITS = 32  # into halves
_EXCESS = 2.0  # times what a half's AP lies above the whole's
_EXCESS_ERROR = 0.5  # of that factor
_HALVES_ERROR = 1.5  # times the standard deviation over the splits

_Entry = TypeVar("_Entry")


@dataclasses.dataclass(frozen=True)
class Interval:
    """A measured value, 0 to 1, and the range that holds the true one with the chosen confidence.

    The true value is that of the same detector on endlessly many images of the same kind. It tends to lie below
    the measured one, so the interval reaches further down than up.
    """

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Difference:
    """The difference of a value of two models.

    Args:
        value: Second less first, -1 to 1.
        low: Lower end of the interval.
        high: Upper end of the interval.
        probability: Share of resamples in which the second is better; equal counts half.
    """

    value: float
    low: float
    high: float
    probability: float


@dataclasses.dataclass(frozen=True)
class Resampling(Generic[_Entry]):
    """The intervals of one model's AP, or of the difference of two.

    Args:
        values: Intervals of AP, AP50 and AP75; empty where there are too few images with objects.
        per_class: Intervals of AP and AP50 by class id; None where too few images hold the class.
        confidence: Share of such intervals that hold the true value.
        resamples: Number of resamples.
        seed: Seed of the random numbers; the same seed gives the same intervals.
    """

    values: Mapping[str, _Entry]
    per_class: tuple[Mapping[str, _Entry] | None, ...]
    confidence: float
    resamples: int
    seed: int


Intervals = Resampling[Interval]
Differences = Resampling[Difference]


@dataclasses.dataclass(frozen=True)
class Resampled:
    """Values on the data and on resamples of it.

    Args:
        values: Values on the images as they are, ``[3, C + 1]``; NaN where undefined.
        samples: Values on each resample, ``[3, C + 1, S]``; NaN for a class without objects in it.
        halved: Mean over halves of the images, ``[3, C + 1]``.
        unsteady: Standard deviation over the splits into halves, of both halves' mean, ``[3, C + 1]``.
        images: Images with objects of each class and of any, int64 ``[C + 1]``.
    """

    values: np.ndarray
    samples: np.ndarray
    halved: np.ndarray
    unsteady: np.ndarray
    images: np.ndarray


def bootstrap(
    matches: Matches,
    resamples: int = RESAMPLES,
    *,
    confidence: float = 0.95,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Intervals:
    """Compute confidence intervals of AP, AP50 and AP75, and of each class's AP and AP50.

    Args:
        matches: Matches of one model on all images that are measured.
        resamples: 1,000 give the ends of the interval to some 3 % of its width.
        confidence: Above 0 and below 1.
        seed: Seed of the random numbers.
        progress: Called with the number of resamples done.

    Raises:
        UsageError: Too few resamples, or no such confidence.
    """
    _check(resamples, confidence)
    (resampled,) = resample([matches], resamples, seed, progress)
    columns = (resampled.values, *interval_ends(resampled, confidence))
    return Intervals(*_entries(Interval, columns, resampled.images), confidence, resamples, seed)


def paired_bootstrap(
    a: Matches, b: Matches, resamples: int = RESAMPLES, *, confidence: float = 0.95, seed: int = 0
) -> Differences:
    """Compute how much better b is than a on the same images, with intervals.

    Args:
        a: Matches of the first model.
        b: Matches of the second, on the same images.
        resamples: Number of resamples.
        confidence: Above 0 and below 1.
        seed: Seed of the random numbers.

    Raises:
        DataError: The two were not measured on the same images and objects.
        UsageError: Too few resamples, or no such confidence.
    """
    _check(resamples, confidence)
    _check_same(a, b)
    first, second = resample([a, b], resamples, seed)
    values, samples = second.values - first.values, second.samples - first.samples
    low, high = difference_ends(values, samples, first.images, confidence)
    columns = (values, low, high, _mean((np.sign(samples) + 1) / 2))
    return Differences(*_entries(Difference, columns, first.images), confidence, resamples, seed)


def resample(
    models: Sequence[Matches], resamples: int, seed: int, progress: Callable[[int], None] | None = None
) -> list[Resampled]:
    """Measure each model on the same resamples of the same images."""
    weighted = [WeightedAP(matches) for matches in models]
    images = weighted[0].images
    random = np.random.default_rng([seed, 0])
    # every model on the same resamples
    samples: list[list[np.ndarray]] = [[] for _ in models]
    done = 0
    for weights in image_weights(images, resamples, random) if images else ():
        for own, model in zip(samples, weighted, strict=True):
            own.append(_with_mean(model.measure(weights)))
        done += weights.shape[1]
        if progress is not None:
            progress(done)
    # and on the same halves
    halves = _halves(images, np.random.default_rng([seed, 1]))
    results = []
    for own, model, matches in zip(samples, weighted, models, strict=True):
        counts = np.append(model.images_by_class(), len(np.unique(matches.truth.image_rows[matches.measured])))
        values = _with_mean(model.measure(np.ones((images, 1))))[..., 0]
        resampled = np.concatenate([np.zeros((len(MEASURES), model.classes + 1, 0)), *own], axis=2)
        results.append(Resampled(values, resampled, *_halved(model, halves), counts))
    return results


def interval_ends(resampled: Resampled, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """Return lower and upper ends for all values of one model, ``[3, C + 1]`` each; NaN where undefined."""
    value = resampled.values
    spread = _deviation(resampled.samples)
    excess = _EXCESS * (resampled.halved - value)
    errors = (spread, _EXCESS_ERROR * (resampled.halved - value), _HALVES_ERROR * resampled.unsteady)
    reach = np.sqrt(sum(error**2 for error in errors))
    # Within its own error of 0 or 1 the logit scale means nothing; there the centre is held.
    edge = np.minimum(reach, 0.5)
    centre = np.clip(value - excess, edge, 1 - edge)
    surely = _quantiles(spread, resampled.images, confidence)
    slope = centre * (1 - centre)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        middle = np.log(centre / (1 - centre))
        low, high = (1 / (1 + np.exp(-middle + side * surely * reach / slope)) for side in (1, -1))
    # Every resample gives the same value: nothing or everything was found. Clopper and Pearson's (1934) bound with
    # the images as trials, rather than a certainty that no sample can give.
    beyond = 1 - ((1 - confidence) / 2) ** (1 / np.maximum(resampled.images, 1))
    same = reach == 0
    low = np.where(same, np.where(value > 0.5, value - beyond, value), low)
    high = np.where(same, np.where(value > 0.5, value, value + beyond), high)
    return np.clip(np.minimum(low, value), 0, 1), np.clip(np.maximum(high, value), 0, 1)


def difference_ends(
    values: np.ndarray, samples: np.ndarray, images: np.ndarray, confidence: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return lower and upper ends for all differences of two models, ``[3, C + 1]`` each; NaN where undefined.

    Args:
        values: Differences, ``[3, C + 1]``.
        samples: Differences of each resample, ``[3, C + 1, S]``.
        images: As in :class:`Resampled`.
        confidence: Above 0 and below 1.
    """
    spread = _deviation(samples)
    reach = _quantiles(spread, images, confidence) * spread
    return np.clip(values - reach, -1, 1), np.clip(values + reach, -1, 1)


def _quantiles(spread: np.ndarray, images: np.ndarray, confidence: float) -> np.ndarray:
    """Return how many standard deviations an interval reaches on each side, ``[3, C + 1]``."""
    freedom = np.broadcast_to(np.maximum(images - 1.0, 1.0), spread.shape).copy()
    variance = np.nan_to_num(spread[:, :-1]) ** 2
    shares = (variance**2 / freedom[:, :-1]).sum(1)
    # Satterthwaite: as sure as the classes that the mean's variance comes from.
    np.divide(variance.sum(1) ** 2, shares, out=freedom[:, -1], where=shares > 0)
    quantiles: np.ndarray = stdtrit(freedom, 0.5 + confidence / 2)
    return quantiles


def image_weights(images: int, resamples: int, random: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield how often each image is drawn, float64 ``[I, <= _CHUNK]`` at a time."""
    for start in range(0, resamples, _CHUNK):
        count = min(_CHUNK, resamples - start)
        drawn = random.integers(0, images, (count, images)) * count + np.arange(count)[:, None]
        yield np.bincount(drawn.ravel(), minlength=images * count).reshape(images, count).astype(np.float64)


def _halves(images: int, random: np.random.Generator) -> np.ndarray:
    """Return random halves of the images and what each leaves, as weights, float64 ``[I, 2 * _SPLITS]``."""
    places = random.permuted(np.tile(np.arange(images)[:, None], _SPLITS), axis=0)
    first = places * 2 < images
    return np.concatenate([first, ~first], axis=1).astype(np.float64)


def _halved(model: WeightedAP, halves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation over splits of what both halves have on average, ``[3, C + 1]`` each."""
    parts = [model.measure(part) for part in np.array_split(halves, 2, axis=1)]
    splits = _mean(np.stack(parts, axis=-1))
    mean = _mean(splits)
    # A class that a split's halves lack would change what the mean over classes is of.
    filled = _with_mean(np.where(np.isnan(splits), mean[..., None], splits))
    return _mean(filled), _deviation(filled)


def _with_mean(values: np.ndarray) -> np.ndarray:
    """Return values of classes ``[3, C, S]`` with their mean behind them, ``[3, C + 1, S]``."""
    return np.concatenate([values, mean_over_classes(values)[:, None]], axis=1)


def _mean(samples: np.ndarray) -> np.ndarray:
    """Average over the last axis what is defined."""
    return mean_over_classes(np.swapaxes(samples, -1, -2)) if samples.size else np.full(samples.shape[:-1], np.nan)


def _deviation(samples: np.ndarray) -> np.ndarray:
    """Return standard deviation over the last axis, of what is defined."""
    deviation: np.ndarray = np.sqrt(_mean((samples - _mean(samples)[..., None]) ** 2))
    return deviation


def _entries(
    kind: Callable[..., _Entry], columns: Sequence[np.ndarray], images: np.ndarray
) -> tuple[dict[str, _Entry], tuple[dict[str, _Entry] | None, ...]]:
    """Build the entries of the mean over classes, and of each class, from their fields ``[3, C + 1]``."""
    entries = []
    for column, enough in enumerate((images >= LEAST_IMAGES).tolist()):
        fields = zip(*(array[:, column].tolist() for array in columns), strict=True)
        entries.append(dict(zip(MEASURES, (kind(*own) for own in fields), strict=True)) if enough else {})
    per_class = tuple({name: entry[name] for name in ("AP", "AP50")} if entry else None for entry in entries[:-1])
    return entries[-1], per_class


def _check(resamples: int, confidence: float) -> None:
    if resamples < LEAST_RESAMPLES:
        raise UsageError(f"resamples is {resamples}, expected {LEAST_RESAMPLES} or more (1,000 is usual)")
    if not 0 < confidence < 1:
        raise UsageError(f"confidence is {confidence}, expected a share between 0 and 1 such as 0.95")


def _check_same(a: Matches, b: Matches) -> None:
    same = (
        np.array_equal(a.truth.image_ids[a.rows], b.truth.image_ids[b.rows])
        and np.array_equal(a.truth.class_ids[a.measured], b.truth.class_ids[b.measured])
        and a.truth.class_map == b.truth.class_map
    )
    if not same:
        raise DataError(
            f"the two were measured on different images or objects ({len(a.rows)} and {len(b.rows)} images, "
            f"{int(a.measured.sum())} and {int(b.measured.sum())} objects); evaluate both on the same data set"
        )
