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
from detrkit.evaluation.coco import UNDEFINED, CocoEvaluator
from detrkit.evaluation.matching import Matches
from detrkit.evaluation.score_curves import Cuts, class_cuts, iou_row, together_cuts
from detrkit.threshold_file import ClassThreshold, ScoreScale, Thresholds

LEAST_OBJECTS = 10
"""Of a class for a threshold of its own: with fewer, one detection more or less moves it far."""


@dataclasses.dataclass(frozen=True)
class Wish:
    """What thresholds are to give.

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
        """Row of the cut, and whether it gives what is wished; what comes nearest otherwise. K > 0."""
        if self.value is None:
            return int(np.argmax(cuts.f1)), True
        wished, other = (cuts.precision, cuts.recall)[:: 1 if self.criterion == "precision" else -1]
        enough = wished >= min(self.value, wished.max())
        best = enough & (other == other[enough].max())
        # Of equals, for precision all have found the same, and the highest score gives the better precision.
        return int(np.flatnonzero(best)[0]), bool(wished.max() >= self.value)


@dataclasses.dataclass(frozen=True)
class ThresholdCheck:
    """What thresholds give, class by class, by the model's class id.

    Args:
        objects: To be found, int64 ``[C]``.
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
        """Of a class or, without one, of all together; None where nothing is taken."""
        return _share(self.right, self.taken, class_id)

    def recall(self, class_id: int | None = None) -> float | None:
        """Of a class or, without one, of all together; None without objects."""
        return _share(self.right, self.objects, class_id)

    def f1(self, class_id: int | None = None) -> float | None:
        """Of a class or, without one, of all together; None without objects."""
        objects = self.objects.sum() if class_id is None else self.objects[class_id]
        return _share(2 * self.right, self.taken + self.objects, class_id) if objects else None

    def __add__(self, other: ThresholdCheck) -> ThresholdCheck:
        """Both together, as if of one split; the calibration errors are averaged."""
        return ThresholdCheck(
            self.objects + other.objects,
            self.taken + other.taken,
            self.right + other.right,
            (self.ece + other.ece) / 2,
            (self.ece_calibrated + other.ece_calibrated) / 2,
        )

    def to_dict(self, thresholds: Thresholds) -> dict[str, Any]:
        """Ready for JSON."""
        classes: list[tuple[int | None, dict[str, Any]]] = [
            (class_id, {"name": entry.name}) for class_id, entry in enumerate(thresholds.classes)
        ]
        found = [
            {**head, "precision": self.precision(row), "recall": self.recall(row), "f1": self.f1(row)}
            for row, head in [(None, {}), *classes]
        ]
        ece = {"ece": self.ece, "ece_calibrated": self.ece_calibrated}
        return {
            **found[0],
            **{name: None if value == UNDEFINED else value for name, value in ece.items()},
            "classes": found[1:],
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
        matches: Of a split that the model was not trained on.
        class_map: The model's.
        wish: What they are to give; the best F1 if not given.
        calibration: Turn scores into probabilities first; thresholds are then probabilities too.
        least_objects: Of a class for a threshold of its own.
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
    together = together_cuts(matches, row, scaled)
    place, reached = wish.choose(together)
    default = float(together.thresholds[place])
    by_class = class_cuts(matches, row, scaled)
    nothing = np.zeros(0)
    empty = Cuts(nothing, nothing, nothing, nothing, objects=0)
    entries = []
    for class_id, data_class in enumerate(match_classes(class_map, matches.truth.class_map).tolist()):
        cuts = by_class[data_class] if data_class >= 0 else empty
        name, category_id = class_map.names[class_id], class_map.category_ids[class_id]
        own = cuts.objects >= max(least_objects, 1) and cuts.right.any()
        entry = ClassThreshold(name, category_id, default, cuts.objects, own=bool(own), reached=reached)
        entries.append(_expected(entry, cuts, wish))
    return Thresholds(
        classes=tuple(entries),
        default=default,
        criterion=wish.criterion,
        wished=wish.value,
        iou=iou,
        scale=scale,
        data=data,
        split=split,
        images=len(matches.rows),
        objects=int(matches.measured.sum()),
    )


def check_thresholds(matches: Matches, class_map: ClassMap, thresholds: Thresholds) -> ThresholdCheck:
    """What thresholds give on other images than those they were chosen on.

    Args:
        matches: Of these images.
        class_map: The model's, whose class ids the thresholds have.
        thresholds: To be checked.

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

    return ThresholdCheck(
        objects=by_model_class(matches.objects_by_class()),
        taken=by_model_class(np.bincount(class_ids[taken], minlength=classes)),
        right=by_model_class(np.bincount(class_ids[right], minlength=classes)),
        ece=calibrate(matches, iou=thresholds.iou).ece,
        ece_calibrated=calibrate(matches, iou=thresholds.iou, scale=thresholds.scale).ece,
    )


def cross_check(
    evaluator: CocoEvaluator, choose: Callable[[Matches], Thresholds], class_map: ClassMap, seed: int = 0
) -> ThresholdCheck:
    """What thresholds give on images they were not chosen on, where there is only one split.

    Thresholds of each half of the images are checked on the other half.

    Args:
        evaluator: With the detections of the split.
        choose: :func:`thresholds_for` as the thresholds in question were chosen.
        class_map: The model's.
        seed: Of the halves.

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
    """The threshold of a class where it is to have its own, and what is expected of it."""
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
