"""The classes on which detectors can be compared fairly."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np

from detrkit.classes import match_classes
from detrkit.detectors.on_split import EvalTarget
from detrkit.errors import DataError, listed
from detrkit.evaluation.evaluator import select_classes
from detrkit.evaluation.truth import CocoTruth
from detrkit.visual.text import shortened

Which = Literal["shared", "all"]


@dataclasses.dataclass(frozen=True)
class ComparedClasses:
    """The classes that a comparison is made on.

    Args:
        truth: The annotations of these classes alone.
        left_out: Classes of the data that some detector does not know, and which are not measured therefore.
        unknown: For each detector, classes that are measured and that it does not know.
    """

    truth: CocoTruth
    left_out: tuple[str, ...]
    unknown: tuple[tuple[str, ...], ...]

    def lines(self, names: Sequence[str]) -> list[str]:
        """List what people must know of it; nothing where all know everything."""
        lines = []
        if self.left_out:
            count, classes = len(self.truth.class_map), _some(self.left_out)
            lines.append(
                f"compared on the {count} classes that all of them know; {len(self.left_out)} of the data set are "
                f"left out: {classes}"
            )
        lines += [
            f"{name} does not know {len(unknown)} of the {len(self.truth.class_map)} classes ({_some(unknown)}); "
            "their objects count as missed"
            for name, unknown in zip(names, self.unknown, strict=True)
            if unknown
        ]
        return lines


def choose_classes(subjects: Sequence[EvalTarget], truth: CocoTruth, which: Which) -> ComparedClasses:
    """Restrict the annotations to what all detectors know, or keep them all.

    Args:
        subjects: The detectors, bound to the split.
        truth: All annotations.
        which: shared: classes that all detectors and the data set know; all: those of the data set.

    Raises:
        DataError: A detector knows none of the data set's classes, or they share none.
    """
    count = len(truth.class_map)
    known = np.zeros((len(subjects), count), dtype=bool)
    for row, subject in enumerate(subjects):
        try:
            matched = match_classes(subject.class_map, truth.class_map)
        except DataError as error:
            raise DataError(f"{subject.name}: {error}") from error
        known[row, matched[matched >= 0]] = True
    kept = np.flatnonzero(known.all(axis=0)) if which == "shared" else np.arange(count)
    names = truth.class_map.names
    if count and not len(kept):
        each = "; ".join(
            f"{subject.name} knows {_some([names[i] for i in np.flatnonzero(row)])}"
            for subject, row in zip(subjects, known, strict=True)
        )
        raise DataError(
            f"there is no class that all of them know ({each}); compare detectors of the same classes, or on all "
            "classes of the data set (--classes all)"
        )
    left_out = tuple(names[i] for i in np.setdiff1d(np.arange(count), kept))
    unknown = tuple(tuple(names[i] for i in kept if not row[i]) for row in known)
    return ComparedClasses(select_classes(truth, kept.tolist()), left_out, unknown)


def _some(names: Sequence[str]) -> str:
    return listed([shortened(name) for name in names], 5)
