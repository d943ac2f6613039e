"""Labels that are likely wrong, judged by a model that is mostly right.

The three questions of ObjectLab (Tkachenko, Thyagarajan, Mueller, arXiv:2309.00832) - overlooked, swapped, badly
located - and two more: labels without an object, and labels given twice. Confidence is measured against what the
model usually has for the class, as in confident learning (Northcutt, Jiang, Chuang, arXiv:1911.00068).

Shapes: D detections, N annotations, P pairs, S issues.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from detrkit.evaluation.failures.entries import SIZES, certainty, sizes_of, value_at
from detrkit.evaluation.failures.properties import NearPairs, near_pairs
from detrkit.evaluation.matching import Matches, Pairs
from detrkit.evaluation.overlaps import matched_iou
from detrkit.files import read_facts

_EXPLANATIONS: Mapping[str, str] = read_facts(__file__)
REASONS = tuple(_EXPLANATIONS)
LEAST_RANK = 0.15
"""Of an issue that is worth a look."""
MOST_OF_REASON = 2_000

_FREE = 0.3  # IoU with any annotation below which a detection stands alone
_SAME_PLACE = 0.5
_TWICE = 0.9
_GOOD_BOX = 0.7
_EMPTY_LABELS = 0.02  # of all labels have no object, before anything is known of them
_USUAL_WEIGHT = 5.0  # detections that the mean of all classes counts as, against that of a rare class


@dataclasses.dataclass(frozen=True)
class LabelIssue:
    """A label to look at again.

    Args:
        reason: One of :data:`REASONS`.
        rank: 0 to 1, how likely the label is wrong compared with the others.
        image_row: Row of the truth's ``image_ids``.
        image_id: The data set's id.
        file_name: File name as the data set writes it.
        annotation: Row of the truth's annotations; None for a missing label.
        class_id: Class as labelled; None for a missing label.
        box_xywh: Box as labelled; None for a missing label.
        proposed_class_id: Class that the model says; None where it says nothing.
        proposed_box_xywh: Box of the object that it sees; None where it sees none.
        score: Score of the detection; None without one.
        iou: IoU of label and detection, or of the two labels; None where there is only one box.
        explanation: One sentence with figures.
    """

    reason: str
    rank: float
    image_row: int
    image_id: int
    file_name: str
    annotation: int | None
    class_id: int | None
    box_xywh: tuple[float, float, float, float] | None
    proposed_class_id: int | None
    proposed_box_xywh: tuple[float, float, float, float] | None
    score: float | None
    iou: float | None
    explanation: str


class _Columns(NamedTuple):
    """Issues of one reason; -1 and NaN where there is none, ``[S]`` each."""

    rank: np.ndarray
    objects: np.ndarray
    detections: np.ndarray
    iou: np.ndarray


def find_label_issues(
    matches: Matches, file_names: Sequence[str], near: NearPairs | None = None
) -> list[LabelIssue]:
    """Find labels that the detections speak against, most suspect first; ``MOST_OF_REASON`` a reason at most.

    Args:
        matches: Detections without a score threshold; low scores say that an object was seen after all.
        file_names: File name of each row of the truth's ``image_ids``.
        near: Near annotations, where they are known already.
    """
    if near is None:
        near = near_pairs(matches.truth.image_rows, matches.truth.boxes_xywh)
    confidence = class_confidence(matches)
    ways = (_missing, _swapped, _badly_placed, _without_object)
    found = [*(way(matches, confidence) for way in ways), _given_twice(matches, confidence, near)]
    issues = []
    taken: set[int] = set()
    for reason, columns in zip(REASONS, found, strict=True):
        order = np.flatnonzero(columns.rank >= LEAST_RANK)
        order = order[np.argsort(-columns.rank[order], kind="stable")][:MOST_OF_REASON]
        for row in order.tolist():
            annotation = int(columns.objects[row])
            # One label is asked about once, for the reason that comes first.
            if annotation < 0 or annotation not in taken:
                taken.add(annotation)
                issues.append(_issue(matches, file_names, reason, columns, row))
    return sorted(issues, key=lambda issue: -issue.rank)


def class_confidence(matches: Matches) -> np.ndarray:
    """Bend scores so that 0.5 is what the class's right detections have on average, 0 to 1, float64 ``[D]``.

    A score of 0.6 means much for a class that never gets more, and little for one that always has 0.9.
    """
    found, right = matches.found, matches.correct[0]
    classes = len(matches.truth.class_map)
    counts = np.bincount(found.class_ids[right], minlength=classes)
    scores = certainty(found.scores)
    sums = np.bincount(found.class_ids[right], scores[right], minlength=classes)
    overall = float(scores[right].mean()) if right.any() else 0.5
    usual = np.clip((sums + _USUAL_WEIGHT * overall) / (counts + _USUAL_WEIGHT), 0.05, 0.95)
    exponent = math.log(0.5) / np.log(usual)
    confidence: np.ndarray = scores ** exponent[found.class_ids]
    return confidence


def _missing(matches: Matches, confidence: np.ndarray) -> _Columns:
    """Find confident detections where hardly any annotation is, the best of each place."""
    found, pairs = matches.found, matches.pairs
    nearest = np.zeros(len(found))
    np.maximum.at(nearest, pairs.detections, pairs.iou)
    alone = (matches.matched[0] < 0) & (nearest < _FREE)
    rank = np.where(alone, confidence * (1 - nearest / _SAME_PLACE), 0)
    rows = np.flatnonzero(rank >= LEAST_RANK)
    places = near_pairs(found.image_rows[rows], found.boxes_xywh[rows])
    same = places.iou > _SAME_PLACE
    first, second = rows[places.first[same]], rows[places.second[same]]
    worse = np.where(rank[first] >= rank[second], second, first)
    rows = rows[~np.isin(rows, worse)]
    none = np.full(len(rows), -1)
    return _Columns(rank[rows], none, rows, np.full(len(rows), np.nan))


def _swapped(matches: Matches, confidence: np.ndarray) -> _Columns:
    """Find objects that the model confidently calls something else, and does not call what they are labelled."""
    pairs = _pairs_at(matches, _SAME_PLACE)
    same = _same_class(matches, pairs)
    own = np.zeros(len(matches.truth.class_ids))
    np.maximum.at(own, pairs.objects[same], confidence[pairs.detections[same]])
    other = pairs.select(~same & ~matches.correct[0][pairs.detections])
    rank = confidence[other.detections] * other.iou * (1 - own[other.objects])
    return _best_of_object(other, rank)


def _badly_placed(matches: Matches, confidence: np.ndarray) -> _Columns:
    """Find objects whose own detection is confident, and overlaps less than such detections usually do."""
    truth = matches.truth
    pairs = _pairs_at(matches, _FREE)
    finder = matches.found_by[0]
    own = finder[pairs.objects] == pairs.detections
    unmatched = (finder[pairs.objects] < 0) & (matches.matched[0][pairs.detections] < 0)
    pairs = pairs.select(_same_class(matches, pairs) & (own | unmatched))
    usual = _usual_iou(matches)[sizes_of(truth.area)[pairs.objects]]
    low = np.clip((usual - pairs.iou) / (usual - _FREE), 0, 1)
    # Even a box that is far off is more often a poor detection than a poor label.
    return _best_of_object(pairs, confidence[pairs.detections] * (0.5 + 0.5 * low) * (low > 0))


def _usual_iou(matches: Matches) -> np.ndarray:
    """Return by size the IoU under which a right detection is unusual: lower quartile less their distance."""
    iou = matched_iou(matches)
    right = matches.correct[0]
    sizes = sizes_of(matches.truth.area[matches.matched[0][right]]) if right.any() else np.zeros(0, int)
    usual = np.full(len(SIZES), _SAME_PLACE)
    for size in range(len(SIZES)):
        values = iou[right][sizes == size]
        if len(values) >= 10:
            low, high = np.quantile(values, (0.25, 0.75))
            usual[size] = np.clip(low - (high - low), _SAME_PLACE, _GOOD_BOX)
    return usual


def _without_object(matches: Matches, confidence: np.ndarray) -> _Columns:
    """Find objects that no detection of any class and score finds, though their class and size are found well."""
    truth, measured = matches.truth, matches.measured
    pairs = _pairs_at(matches, _FREE)
    seen = np.zeros(len(truth.class_ids))
    np.maximum.at(seen, pairs.objects, np.sqrt(confidence[pairs.detections]))
    found = (matches.found_by[0] >= 0) & measured
    groups = ((truth.class_ids, len(truth.class_map)), (sizes_of(truth.area), len(SIZES)))
    recall = np.minimum(*(_share(found, group, measured, number) for group, number in groups))
    objects = np.flatnonzero(measured & (matches.found_by[0] < 0))
    # Bayes: either one of the few labels without an object, or one of the objects that the model misses anyway.
    empty = _EMPTY_LABELS / (_EMPTY_LABELS + 1 - recall[objects])
    none = np.full(len(objects), -1)
    return _Columns(empty * (1 - seen[objects]), objects, none, np.full(len(objects), np.nan))


def _share(true: np.ndarray, groups: np.ndarray, counted: np.ndarray, number: int) -> np.ndarray:
    """Return of each annotation the share of its group for which something is true (Laplace's rule), ``[N]``."""
    totals = np.bincount(groups[counted], minlength=number)
    shares: np.ndarray = ((np.bincount(groups[true], minlength=number) + 1) / (totals + 2))[groups]
    return shares


def _given_twice(matches: Matches, confidence: np.ndarray, near: NearPairs) -> _Columns:
    """Find two labels of a class in one place; the one that was found worse is the issue."""
    truth, finder = matches.truth, matches.found_by[0]
    first, second = near.first, near.second
    both = matches.measured[first] & matches.measured[second] & (near.iou > _TWICE)
    twice = both & (truth.class_ids[first] == truth.class_ids[second])
    first, second, iou = first[twice], second[twice], near.iou[twice]
    own = np.zeros(len(finder))
    own[finder >= 0] = confidence[finder[finder >= 0]]
    worse = np.where(own[first] < own[second], first, second)
    return _Columns(iou, worse, np.full(len(worse), -1), iou)


def _pairs_at(matches: Matches, iou: float) -> Pairs:
    """Return overlaps with objects, crowd regions left out."""
    pairs = matches.pairs
    return pairs.select((pairs.iou >= iou) & matches.measured[pairs.objects])


def _same_class(matches: Matches, pairs: Pairs) -> np.ndarray:
    same: np.ndarray = matches.truth.class_ids[pairs.objects] == matches.found.class_ids[pairs.detections]
    return same


def _best_of_object(pairs: Pairs, rank: np.ndarray) -> _Columns:
    """Keep of each object the pair that ranks highest."""
    order = np.lexsort((-rank, pairs.objects))
    objects = pairs.objects[order]
    order = order[np.r_[True, objects[1:] != objects[:-1]]] if len(order) else order
    return _Columns(rank[order], pairs.objects[order], pairs.detections[order], pairs.iou[order])


def _issue(matches: Matches, file_names: Sequence[str], reason: str, columns: _Columns, row: int) -> LabelIssue:
    truth, found = matches.truth, matches.found
    annotation, detection = int(columns.objects[row]), int(columns.detections[row])
    image_row = int(truth.image_rows[annotation] if annotation >= 0 else found.image_rows[detection])
    class_id, proposed = value_at(truth.class_ids, annotation), value_at(found.class_ids, detection)
    score = value_at(found.scores, detection)
    iou = None if math.isnan(columns.iou[row]) else float(columns.iou[row])
    names = (*truth.class_map.names, "")
    label, said = (names[-1 if number is None else number] for number in (class_id, proposed))
    image_id, file_name, rank = int(truth.image_ids[image_row]), file_names[image_row], float(columns.rank[row])
    explanation = _EXPLANATIONS[reason].format(label=label, said=said, score=score, iou=iou)
    box, seen = value_at(truth.boxes_xywh, annotation), value_at(found.boxes_xywh, detection)
    told = (None if annotation < 0 else annotation, class_id, box, proposed, seen, score, iou, explanation)
    return LabelIssue(reason, rank, image_row, image_id, file_name, *told)
