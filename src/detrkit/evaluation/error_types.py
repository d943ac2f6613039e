"""Kinds of errors and the AP they cost: TIDE (https://arxiv.org/abs/2008.08115).

Kinds and costs are those of the authors' own code, tidecv 1.0.1, with two differences. A detection in a crowd
region of its class is no error here, as it is none for COCO; tidecv counts it. The mean is taken over the classes
that have objects, as COCO's, so that the AP that costs are taken from is AP50; tidecv counts others as AP 0.
hotcoco's ``tide_errors`` agrees where there are no crowd regions. It takes these for objects: detections near one
are misplaced by its count, and cost as if they could find it.

Shapes: D detections, N annotations, P pairs of the two, C classes.
"""

from __future__ import annotations

import dataclasses
import enum
import sys
from collections.abc import Mapping

import numpy as np

from detrkit.evaluation.coco import UNDEFINED
from detrkit.evaluation.matching import LEAST_IOU, Matches, Pairs
from detrkit.evaluation.overlaps import overlap_of
from detrkit.evaluation.weighted_ap import RECALLS

FOREGROUND_IOU = 0.5
"""Of a well-placed detection; below ``LEAST_IOU`` it is background."""


class ErrorKind(enum.IntEnum):
    """What became of a detection; the errors in TIDE's order of precedence are 2, 1, 4, 5, 3."""

    CORRECT = 0
    CLASSIFICATION = 1
    LOCALIZATION = 2
    BOTH = 3
    DUPLICATE = 4
    BACKGROUND = 5
    IGNORED = 6


FALSE_POSITIVES = tuple(kind for kind in ErrorKind if kind not in (ErrorKind.CORRECT, ErrorKind.IGNORED))
ERROR_NAMES = (*(kind.name.lower() for kind in FALSE_POSITIVES), "missed", "false_positives", "false_negatives")
"""Keys of counts and costs: the six kinds, then all false positives and all objects that were not found."""


@dataclasses.dataclass(frozen=True)
class ErrorTypes:
    """The kind of every detection, the objects that were missed, and the AP that each kind costs.

    Args:
        kinds: :class:`ErrorKind` of each detection, uint8 ``[D]``.
        missed: Objects that no detection found, nor would find were its class or its box right, bool ``[N]``.
        partner: Annotation that explains the kind: the one found, mistaken, misplaced, found before, or overlapped
            most; int32 ``[D]``, -1 where none is near.
        iou: With that annotation (of a crowd region, the share of the detection inside), float64 ``[D]``, 0 where
            none is near.
        counts: By :data:`ERROR_NAMES`, whatever the score; see :meth:`counts_above`.
        cost: By :data:`ERROR_NAMES`, how much AP50 (0 to 1) would rise if there were no such errors;
            ``UNDEFINED`` without objects. Costs do not add up: errors hide each other.
        ap50: The AP that the costs are taken from; ``UNDEFINED`` without objects.
        scores: Scores of the detections, float64 ``[D]``.
        found_at: Best score of the detection that found each object, -inf where none did, float64 ``[N]``.
        touched_at: The same, with detections of the wrong class or place on it; -inf for those missed.
        measured: Objects to be found, bool ``[N]``.
    """

    kinds: np.ndarray
    missed: np.ndarray
    partner: np.ndarray
    iou: np.ndarray
    counts: Mapping[str, int]
    cost: Mapping[str, float]
    ap50: float
    scores: np.ndarray
    found_at: np.ndarray
    touched_at: np.ndarray
    measured: np.ndarray

    def counts_above(self, score: float) -> dict[str, int]:
        """Return counts by :data:`ERROR_NAMES` if only detections of this score or more are taken.

        No kind changes by that: what a detection is depends on better scores alone.
        """
        score = max(score, -sys.float_info.max)  # -inf stands for what no detection found
        by_kind = np.bincount(self.kinds[self.scores >= score], minlength=len(ErrorKind))
        counts = {kind.name.lower(): int(by_kind[kind]) for kind in FALSE_POSITIVES}
        return counts | {
            "missed": int((self.measured & ~(self.touched_at >= score)).sum()),
            "false_positives": sum(counts.values()),
            "false_negatives": int((self.measured & ~(self.found_at >= score)).sum()),
        }


def classify_errors(matches: Matches) -> ErrorTypes:
    """Find the kind of every detection at IoU 0.5, and what each kind of error costs.

    Args:
        matches: Matches of detections and objects.
    """
    real = matches.pairs.select(~matches.truth.ignored[matches.pairs.objects])
    same_class = matches.truth.class_ids[real.objects] == matches.found.class_ids[real.detections]
    same, same_iou = _best_pairs(real.select(same_class), len(matches.found))
    other, other_iou = _best_pairs(real.select(~same_class), len(matches.found))
    duplicate = same_iou > FOREGROUND_IOU  # else it would have found the object, which another then did
    # the first that holds decides
    holds = {
        ErrorKind.IGNORED: matches.ignored[0],
        ErrorKind.CORRECT: matches.correct[0],
        ErrorKind.LOCALIZATION: (same_iou >= LEAST_IOU) & ~duplicate,
        ErrorKind.CLASSIFICATION: other_iou >= FOREGROUND_IOU,
        ErrorKind.DUPLICATE: duplicate,
        ErrorKind.BACKGROUND: other_iou <= LEAST_IOU,
    }
    kinds = np.select(list(holds.values()), list(holds), ErrorKind.BOTH).astype(np.uint8)
    # the annotation that explains the kind
    right_or_ignored = np.isin(kinds, (ErrorKind.CORRECT, ErrorKind.IGNORED))
    own_class = np.isin(kinds, (ErrorKind.LOCALIZATION, ErrorKind.DUPLICATE))
    partner = np.select(
        [right_or_ignored, own_class, kinds != ErrorKind.BACKGROUND], [matches.matched[0], same, other], -1
    )
    return _explained(matches, kinds, partner.astype(np.int32))


def _explained(matches: Matches, kinds: np.ndarray, partner: np.ndarray) -> ErrorTypes:
    scores = matches.found.scores
    found_at = np.full(len(matches.measured), -np.inf)
    correct = kinds == ErrorKind.CORRECT
    found_at[partner[correct]] = scores[correct]
    touched_at = found_at.copy()
    near = np.isin(kinds, (ErrorKind.CLASSIFICATION, ErrorKind.LOCALIZATION))
    np.maximum.at(touched_at, partner[near], scores[near])
    missed = matches.measured & np.isneginf(touched_at)
    iou = overlap_of(matches, np.arange(len(kinds)), partner)
    at = (found_at, touched_at)
    errors = ErrorTypes(kinds, missed, partner, iou, {}, {}, UNDEFINED, scores, *at, matches.measured)
    ap50, cost = _costs(matches, errors, near)
    return dataclasses.replace(errors, counts=errors.counts_above(-np.inf), cost=cost, ap50=ap50)


def _best_pairs(pairs: Pairs, detections: int) -> tuple[np.ndarray, np.ndarray]:
    """Return annotation that each detection overlaps most, -1 for none, and by how much; of equals the first."""
    partner = np.full(detections, -1, dtype=np.int64)
    iou = np.zeros(detections)
    order = np.lexsort((-pairs.objects, pairs.iou))  # the last of a detection's pairs is what remains
    partner[pairs.detections[order]] = pairs.objects[order]
    iou[pairs.detections[order]] = pairs.iou[order]
    return partner, iou


def _costs(matches: Matches, errors: ErrorTypes, near: np.ndarray) -> tuple[float, dict[str, float]]:
    """Return AP50, and what it would rise by if errors of each kind were mended as TIDE's oracles do."""
    objects = matches.objects_by_class()
    if not objects.any():
        return UNDEFINED, dict.fromkeys(ERROR_NAMES, UNDEFINED)
    kinds, class_ids = errors.kinds, matches.found.class_ids
    correct, counted = kinds == ErrorKind.CORRECT, kinds != ErrorKind.IGNORED
    ranking = _Ranking(errors.scores, class_ids, objects)
    ap50 = ranking.mean_ap(correct, counted, objects)
    # Of all that would find a free object were their class or box right, only the best may: the others go.
    chosen = near & _chosen(errors, near)
    fixed = {}
    for kind in FALSE_POSITIVES:
        mended = chosen & (kinds == kind)
        moved = None
        if kind == ErrorKind.CLASSIFICATION:
            moved = class_ids.copy()
            moved[mended] = matches.truth.class_ids[errors.partner[mended]]
        left = counted & ((kinds != kind) | mended)
        fixed[kind.name.lower()] = ranking.mean_ap(correct | mended, left, objects, moved)
    fixed["false_positives"] = ranking.mean_ap(correct, correct, objects)
    # objects that were missed are taken away instead
    unfound = {"missed": errors.missed, "false_negatives": matches.measured & np.isneginf(errors.found_at)}
    for name, gone in unfound.items():
        lost = np.bincount(matches.truth.class_ids[gone], minlength=len(objects))
        fixed[name] = ranking.mean_ap(correct, counted, objects - lost)
    return ap50, {name: max(fixed[name] - ap50, 0.0) for name in ERROR_NAMES}


def _chosen(errors: ErrorTypes, near: np.ndarray) -> np.ndarray:
    """Return the best-scored detection of those that are near each object that was not found, bool ``[D]``."""
    chosen = np.zeros(len(near), dtype=bool)
    rows = np.flatnonzero(near & np.isneginf(errors.found_at[errors.partner]))  # by image and descending score
    chosen[rows[np.unique(errors.partner[rows], return_index=True)[1]]] = True
    return chosen


class _Ranking:
    """Mean AP of changed copies of the same detections, which are sorted once.

    Args:
        scores: float64 ``[D]``.
        class_ids: int ``[D]``.
        objects: Objects of each class, int ``[C]``; classes without any never count.
    """

    def __init__(self, scores: np.ndarray, class_ids: np.ndarray, objects: np.ndarray):
        self._by_score = np.argsort(-scores, kind="stable")
        self._class_ids = class_ids
        self._order = self._by_class(class_ids)
        self._classes = np.flatnonzero(objects)

    def _by_class(self, class_ids: np.ndarray) -> np.ndarray:
        kind = np.int16 if class_ids.max(initial=0) < 2**15 else np.int64
        small = class_ids[self._by_score].astype(kind)
        order: np.ndarray = self._by_score[np.argsort(small, kind="stable")]  # by radix, of 16 bits
        return order

    def mean_ap(
        self, correct: np.ndarray, counted: np.ndarray, objects: np.ndarray, class_ids: np.ndarray | None = None
    ) -> float:
        """Return AP50 over classes that have objects or detections left; 1 where none has: nothing is wrong then.

        Args:
            correct: bool ``[D]``.
            counted: Detections that are there, bool ``[D]``.
            objects: Objects to be found, of each class, int ``[C]``.
            class_ids: Where they are not the same, int ``[D]``.
        """
        order = self._order if class_ids is None else self._by_class(class_ids)
        order = order[counted[order]]
        classes = (self._class_ids if class_ids is None else class_ids)[order]
        ends = np.searchsorted(classes, np.arange(len(objects) + 1))
        right = correct[order]
        values = [
            _average_precision(right[ends[class_id] : ends[class_id + 1]], int(objects[class_id]))
            for class_id in self._classes.tolist()
            if objects[class_id] or ends[class_id + 1] > ends[class_id]
        ]
        return float(np.mean(values)) if values else 1.0


def _average_precision(right: np.ndarray, objects: int) -> float:
    """Return COCO's AP of ranked detections; 0 where nothing is to be found but something was."""
    if not objects or not right.any():
        return 0.0
    places = np.flatnonzero(right)  # precision is highest where a correct detection is taken
    hits = np.arange(1, len(places) + 1)
    precision = np.maximum.accumulate((hits / (places + 1))[::-1])[::-1]
    reached = np.searchsorted(hits / objects, RECALLS, side="left")
    return float(np.append(precision, 0.0)[reached].mean())
