"""Images that two detectors disagree on: what is annotated, and what each of them finds, side by side."""

from __future__ import annotations

import numpy as np
from PIL import Image

from detrkit.classes import ClassMap
from detrkit.comparison.images import Operation
from detrkit.comparison.result import PairwiseComparison
from detrkit.data.coco import CocoDataset
from detrkit.data.split import Split
from detrkit.errors import DetrkitError
from detrkit.evaluation.matching import Matches
from detrkit.visual.drawing import beside, draw_objects
from detrkit.visual.page import Picture
from detrkit.visual.text import shortened

LONGEST = 640
"""Pixels of the longer side of each of the three pictures."""

_GAP = 8
_LONGEST_NAME = 24
_CORRECT_AT = 0  # row of IoU 0.5


def disagreement_pictures(pair: PairwiseComparison, split: Split, most: int) -> list[Picture]:
    """Return pictures of the images with most disagreement, the greatest first, without unreadable ones.

    Args:
        pair: Two detectors.
        split: The images.
        most: Pictures.
    """
    differences = pair.images
    dataset = CocoDataset(split.index, split.files.images, None, on_bad_image="error")
    truth = pair.reference.matches.truth
    rows = {int(image_id): row for row, image_id in enumerate(split.index.image_ids)}
    pictures: list[Picture] = []
    for place in differences.ranked().tolist():
        if len(pictures) == most:
            break
        truth_row = int(differences.rows[place])
        row = rows[int(truth.image_ids[truth_row])]
        try:
            image = dataset.read_image(row).permute(1, 2, 0).numpy()
        except DetrkitError:
            continue
        drawn = side_by_side(pair, image, truth_row)
        caption = (
            f"{split.index.file_name(row)}: {differences.objects[place]} objects; mistakes: {pair.reference.name} "
            f"{differences.first.mistakes[place]:.1f}, {pair.model.name} "
            f"{differences.second.mistakes[place]:.1f}; disagreement {differences.disagreement[place]:.1f}"
        )
        pictures.append(Picture.of(drawn, caption, longest=3 * LONGEST))
    return pictures


def side_by_side(pair: PairwiseComparison, image: np.ndarray, truth_row: int) -> np.ndarray:
    """Return annotations and both detectors' detections from left to right, uint8 ``[H, W, 3]``."""
    scale = min(1.0, LONGEST / max(image.shape[:2]))
    if scale < 1:
        size = (max(round(image.shape[1] * scale), 1), max(round(image.shape[0] * scale), 1))
        image = np.array(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
    truth = _draw_truth(pair.reference.matches, truth_row, image, scale)
    first = _draw_found(pair.reference.matches, pair.images.first, truth_row, image, scale)
    second = _draw_found(pair.model.matches, pair.images.second, truth_row, image, scale)
    return beside([truth, first, second], _GAP)


def _draw_truth(matches: Matches, truth_row: int, image: np.ndarray, scale: float) -> np.ndarray:
    truth = matches.truth
    rows = np.flatnonzero(truth.image_rows == truth_row)
    texts = [_short(truth.class_map, int(class_id)) for class_id in truth.class_ids[rows]]
    boxes = _corners(truth.boxes_xywh[rows]) * scale
    return draw_objects(image, boxes, truth.class_ids[rows], texts, truth.iscrowd[rows])


def _draw_found(
    matches: Matches, operation: Operation, truth_row: int, image: np.ndarray, scale: float
) -> np.ndarray:
    found = matches.found
    rows = np.flatnonzero((found.image_rows == truth_row) & (found.scores >= operation.threshold))[::-1]
    right = matches.correct[_CORRECT_AT, rows] | matches.ignored[_CORRECT_AT, rows]
    texts = [
        f"{'' if good else 'false: '}{_short(matches.truth.class_map, int(class_id))} {score:.2f}"
        for class_id, score, good in zip(found.class_ids[rows], found.scores[rows], right, strict=True)
    ]
    return draw_objects(image, _corners(found.boxes_xywh[rows]) * scale, found.class_ids[rows], texts)


def _corners(boxes_xywh: np.ndarray) -> np.ndarray:
    return np.concatenate([boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]], axis=1)


def _short(class_map: ClassMap, class_id: int) -> str:
    return shortened(class_map.names[class_id], _LONGEST_NAME)
