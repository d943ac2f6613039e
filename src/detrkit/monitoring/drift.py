"""Test whether pictures are like those of a reference, measure by measure.

Distances are 0 to 1: Kolmogorov and Smirnov's for numbers, total variation for classes. Chance is measured by
permutation of whole pictures, since detections of one picture are alike; Holm's correction is for asking several
questions at once. Shapes: I pictures of both, B bins, P permutations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from detrkit.errors import DataError, listed
from detrkit.files import to_plain
from detrkit.monitoring.observations import Observation
from detrkit.visual.text import markdown_name, markdown_text, printable

LEAST_PICTURES = 30
"""With fewer, only what everybody sees could be told from chance."""
LEVEL = 0.01
LEAST_DISTANCE = 0.1
"""Smaller differences, however sure, change nothing that a model does."""
_PERMUTATIONS = 2000
_BINS = 64

MEASURES: Mapping[str, Callable[[Observation], Sequence[float]]] = {
    "brightness": lambda seen: (seen.brightness,),
    "picture size": lambda seen: (seen.side,),
    "best score": lambda seen: (seen.best,),
    "objects a picture": lambda seen: (len(seen.scores),),
    "scores": lambda seen: seen.scores,
    "box sizes": lambda seen: seen.sizes,
    "classes": lambda seen: seen.class_ids,
}
"""What is compared. The first four are of a picture, the others of its detections."""


@dataclasses.dataclass(frozen=True)
class MeasureDrift:
    """How one measure differs.

    Args:
        name: Name of the measure.
        distance: Distance of the distributions, 0 to 1.
        by_chance: Distance that samples of the reference exceed one time in a hundred.
        p: Probability of such a distance by chance, corrected for the number of measures.
        drifted: Beyond chance, and large enough to matter.
        change: What is different, for people.
    """

    name: str
    distance: float
    by_chance: float
    p: float
    drifted: bool
    change: str


@dataclasses.dataclass(frozen=True)
class Drift:
    """How samples differ from a reference.

    Args:
        data: What people call the reference.
        reference: Number of its pictures.
        samples: Number of pictures that were sampled.
        measures: Each measure that both have values of.
        notes: What people must know besides.
    """

    data: str
    reference: int
    samples: int
    measures: tuple[MeasureDrift, ...]
    notes: tuple[str, ...]

    @property
    def drifted(self) -> tuple[str, ...]:
        """Names of the measures that drifted."""
        return tuple(measure.name for measure in self.measures if measure.drifted)

    @property
    def verdict(self) -> str:
        """What it comes to."""
        if self.drifted:
            return f"drift: {', '.join(self.drifted)}"
        unseen = max(measure.by_chance for measure in self.measures)
        return f"no drift is seen; distances under {max(unseen, LEAST_DISTANCE):.2f} would not be"

    def lines(self) -> list[str]:
        """Return measures, notes and verdict for people."""
        lines = [
            f"{'DRIFT' if one.drifted else 'ok':6}{one.name}: {one.change}; distance {one.distance:.2f} "
            f"({one.by_chance:.2f} by chance), p {one.p:.3f}"
            for one in self.measures
        ]
        about = f"{self.samples:,} samples against {self.reference:,} pictures of {self.data}"
        return [
            printable(line) for line in (about, *lines, *(f"note: {note}" for note in self.notes), self.verdict)
        ]

    def markdown(self) -> str:
        """Return the same as a page."""
        rows = [
            f"| {'**drift**' if one.drifted else 'ok'} | {one.name} | {markdown_text(one.change)} "
            f"| {one.distance:.2f} | {one.by_chance:.2f} | {one.p:.3f} |"
            for one in self.measures
        ]
        about = f"{self.samples:,} samples against {self.reference:,} pictures of {markdown_name(self.data)}."
        head = ["| | measure | change | distance | by chance | p |", "|---|---|---|---|---|---|"]
        notes = [f"- {markdown_text(note)}" for note in self.notes]
        return "\n".join([f"### {self.verdict}", "", about, "", *head, *rows, "", *notes, ""])

    def to_dict(self) -> dict[str, Any]:
        """Return the content for JSON."""
        return {"drifted": self.drifted, "verdict": self.verdict, **to_plain(self)}


def find_drift(
    reference: Sequence[Observation],
    samples: Sequence[Observation],
    *,
    data: str,
    class_names: Sequence[str],
    notes: Sequence[str] = (),
) -> Drift:
    """Compare samples with a reference.

    Args:
        reference: Pictures of the data that the model was made for.
        samples: Pictures that were sent to it.
        data: What people call the reference.
        class_names: The model's classes.
        notes: What people must know besides.

    Raises:
        DataError: There are too few pictures to tell.
    """
    for count, what in ((len(reference), f"pictures of {data}"), (len(samples), "samples")):
        if count < LEAST_PICTURES:
            raise DataError(
                f"{count} {what} are too few to tell drift from chance; give at least {LEAST_PICTURES}"
            )
    pictures, is_sample = [*reference, *samples], np.arange(len(reference) + len(samples)) >= len(reference)
    # the same permutations for every measure; the first is what was seen
    random = np.random.default_rng(0)
    groups = np.stack([is_sample, *(random.permutation(is_sample) for _ in range(_PERMUTATIONS))])
    found: list[tuple[str, np.ndarray, str]] = []
    empty: list[str] = []
    for name, of in MEASURES.items():
        values = [np.asarray(of(picture), dtype=np.float64) for picture in pictures]
        parts = [
            np.concatenate([one for one, is_one in zip(values, is_sample, strict=True) if is_one == side])
            for side in (False, True)
        ]
        if not all(map(len, parts)):
            empty.append(name)
            continue
        distances = _distances(_histograms(values, name == "classes", len(class_names)), groups, name == "classes")
        change = (
            _class_change(parts[0], parts[1], class_names) if name == "classes" else _change(parts[0], parts[1])
        )
        found.append((name, distances, change))
    # Holm's correction
    raw = np.array([(distances >= distances[0] - 1e-9).mean() for _, distances, _ in found])
    corrected, order = np.empty(len(raw)), np.argsort(raw)
    corrected[order] = np.maximum.accumulate(raw[order] * np.arange(len(raw), 0, -1)).clip(max=1)
    measures = [
        MeasureDrift(
            name,
            float(distances[0]),
            float(np.quantile(distances, 1 - LEVEL)),
            float(p),
            bool(p <= LEVEL and distances[0] >= LEAST_DISTANCE),
            change,
        )
        for (name, distances, change), p in zip(found, corrected, strict=True)
    ]
    if empty:
        notes = [*notes, f"nothing was found in one of both, so that these are not compared: {', '.join(empty)}"]
    return Drift(data, len(reference), len(samples), tuple(measures), tuple(notes))


def _histograms(values: Sequence[np.ndarray], are_classes: bool, classes: int) -> np.ndarray:
    """Count each picture's values, float32 ``[I, B]``; bins hold about as many of all values each."""
    everything = np.concatenate(values)
    if are_classes:
        edges = np.arange(classes)
    else:
        edges = np.unique(np.quantile(everything, np.linspace(0, 1, _BINS, endpoint=False), method="lower"))
    bins = np.searchsorted(edges, everything, side="right") - 1
    rows = np.repeat(np.arange(len(values)), [len(one) for one in values])
    counts = np.zeros((len(values), len(edges)), dtype=np.float32)
    np.add.at(counts, (rows, bins), 1)
    return counts


def _distances(counts: np.ndarray, groups: np.ndarray, are_classes: bool) -> np.ndarray:
    """Return the distance of both groups, float32 ``[P]``, of counts ``[I, B]`` and groups ``[P, I]``."""
    sums = groups.astype(np.float32) @ counts
    others = counts.sum(axis=0) - sums
    # a permutation may leave one group without detections, which is as far as can be
    shares = [part / np.maximum(part.sum(axis=1, keepdims=True), 1) for part in (sums, others)]
    difference = shares[0] - shares[1]
    found: np.ndarray = (
        np.abs(difference).sum(axis=1) / 2 if are_classes else np.abs(difference.cumsum(axis=1)).max(axis=1)
    )
    return found


def _change(before: np.ndarray, after: np.ndarray) -> str:
    low, middle, high = np.quantile(after, (0.1, 0.5, 0.9))
    old = np.quantile(before, (0.1, 0.5, 0.9))
    return f"median {middle:.3g} ({low:.3g} to {high:.3g}), was {old[1]:.3g} ({old[0]:.3g} to {old[2]:.3g})"


def _class_change(before: np.ndarray, after: np.ndarray, names: Sequence[str]) -> str:
    """Name the classes whose shares differ most."""
    old, new = (np.bincount(part.astype(np.int64), minlength=len(names)) / len(part) for part in (before, after))
    rows = np.argsort(-np.abs(new - old), kind="stable")[:3]
    return listed([f"{names[row]} {100 * new[row]:.0f} %, was {100 * old[row]:.0f} %" for row in rows])
