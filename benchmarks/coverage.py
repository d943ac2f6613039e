"""How often intervals of AP hold the true value: ``python -m benchmarks.coverage``.

A detector is let loose on made-up sets of images. The true value is its AP on ``ENDLESS`` images of the same kind;
their own excess and standard error are below a tenth of a standard error of the sets.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor

import numpy as np
from scipy.special import ndtr, ndtri

from detrkit.evaluation.bootstrap import LEAST_IMAGES, Resampled, difference_ends, interval_ends, resample
from detrkit.evaluation.weighted_ap import MEASURES, WeightedAP, mean_over_classes
from tests.support.simulation import Scene, Skill, simulate

ENDLESS = 150_000
CONFIDENCE = 0.95
OURS = "detrkit"
BINS = ((2, 2), (3, 4), (5, 9), (10, 19), (20, 49), (50, 10_000))
"""Images that hold a class."""

_OF_MODELS = ("values", "samples", "halved", "unsteady")

Ends = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Setting:
    """Sets of images and the two detectors that are measured on them."""

    name: str
    scene: Scene
    skills: tuple[Skill, Skill]
    images: int


ALIKE = (Skill(), Skill(found=0.82, spread=1.2, background=0.4))
UNLIKE = (
    Skill(noise=0.09, found=0.6, background=0.6),
    Skill(noise=0.03, found=0.93, background=0.2, confused=0.03),
)
EVEN, SKEWED, RARE = (1.0,) * 5, (2.0, 1.0, 0.5, 0.2, 0.1), (1.5, 0.5, 0.1, 0.05, 0.02)
SETTINGS = (
    Setting("5 even classes", Scene(EVEN), ALIKE, 100),
    Setting("5 even classes", Scene(EVEN), UNLIKE, 300),
    Setting("5 skewed classes", Scene(SKEWED), ALIKE, 100),
    Setting("5 skewed classes", Scene(SKEWED), UNLIKE, 100),
    Setting("5 skewed classes", Scene(SKEWED), ALIKE, 300),
    Setting("5 skewed classes", Scene(SKEWED), UNLIKE, 1000),
    Setting("5 classes, 3 rare", Scene(RARE), ALIKE, 300),
    Setting("20 skewed classes", Scene(tuple(np.geomspace(1, 0.05, 20))), ALIKE, 300),
    Setting("one class", Scene((3.0,)), UNLIKE, 300),
    Setting("80 skewed classes", Scene(tuple(np.geomspace(1, 0.02, 80)), clustering=0.3), ALIKE, 300),
)


@dataclasses.dataclass(frozen=True)
class Coverage:
    """What came of one setting.

    Args:
        models: Method to whether each interval held the true value, ``[sets, 2 models, 3, C + 1]``.
        difference: The same of the differences, ``[sets, 3, C + 1]``.
        images: That hold each class, and any, ``[sets, C + 1]``.
        excess: How far a set's AP lies above the true one, in its standard deviations, ``[2 models, 3]``.
    """

    models: dict[str, np.ndarray]
    difference: dict[str, np.ndarray]
    images: np.ndarray
    excess: np.ndarray


def percentile(resampled: Resampled) -> Ends:
    """Efron and Tibshirani, ch. 13."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.nanquantile(resampled.samples, [tail, 1 - tail], axis=-1)
    return low, high


def basic(resampled: Resampled) -> Ends:
    """Davison and Hinkley, 1997, ch. 5.2: the percentile interval mirrored."""
    low, high = percentile(resampled)
    return 2 * resampled.values - high, 2 * resampled.values - low


def normal(resampled: Resampled) -> Ends:
    """Value and 1.96 standard deviations."""
    reach = ndtri(0.5 + CONFIDENCE / 2) * np.nanstd(resampled.samples, axis=-1)
    return resampled.values - reach, resampled.values + reach


def bias_corrected(resampled: Resampled) -> Ends:
    """Efron and Tibshirani, ch. 14.3, without acceleration (BC), which changes little here."""
    samples, values = resampled.samples, resampled.values[..., None]
    count = np.isfinite(samples).sum(-1)
    below = ((samples < values).sum(-1) + 0.5 * (samples == values).sum(-1)) / count
    shift = ndtri(np.clip(below, 0.5 / count, 1 - 0.5 / count))
    reach = ndtri(0.5 + CONFIDENCE / 2)
    ordered = np.sort(samples, axis=-1)  # undefined ones go last
    ends = []
    for side in (-reach, reach):
        place = np.nan_to_num(ndtr(2 * shift + side) * (count - 1)).round().astype(int)
        ends.append(np.take_along_axis(ordered, place[..., None], -1)[..., 0])
    return ends[0], ends[1]


def ours(resampled: Resampled) -> Ends:
    return interval_ends(resampled, CONFIDENCE)


def our_difference(both: Resampled) -> Ends:
    return difference_ends(both.values, both.samples, both.images, CONFIDENCE)


METHODS: dict[str, Callable[[Resampled], Ends]] = {
    "percentile": percentile,
    "basic": basic,
    "normal": normal,
    "BC": bias_corrected,
    OURS: ours,
}
DIFFERENCE_METHODS = {"percentile": percentile, "basic": basic, OURS: our_difference}


def cover(
    setting: Setting, sets: int, resamples: int, jobs: int = 1, endless: int = ENDLESS, first_seed: int = 0
) -> Coverage:
    """Simulate a setting's sets, each with its own seed, and compare intervals with the true values."""
    truth = true_values(setting, endless)
    one = functools.partial(_one_set, setting, truth, resamples)
    seeds = range(first_seed, first_seed + sets)
    if jobs > 1:
        with ProcessPoolExecutor(jobs) as pool:
            results = list(pool.map(one, seeds, chunksize=10))
    else:
        results = [one(seed) for seed in seeds]
    values = np.array([result[3] for result in results])
    overall = values[..., -1]
    return Coverage(
        models={name: np.array([result[0][name] for result in results]) for name in METHODS},
        difference={name: np.array([result[1][name] for result in results]) for name in DIFFERENCE_METHODS},
        images=np.array([result[2] for result in results]),
        excess=(overall.mean(0) - truth[..., -1]) / overall.std(0),
    )


def true_values(setting: Setting, images: int) -> np.ndarray:
    """Of both detectors, ``[2, 3, C + 1]``."""
    models = simulate(setting.scene, list(setting.skills), images, seed=2**31)
    values = np.stack([WeightedAP(matches).measure(np.ones((images, 1))) for matches in models])
    return np.concatenate([values, mean_over_classes(values)[:, :, None]], axis=2)[..., 0]


def _one_set(
    setting: Setting, truth: np.ndarray, resamples: int, seed: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Whether the intervals of one set hold, images by class, and the values."""
    models = simulate(setting.scene, list(setting.skills), setting.images, seed)
    first, second = resample(models, resamples, seed)
    both = Resampled(*(getattr(second, name) - getattr(first, name) for name in _OF_MODELS), first.images)
    with np.errstate(all="ignore"):
        single = {
            name: np.stack(
                [_holds(method(model), true) for model, true in zip((first, second), truth, strict=True)]
            )
            for name, method in METHODS.items()
        }
        paired = {name: _holds(method(both), truth[1] - truth[0]) for name, method in DIFFERENCE_METHODS.items()}
    return single, paired, first.images, np.stack([first.values, second.values])


def _holds(ends: Ends, true: np.ndarray) -> np.ndarray:
    """1 or 0; NaN where there is no interval."""
    low, high = ends
    return np.where(np.isfinite(low), (low <= true) & (true <= high), np.nan)


def table(settings: Sequence[Setting], coverages: Sequence[Coverage]) -> str:
    """Markdown: coverage in percent of AP, AP50, AP75, by setting and method; then of classes by their images."""
    names = [*METHODS, *(f"difference: {name}" for name in DIFFERENCE_METHODS)]
    lines = ["| setting | images | |" + "".join(f" {name} |" for name in names), "|---" * (len(names) + 3) + "|"]
    for setting, coverage in zip(settings, coverages, strict=True):
        for row, measure in enumerate(MEASURES):
            cells = [100 * coverage.models[name][:, :, row, -1].mean() for name in METHODS]
            cells += [100 * coverage.difference[name][:, row, -1].mean() for name in DIFFERENCE_METHODS]
            lines.append(
                f"| {setting.name} | {setting.images} | {measure} |" + "".join(f" {cell:.1f} |" for cell in cells)
            )
    lines += ["", "| images of a class | cases |" + "".join(f" {name} |" for name in names)]
    lines.append("|---" * (len(names) + 2) + "|")
    for least, most in BINS:
        cells, cases = _of_bin(coverages, least, most)
        if not cases:
            continue
        label = f"{least} to {most}" if most < 1000 else f"{least} or more"
        note = " (no interval is given)" if most < LEAST_IMAGES else ""
        lines.append(f"| {label}{note} | {cases} |" + "".join(f" {cell:.1f} |" for cell in cells))
    excess = np.concatenate([coverage.excess.ravel() for coverage in coverages])
    lines += [
        "",
        f"A set's AP lies {excess.min():.2f} to {excess.max():.2f} of its standard deviations above the true one.",
    ]
    return "\n".join(lines)


def _of_bin(coverages: Sequence[Coverage], least: int, most: int) -> tuple[list[float], int]:
    """Coverage of AP and AP50 of classes in so many images, of each method, and the number of intervals."""
    parts: dict[str, list[np.ndarray]] = {}
    for coverage in coverages:
        here = (coverage.images[:, :-1] >= least) & (coverage.images[:, :-1] <= most)
        for name, held in coverage.models.items():
            parts.setdefault(name, []).append(np.moveaxis(held[:, :, :2, :-1], 3, 1)[here].ravel())
        for name, held in coverage.difference.items():
            parts.setdefault(f"difference: {name}", []).append(np.moveaxis(held[:, :2, :-1], 2, 1)[here].ravel())
    columns = [np.concatenate(part) for part in parts.values()]
    cases = len(columns[0])
    return [100 * float(np.nanmean(column)) for column in columns] if cases else [], cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", type=int, default=1000, help="simulated sets of each setting")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--settings", type=int, nargs="*", help="numbers of the settings, all if not given")
    parser.add_argument("--first-seed", type=int, default=0, help="of the sets; the others follow")
    arguments = parser.parse_args()
    chosen = [SETTINGS[number] for number in arguments.settings or range(len(SETTINGS))]
    coverages = [
        cover(setting, arguments.sets, arguments.resamples, arguments.jobs, first_seed=arguments.first_seed)
        for setting in chosen
    ]
    error = 100 * np.sqrt(CONFIDENCE * (1 - CONFIDENCE) / arguments.sets)
    print(f"Share of {CONFIDENCE:.0%} intervals that hold the true value, in percent (+- {error:.1f}): ")
    print(f"{arguments.sets:,} sets of each setting, {arguments.resamples:,} resamples.\n")
    print(table(chosen, coverages))


if __name__ == "__main__":
    main()
