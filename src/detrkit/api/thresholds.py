"""``detrkit.choose_thresholds``: score thresholds of a detector, chosen on a data set."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from detrkit.api.common import Progress, Say, Source
from detrkit.api.evaluate import origin_of
from detrkit.data.split import unknown_classes
from detrkit.detections import MaskedDetections
from detrkit.detectors.detector import Detector
from detrkit.detectors.encode import encode_picture, has_masks
from detrkit.detectors.find import find_target
from detrkit.detectors.on_split import EvalTarget, bind_target, detect_on_split, read_split_for
from detrkit.detectors.stages import merge_masks
from detrkit.detectors.tiles import in_tiles
from detrkit.errors import DataError, UsageError
from detrkit.evaluation.coco import BoxEvaluator
from detrkit.evaluation.evaluator import CocoEvaluator
from detrkit.evaluation.matching import Matches
from detrkit.evaluation.thresholds import (
    LEAST_OBJECTS,
    ThresholdCheck,
    Wish,
    check_thresholds,
    cross_check,
    thresholds_for,
)
from detrkit.evaluation.truth import ground_truth_from_index
from detrkit.files import check_free
from detrkit.threshold_file import Thresholds, write_thresholds

PANOPTIC_SCORES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
"""Scores of which ``masks.panoptic_score`` is chosen; the published one is 0.85."""


@dataclasses.dataclass(frozen=True)
class ThresholdChoice:
    """Thresholds, and what they give on images they were not chosen on.

    Args:
        thresholds: By the model's class id.
        check: Detections and objects at them; None where that could not be found out.
        checked_on: Images that were checked on, or why none were, for people.
        panoptic: PQ on the images they were chosen on, by the score from which queries take part in a panoptic
            picture; empty where the model makes none, or the data set is none of COCO panoptic.
    """

    thresholds: Thresholds
    check: ThresholdCheck | None
    checked_on: str
    panoptic: Mapping[float, float] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the content for JSON: the thresholds, as in their file, and the check."""
        check = None if self.check is None else {"on": self.checked_on, **self.check.to_dict(self.thresholds)}
        panoptic = [{"score": score, "PQ": quality} for score, quality in self.panoptic.items()]
        return {"thresholds": self.thresholds.to_dict(), "check": check, "panoptic": panoptic}


def choose_thresholds(
    model: Source | EvalTarget,
    data: Source | None = None,
    *,
    split: str = "val",
    image_folder: Source | None = None,
    check_split: str | None = None,
    precision: float | None = None,
    recall: float | None = None,
    calibrate: bool = False,
    out: Source | None = None,
    least_objects: int = LEAST_OBJECTS,
    batch_size: int | None = None,
    tiles: str | int | None = None,
    device: str = "auto",
    say: Say = lambda _message: None,
    progress: Progress | None = None,
) -> ThresholdChoice:
    """Choose the score from which detections are taken, class by class, and check what that gives elsewhere.

    Args:
        model: Whatever detects: anything that :func:`find_target` takes, what it gives, or a detector.
        data: Folder of the data set, or one COCO JSON file; the run's own if the model is a run.
        image_folder: Folder of the images of ``data``, where they lie elsewhere.
        split: Split to choose on; one that the model was not trained on.
        check_split: Split to check on. Without one, thresholds of each half of the images are checked on the
            other.
        precision: Precision wished; with neither this nor ``recall``, the best F1 is.
        recall: Recall wished.
        calibrate: True to turn scores into probabilities first.
        out: File to write; ``RUN/thresholds.json`` is what :func:`detrkit.load` uses.
        least_objects: Objects of a class for a threshold of its own.
        batch_size: Images at once.
        tiles: Cut images into tiles; see :meth:`detrkit.detectors.tiles.Tiles.parse`.
        device: Device, as in :func:`detrkit.load`.
        say: Called with messages for people.
        progress: Called with images done and images in all.

    Raises:
        UsageError: What is wished makes no sense, or there is no such split.
        DataError: There is nothing to choose from.
    """
    # what is wished, and the detections of the split
    if out is not None:
        check_free(Path(out))
    wish = _wish(precision, recall)
    if check_split == split:
        raise UsageError(f"thresholds chosen on {split} cannot be checked on {split}; leave check_split out")
    subject = in_tiles(find_target(model, device=device), tiles, batch_size)
    own, name, panoptic = _collected(subject, (data, image_folder), split, batch_size, say, progress)

    # the thresholds, chosen on the whole split and checked elsewhere
    choose = functools.partial(
        thresholds_for,
        class_map=own.class_map,
        wish=wish,
        calibration=calibrate,
        least_objects=least_objects,
        data=name,
        split=split,
    )
    thresholds = choose(own.matches())
    if panoptic:
        thresholds = dataclasses.replace(thresholds, panoptic_score=max(panoptic, key=panoptic.__getitem__))
    if check_split is None:
        choice = _checked_by_halves(own, choose, thresholds)
    else:
        other, *_ = _collected(subject, (data, image_folder), check_split, batch_size, say, progress)
        bound = thresholds.for_classes(other.class_map)  # of a file of detections each split has its own classes
        check = check_thresholds(other.matches(), other.class_map, bound)
        choice = ThresholdChoice(thresholds, check, check_split)
    if out is not None:
        write_thresholds(out, thresholds)
    return dataclasses.replace(choice, panoptic=panoptic)


def _wish(precision: float | None, recall: float | None) -> Wish:
    if precision is not None and recall is not None:
        raise UsageError("a precision and a recall were wished; one of them decides the threshold, so give one")
    if precision is not None:
        return Wish("precision", precision)
    return Wish() if recall is None else Wish("recall", recall)


def _checked_by_halves(
    evaluator: CocoEvaluator, choose: Callable[[Matches], Thresholds], thresholds: Thresholds
) -> ThresholdChoice:
    try:
        check = cross_check(evaluator, choose, evaluator.class_map)
    except DataError as error:
        return ThresholdChoice(thresholds, None, f"not checked: {error}")
    return ThresholdChoice(thresholds, check, f"halves of {thresholds.split}, each with thresholds of the other")


def _collected(
    subject: EvalTarget,
    places: tuple[Source | None, Source | None],
    split: str,
    batch_size: int | None,
    say: Say,
    progress: Progress | None,
) -> tuple[CocoEvaluator, str, dict[float, float]]:
    """Detect on a split; return the evaluator, the name of the data set, and PQ by score if there is any."""
    part, where = read_split_for([subject], split, places[0], image_folder=places[1], masks=subject.has_stuff)
    subject = bind_target(subject, part)
    origin = origin_of(subject, part)
    for line in [*part.lines(), *unknown_classes(subject.class_map, part), *origin.notes]:
        say(line)
    if origin.seen_in_training:
        say(f"WARNING: the model was trained on {split}, where it is surer and better than on new images")
    report = None if progress is None else lambda done: progress(done, len(part.index))
    name = Path(where).resolve().name
    # boxes, and of COCO panoptic a picture for each score, in one pass
    truth = ground_truth_from_index(part.index)
    evaluator = CocoEvaluator(truth, subject.class_map, subject.max_detections)
    is_panoptic = isinstance(subject, Detector) and has_masks(part.index) and part.files.format == "panoptic"
    scores = PANOPTIC_SCORES if is_panoptic else ()
    pictures = {score: BoxEvaluator(truth, subject.class_map) for score in scores}
    for image_id, found in detect_on_split(subject, part, batch_size=batch_size, progress=report):
        evaluator.add(image_id, found)
        if isinstance(subject, Detector) and isinstance(found, MaskedDetections) and pictures:
            kept = found.take(found.scores > min(pictures)).with_logits()
            for score, own in pictures.items():
                how = subject.masks.model_copy(update={"panoptic_score": score})
                segments = encode_picture(merge_masks(kept, how, subject.class_map.stuff))
                own.add(image_id, segments._replace(segments=segments))
    return evaluator, name, {score: own.finish_panoptic().values["PQ"] for score, own in pictures.items()}
