"""One detector on several data sets, in one table."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from detrkit.data.split import Split
from detrkit.detectors.on_split import EvalTarget, bind_target, detect_on_split, notes_of
from detrkit.errors import DataError
from detrkit.evaluation.coco import CocoMetrics, known
from detrkit.evaluation.evaluator import CocoEvaluator, select_classes
from detrkit.evaluation.truth import ground_truth_from_index
from detrkit.robustness.classes import ClassMatch, ClassNames, match_names
from detrkit.robustness.study import tell_part
from detrkit.visual.table import Column, Table, Value

SHOWN = ("AP", "AP50", "AP75", "APs", "APm", "APl")


@dataclasses.dataclass(frozen=True)
class DataResult:
    """A detector on one data set.

    Args:
        name: Name of the data set.
        source: Path of its annotations.
        images: Images in it.
        objects: Objects in it.
        match: Match of its classes and the detector's.
        everything: Numbers over all classes of the data set; one that the detector does not know counts as never
            found. None where no class is shared.
        shared: Numbers over the classes that the detector knows; the same where it knows all.
    """

    name: str
    source: str
    images: int
    objects: int
    match: ClassMatch
    everything: CocoMetrics | None
    shared: CocoMetrics | None

    def to_dict(self) -> dict[str, Any]:
        """Return the content for JSON."""
        match = self.match
        classes = {
            "matched": [{"data": list(pair.data), "model": list(pair.model)} for pair in match.pairs],
            "data_only": list(match.data_only),
            "model_only": list(match.model_only),
            "suggestions": [{"data": theirs, "model": ours} for theirs, ours in match.suggestions],
        }
        return {
            **{name: getattr(self, name) for name in ("name", "source", "images", "objects")},
            "classes": classes,
            "shared_classes": None if self.shared is None else self.shared.to_dict(),
            "all_classes": None if self.everything is None else self.everything.to_dict(),
        }


@dataclasses.dataclass(frozen=True)
class Generalization:
    """A detector on several data sets.

    Args:
        model: Name of the detector.
        results: One for each data set, in the order given.
    """

    model: str
    results: tuple[DataResult, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the content for JSON."""
        return {"model": self.model, "data": [result.to_dict() for result in self.results]}

    def table(self) -> Table:
        """Return the numbers of each data set, for people."""
        columns = [
            Column("data", "name"),
            *(Column(name, "count") for name in ("images", "objects")),
            Column("classes"),
            *(Column(name, "percent", bar=name == "AP") for name in SHOWN),
            Column("AP of all classes", "percent"),
        ]
        rows: list[list[Value]] = []
        for result in self.results:
            classes = f"{len(result.match.matched())} of {len(result.match.classes)}"
            shared = [None if result.shared is None else known(result.shared[name]) for name in SHOWN]
            all_classes = None if result.everything is None else known(result.everything["AP"])
            rows.append([result.name, result.images, result.objects, classes, *shared, all_classes])
        return Table(columns, rows, f"{self.model} on each data set")

    def lines(self) -> list[str]:
        """Return the table as text."""
        return self.table().lines()


def evaluate_on_several(
    subject: EvalTarget,
    data_sets: Mapping[str, Split],
    *,
    class_names: Mapping[str, ClassNames] | None = None,
    batch_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] = lambda _line: None,
) -> Generalization:
    """Evaluate a detector on several data sets, classes matched by name.

    Args:
        subject: Detector.
        data_sets: Splits by the names that the table gets.
        class_names: For each data set, the model's names for its classes where they differ.
        batch_size: Images at once.
        progress: Called with images done and images in all.
        say: Called with messages for people.

    Raises:
        UsageError: ``class_names`` speaks of a class that is not there.
        DataError: No class is shared with any data set, or an image cannot be read.
    """
    # classes of all data sets first, since wrong names should be said at once
    bound = {name: bind_target(subject, split) for name, split in data_sets.items()}
    matches = {
        name: match_names(bound[name].class_map, split.index.class_map, (class_names or {}).get(name))
        for name, split in data_sets.items()
    }
    if not any(len(match.matched()) for match in matches.values()):
        hints = [line for match in matches.values() for line in match.lines()]
        raise DataError("\n".join(["no class of the model is in any of the data sets", *hints]))
    # then one data set after the other
    total, done, results = sum(len(split.index) for split in data_sets.values()), 0, []
    for (name, split), match in zip(data_sets.items(), matches.values(), strict=True):
        for line in (*match.lines(), *notes_of(bound[name])):
            say(f"{name}: {line}")
        counted = None if progress is None else functools.partial(tell_part, progress, done, total)
        everything = shared = None
        if len(match.matched()):
            everything, shared = _evaluate(bound[name], split, match, batch_size, counted)
        else:
            say(f"WARNING: {name}: no class is shared, so that nothing is measured on it")
        done += len(split.index)
        if progress is not None:
            progress(done, total)
        objects = int((~split.index.iscrowd).sum())
        source = str(split.files.annotations)
        results.append(DataResult(name, source, len(split.index), objects, match, everything, shared))
    return Generalization(subject.name, tuple(results))


def _evaluate(
    subject: EvalTarget,
    split: Split,
    match: ClassMatch,
    batch_size: int | None,
    progress: Callable[[int], None] | None,
) -> tuple[CocoMetrics, CocoMetrics]:
    """Return the numbers over all classes of a data set, and over those that the model knows."""
    truth = ground_truth_from_index(match.index(split.index))
    collected = CocoEvaluator(truth, match.classes, subject.max_detections)
    for image_id, found in detect_on_split(subject, split, batch_size=batch_size, progress=progress):
        collected.add(image_id, match.translate(found))
    everything = collected.finish()
    if len(match.matched()) == len(match.classes):
        return everything, everything
    ids = np.array(match.classes.category_ids)[match.matched()]
    kept = np.flatnonzero(np.isin(truth.class_map.category_ids, ids))  # the truth is ordered by category id
    part = CocoEvaluator(select_classes(truth, kept.tolist()), match.classes, subject.max_detections)
    part.add_packed(collected.packed())
    return everything, part.finish()
