"""AP of the same detections on other readings of the annotations: pycocotools' own, and the repaired ones.

Evaluation takes an annotation file as it is, with two departures: annotations that share an id all count, and one
of id 0 can be found. Where a file has such, or what training repairs, the other number is said beside.

Shapes: N annotations.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from detrkit.errors import listed
from detrkit.evaluation.matching import Matches, match_detections
from detrkit.evaluation.truth import CocoTruth
from detrkit.evaluation.weighted_ap import WeightedAP, mean_over_classes

CLIP_PIXELS = 0.01
"""Boxes that leave their image by less do so by rounding."""


def other_readings(
    matches: Matches, as_stored: CocoTruth | None = None
) -> tuple[dict[str, float | None], list[str]]:
    """Return AP on each other reading that differs, None where undefined, and a sentence on each.

    ``pycocotools``: the file untouched, read with pycocotools' own faults; ``repaired``: as training has it;
    ``stored_boxes``: with the boxes as stored, where reading turned some.

    Args:
        matches: Matches of detections and objects.
        as_stored: The annotations with boxes as stored, where reading turned some; of the same images and classes.
    """
    values: dict[str, float | None] = {}
    sentences: list[str] = []
    truth = matches.truth
    # pycocotools keeps one annotation of each id, and takes id 0 for not found
    ids, here = truth.annotation_ids, np.isin(truth.image_rows, matches.rows)
    if ids is not None and truth.file_rows is not None:
        kept = _last_of_id(ids, truth.file_rows)
        odd = here & ((kept != np.arange(len(ids))) | (ids == 0))
        if odd.any():
            order = np.argsort(truth.image_rows[kept], kind="stable")
            value = values["pycocotools"] = _ap(matches, truth.select(kept[order]), never_found=0)
            sentences.append(
                f"{_named(truth, odd)} with an id that is 0 or that another annotation has: all are counted here. "
                "pycocotools on the untouched file keeps only the last of each id, and takes what finds id 0 for "
                f"wrong: its AP is {_percent(value)}."
            )
    # training clips boxes to their image, and leaves out what is then empty
    repaired, changed = _repaired(truth)
    if (here & changed).any():
        value = values["repaired"] = _ap(matches, repaired)
        sentences.append(
            f"{_named(truth, here & changed)} counted as the file has it, as by pycocotools, though reading for "
            "training clips the box, leaves it out, or corrects its area: repaired so, AP would be "
            f"{_percent(value)}."
        )
    if as_stored is not None:
        value = values["stored_boxes"] = _ap(matches, as_stored)
        sentences.append(f"With the boxes as they are stored, as pycocotools takes them, AP is {_percent(value)}.")
    return values, sentences


def _last_of_id(ids: np.ndarray, file_rows: np.ndarray) -> np.ndarray:
    """Return for each annotation the row of the last one in the file that has its id, int64 ``[N]``."""
    backwards = np.argsort(-file_rows)
    unique, first = np.unique(ids[backwards], return_index=True)
    return np.asarray(backwards[first][np.searchsorted(unique, ids)])


def _repaired(truth: CocoTruth) -> tuple[CocoTruth, np.ndarray]:
    """Return the annotations as reading for training has them, and which of them it changes, bool ``[N]``."""
    limits = np.tile(truth.sizes_hw[truth.image_rows][:, ::-1], 2)
    xywh, area = truth.boxes_xywh, truth.area
    corners = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    clipped = np.clip(corners, 0, limits)
    kept = (clipped[:, 2:] > clipped[:, :2]).all(axis=1)
    moved = (np.abs(clipped - corners) > CLIP_PIXELS).any(axis=1)
    boxes = np.concatenate([clipped[:, :2], clipped[:, 2:] - clipped[:, :2]], axis=1)
    areas = np.where((area < 0) | np.isinf(area), xywh[:, 2] * xywh[:, 3], area)
    repaired = dataclasses.replace(truth, boxes_xywh=np.where(moved[:, None], boxes, xywh), area=areas)
    return repaired.select(kept), moved | ~kept | (areas != area)


def _ap(matches: Matches, truth: CocoTruth, never_found: int | None = None) -> float | None:
    """Return AP of the same detections on another truth, in which what finds an annotation of one id is wrong."""
    again = match_detections(truth, matches.found, matches.rows, len(matches.found) + 1)
    if never_found is not None and truth.annotation_ids is not None:
        lost = (again.matched >= 0) & ~again.ignored & (truth.annotation_ids[again.matched] == never_found)
        again = dataclasses.replace(again, matched=np.where(lost, -1, again.matched))
    values = WeightedAP(again).measure(np.ones((len(again.rows), 1)))
    ap = float(mean_over_classes(values)[0, 0])
    return None if np.isnan(ap) else ap


def _percent(value: float | None) -> str:
    return "undefined" if value is None else f"{100 * value:.1f}"


def _named(truth: CocoTruth, chosen: np.ndarray) -> str:
    ids = (np.arange(len(chosen)) if truth.annotation_ids is None else truth.annotation_ids)[chosen]
    return f"{len(ids):,} {'annotation' if len(ids) == 1 else 'annotations'} ({listed(ids.tolist(), 5)})"
