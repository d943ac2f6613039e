"""Thresholds chosen for a precision, a recall or the best F1, and what they give elsewhere.

Shapes: D detections, C classes, K cuts of a ranking.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from detrkit.classes import ClassMap, match_classes
from detrkit.errors import DataError, UsageError
from detrkit.evaluation.calibration import calibrate, fit_temperature
from detrkit.evaluation.coco import known
from detrkit.evaluation.evaluator import CocoEvaluator
from detrkit.evaluation.matching import Matches
from detrkit.evaluation.score_curves import Cuts, class_cuts, iou_row, together_cuts
from detrkit.threshold_file import ClassThreshold, ScoreScale, Thresholds

LEAST_OBJECTS = 10
"""Of a class for a threshold of its own: with fewer, one detection more or less moves it far."""


@dataclasses.dataclass(frozen=True)
class Wish:
    """The criterion of thresholds.

    Args:
        criterion: ``f1``: the best F1. ``precision``: at least that precision, and as much recall as it leaves.
            ``recall``: at least that recall, and as much precision as it leaves.
        value: The precision or recall, above 0 and up to 1; None for ``f1``.

    Raises:
        UsageError: The value is missing, too much, or out of range.
    """

    criterion: Literal["f1", "precision", "recall"] = "f1"
    value: float | None = None

    def __post_init__(self) -> None:
        if self.criterion == "f1":
            if self.value is not None:
                raise UsageError(f"the best F1 takes no value, got {self.value}")
        elif self.value is None or not 0 < self.value <= 1:
            raise UsageError(f"the {self.criterion} wished is {self.value}, expected more than 0 and up to 1")

    def choose(self, cuts: Cuts) -> tuple[int, bool]:
        """Return the row of the cut, and True if it gives what is wished; otherwise what comes nearest. K > 0."""
        if self.value is None:
            return int(np.argmax(cuts.f1)), True
        wished, other = (cuts.precision, cuts.recall)[:: 1 if self.criterion == "precision" else -1]
        enough = wished >= min(self.value, wished.max())
        best = enough & (other == other[enough].max())
        # Of equals, for precision all have found the same, and the highest score gives the better precision.
        return int(np.flatnonzero(best)[0]), bool(wished.max() >= self.value)


@dataclasses.dataclass(frozen=True)
class ThresholdCheck:
    """Detections and objects at thresholds, by the model's class id.

    Args:
        objects: Objects to be found, int64 ``[C]``.
        taken: Detections, int64 ``[C]``.
        right: Correct ones among them, int64 ``[C]``.
        ece: Calibration error of the model's own scores; ``UNDEFINED`` without detections.
        ece_calibrated: Of those that are shown.
    """

    objects: np.ndarray
    taken: np.ndarray
    right: np.ndarray
    ece: float
    ece_calibrated: float

    def precision(self, class_id: int | None = None) -> float | None:
        """Return precision of a class or, without one, of all together; None where nothing is taken."""
        return _share(self.right, self.taken, class_id)

    def recall(self, class_id: int | None = None) -> float | None:
        """Return recall of a class or, without one, of all together; None without objects."""
        return _share(self.right, self.objects, class_id)

    def f1(self, class_id: int | None = None) -> float | None:
        """Return F1 of a class or, without one, of all together; None without objects."""
        no_objects = self.recall(class_id) is None
        return None if no_objects else _share(2 * self.right, self.taken + self.objects, class_id)

    def __add__(self, other: ThresholdCheck) -> ThresholdCheck:
        """Add both, as if of one split; the calibration errors are averaged."""
        objects, taken, right, *errors = map(np.add, vars(self).values(), vars(other).values())
        return ThresholdCheck(objects, taken, right, *(float(error) / 2 for error in errors))

    def to_dict(self, thresholds: Thresholds) -> dict[str, Any]:
        """Return the content for JSON."""

        def rates(class_id: int | None) -> dict[str, Any]:
            return {name: getattr(self, name)(class_id) for name in ("precision", "recall", "f1")}

        return {
            **rates(None),
            "ece": known(self.ece),
            "ece_calibrated": known(self.ece_calibrated),
            "classes": [
                {"name": entry.name, **rates(class_id)} for class_id, entry in enumerate(thresholds.classes)
            ],
        }


def thresholds_for(
    matches: Matches,
    class_map: ClassMap,
    wish: Wish | None = None,
    *,
    calibration: bool = False,
    least_objects: int = LEAST_OBJECTS,
    iou: float = 0.5,
    data: str = "",
    split: str = "",
) -> Thresholds:
    """Choose a threshold for each class of a model.

    A class with few objects, or none found, gets the threshold of all classes together.

    Args:
        matches: Matches on a split that the model was not trained on.
        class_map: Classes of the model.
        wish: Criterion; the best F1 if not given.
        calibration: True to turn scores into probabilities first; thresholds are then probabilities too.
        least_objects: Objects of a class for a threshold of its own.
        iou: Least IoU of a correct detection, one of ``IOU_THRESHOLDS``.
        data: Name of the data set, to be kept with the thresholds.
        split: Name of the split.

    Raises:
        DataError: There are no objects or no detections to choose from, or a score is not 0 to 1.
        UsageError: ``iou`` is none of those.
    """
    wish = wish or Wish()
    row = iou_row(iou)
    scores = matches.found.scores
    if not matches.measured.any() or matches.ignored[row].all():
        what = "detections" if matches.measured.any() else "annotated objects"
        raise DataError(f"thresholds cannot be chosen: the split has no {what}")
    if not ((scores >= 0) & (scores <= 1)).all():
        raise DataError(f"scores reach from {scores.min():g} to {scores.max():g}; thresholds need scores 0 to 1")
    scale = fit_temperature(matches, iou) if calibration else ScoreScale()
    scaled = scale(scores)
    # one threshold of all classes together, for those that get none of their own
    together = together_cuts(matches, row, scaled)
    place, reached = wish.choose(together)
    default = float(together.thresholds[place])
    # and one for each class of the model; -1, a class that the data lacks, has no cuts
    nothing = np.zeros(0)
    empty = Cuts(nothing, nothing, nothing, nothing, objects=0)
    by_class = [*class_cuts(matches, row, scaled), empty]
    pairs = zip(class_map.names, class_map.category_ids, strict=True)
    entries = []
    for pair, data_class in zip(pairs, match_classes(class_map, matches.truth.class_map).tolist(), strict=True):
        cuts = by_class[data_class]
        own = bool(cuts.objects >= max(least_objects, 1) and cuts.right.any())
        entry = ClassThreshold(*pair, default, cuts.objects, own=own, reached=reached)
        entries.append(_expected(entry, cuts, wish))
    chosen = (tuple(entries), default, wish.criterion, wish.value)
    number, objects = len(matches.rows), int(matches.measured.sum())
    return Thresholds(*chosen, iou=iou, scale=scale, data=data, split=split, images=number, objects=objects)


def check_thresholds(matches: Matches, class_map: ClassMap, thresholds: Thresholds) -> ThresholdCheck:
    """Count what thresholds give on other images than those they were chosen on.

    Args:
        matches: Matches on these images.
        class_map: Classes of the model, whose class ids the thresholds have.
        thresholds: Thresholds to be checked.

    Raises:
        DataError: A score is not 0 to 1.
    """
    row = iou_row(thresholds.iou)
    data_classes = match_classes(class_map, matches.truth.class_map)
    classes = len(matches.truth.class_map)
    known = np.flatnonzero(data_classes >= 0)
    least = np.full(classes, thresholds.default)
    least[data_classes[known]] = np.array([entry.score for entry in thresholds.classes])[known]
    class_ids = matches.found.class_ids
    taken = (thresholds.calibrated(matches.found.scores) >= least[class_ids]) & ~matches.ignored[row]
    right = taken & matches.correct[row]

    def by_model_class(counts: np.ndarray) -> np.ndarray:
        return np.where(data_classes >= 0, counts[data_classes], 0)

    kept = (np.bincount(class_ids[mask], minlength=classes) for mask in (taken, right))
    objects, shown, found = map(by_model_class, (matches.objects_by_class(), *kept))
    errors = [calibrate(matches, iou=thresholds.iou, scale=scale).ece for scale in (None, thresholds.scale)]
    return ThresholdCheck(objects, shown, found, *errors)


def cross_check(
    evaluator: CocoEvaluator, choose: Callable[[Matches], Thresholds], class_map: ClassMap, seed: int = 0
) -> ThresholdCheck:
    """Count what thresholds give on images they were not chosen on, where there is only one split.

    Thresholds of each half of the images are checked on the other half.

    Args:
        evaluator: Evaluator with the detections of the split.
        choose: :func:`thresholds_for` as the thresholds in question were chosen.
        class_map: Classes of the model.
        seed: Seed of the halves.

    Raises:
        DataError: A half has no objects or no detections.
    """
    image_ids = np.random.default_rng(seed).permutation(evaluator.truth.image_ids).tolist()
    if len(image_ids) < 2:
        raise DataError("thresholds cannot be checked on a split of one image")
    middle = len(image_ids) // 2
    one, other = evaluator.matches(image_ids[:middle]), evaluator.matches(image_ids[middle:])
    return check_thresholds(other, class_map, choose(one)) + check_thresholds(one, class_map, choose(other))


def _expected(entry: ClassThreshold, cuts: Cuts, wish: Wish) -> ClassThreshold:
    """Return the threshold of a class where it is to have its own, and what is expected of it."""
    if entry.own:
        place, reached = wish.choose(cuts)
        entry = dataclasses.replace(entry, score=float(cuts.thresholds[place]), reached=reached)
    else:
        place = cuts.place(entry.score)
    taken = place >= 0
    return dataclasses.replace(
        entry,
        precision=float(cuts.precision[place]) if taken else None,
        recall=(float(cuts.recall[place]) if taken else 0.0) if cuts.objects else None,
    )


def _share(part: np.ndarray, whole: np.ndarray, class_id: int | None) -> float | None:
    of, out_of = (column.sum() if class_id is None else column[class_id] for column in (part, whole))
    return float(of / out_of) if out_of else None
