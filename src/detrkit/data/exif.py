"""Boxes that were drawn on pictures as they are stored, before EXIF turns them: one decision for a whole split.

A tool that ignores EXIF writes the size of the stored picture, and boxes in it. Its size alone shows nothing: many
programs read the size without EXIF and show people the upright picture. A box that fits only one of both tells.

Shapes: I images, N boxes of all of them.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np

from detrkit.data.faults import Findings
from detrkit.data.index import check_inside
from detrkit.data.table import AnnotationTable
from detrkit.errors import AnnotationError, ImageError, counted
from detrkit.ops.images import read_header, turn_boxes

SAMPLE = 2000
"""Images whose headers are read of every split, some 0.2 ms each: all of a small one, and of a large one enough to
meet what concerns more than one in 500. Only where one has the size of the stored picture, all are looked at."""
NEARLY_ALL = 0.9
_EDGE_PIXELS, _EDGE_SHARE = 2.0, 0.003


def turn_upright(table: AnnotationTable, images: Path, found: Findings) -> AnnotationTable:
    """Return a table with the sizes of upright pictures, and boxes in them, where it has those before EXIF."""
    count, rows, boxes = len(table.image_ids), table.image_rows(), table.boxes_xywh
    if table.unit == "line":  # shares of a picture have no size that could tell
        return table
    stored_hw, orientation = np.zeros((count, 2), dtype=np.int64), np.ones(count, dtype=np.int64)

    def look(some: np.ndarray) -> Turning:
        for row in some.tolist():
            name = table.file_names[row]
            try:
                check_inside(name, images)
                stored_hw[row], orientation[row] = read_header(images / name)
            except (ImageError, AnnotationError):  # met again, and told of, by what needs the file
                continue
        return judge_turning(table.sizes_hw, stored_hw, orientation, boxes, rows)

    # a sample, and every image with a box that leaves the listed size
    limits = table.sizes_hw[rows][:, ::-1]
    leaves = (rows >= 0) & (boxes[:, :2] + boxes[:, 2:] > limits).any(axis=1)
    first = np.union1d(np.linspace(0, count - 1, min(count, SAMPLE)).astype(np.int64), rows[leaves])
    turning = look(first)
    # without EXIF, a file whose sides are the other way round shows that they were exchanged in writing
    is_wide = stored_hw[:, 0] != stored_hw[:, 1]
    swapped = (orientation < 5) & is_wide & (table.sizes_hw == stored_hw[:, ::-1]).all(axis=1)
    for row in np.flatnonzero(swapped).tolist():
        height, width = stored_hw[row].tolist()
        words = f"{height} x {width} in the annotations, {width} x {height} in the file (exchanged)"
        found.add("size_mismatch", f"{table.file_names[row]}: {words}")
    table = dataclasses.replace(table, sizes_hw=np.where(swapped[:, None], stored_hw, table.sizes_hw))
    if not turning.exchanged.any():
        return table
    turning = look(np.setdiff1d(np.arange(count), first))
    for row in np.flatnonzero(turning.exchanged | turning.turned).tolist():
        kind = "exif_ignored" if turning.turned[row] else "exif_rotated_size"
        found.add(kind, turning.words(table.file_names[row], table.sizes_hw[row], int(orientation[row])))
    sizes_hw = np.where(turning.exchanged[:, None], table.sizes_hw[:, ::-1], table.sizes_hw)
    mine = np.flatnonzero((rows >= 0) & turning.turned[rows])
    boxes = boxes.copy()
    boxes[mine] = turned_boxes(boxes[mine], stored_hw[rows[mine]], orientation[rows[mine]])
    masks = table.masks if table.masks is None else table.masks.turned(mine, orientation[rows[mine]])
    return dataclasses.replace(table, sizes_hw=sizes_hw, boxes_xywh=boxes, masks=masks)


class Turning(NamedTuple):
    """The decision on a split, bool ``[I]`` each.

    Args:
        exchanged: Images whose listed size is that of the stored picture and not of the upright one.
        turned: Images whose boxes were drawn on the stored picture.
        shown: Images with boxes that fit only the stored picture, and those with boxes that fit only the upright.
    """

    exchanged: np.ndarray
    turned: np.ndarray
    shown: tuple[int, int]

    def words(self, name: str, listed_hw: np.ndarray, orientation: int) -> str:
        """Describe an image that it concerns."""
        told = "" if any(self.shown) else ", and no box shows on which picture it was drawn"
        if all(self.shown):
            told = (
                f"; in all, boxes of {counted(self.shown[0], 'image')} fit only the stored picture, of "
                f"{self.shown[1]} only the upright one, and the others were taken for those of the greater part"
            )
        return f"{name}: {listed_hw[1]} x {listed_hw[0]} with EXIF orientation {orientation}{told}"


def judge_turning(
    listed_hw: np.ndarray, stored_hw: np.ndarray, orientation: np.ndarray, boxes: np.ndarray, rows: np.ndarray
) -> Turning:
    """Decide whether the tool that made the annotations of a split ignored EXIF.

    Where no box shows it, boxes count as drawn on the upright picture.

    Args:
        listed_hw: Sizes as written, ``[I, 2]``; 0 where there is none.
        stored_hw: Sizes of the pictures as stored, ``[I, 2]``.
        orientation: EXIF orientations, 1 to 8, ``[I]``; 1 of images that were not looked at.
        boxes: Corner and size in pixels, ``[N, 4]``.
        rows: Image of each box, -1 if unknown, ``[N]``.
    """
    upright_hw = stored_hw[:, ::-1]
    lies = (orientation >= 5) & (stored_hw[:, 0] != stored_hw[:, 1])
    exchanged = lies & (listed_hw == stored_hw).all(axis=1)
    # images with a box that leaves one of the pictures and not the other
    rows, boxes = rows[rows >= 0], boxes[rows >= 0]
    concerned = exchanged[rows] & np.isfinite(boxes).all(axis=1)
    rows, ends = rows[concerned], (boxes[:, :2] + boxes[:, 2:])[concerned]
    edge = np.maximum(_EDGE_PIXELS, _EDGE_SHARE * stored_hw.max(axis=1, initial=0))[rows, None]
    leaves_stored, leaves_upright = (
        (ends > size_hw[rows][:, ::-1] + edge).any(axis=1) for size_hw in (stored_hw, upright_hw)
    )
    for_stored, for_upright = np.unique(rows[leaves_upright]), np.unique(rows[leaves_stored])
    for_stored, for_upright = np.setdiff1d(for_stored, for_upright), np.setdiff1d(for_upright, for_stored)
    shown = len(for_stored), len(for_upright)
    turned = exchanged & (len(for_stored) > len(for_upright))
    if min(shown) > (1 - NEARLY_ALL) * sum(shown):  # of two tools, rather than a box that is wrong
        turned[for_stored], turned[for_upright] = True, False
    # mirrored and square pictures have one size either way: they go with all others
    others = lies & (listed_hw == upright_hw).all(axis=1)
    if turned.any() and exchanged.sum() >= NEARLY_ALL * (exchanged | others).sum():
        turned |= (orientation > 1) & ~(lies & listed_hw.all(axis=1))
    return Turning(exchanged, turned, shown)


def turned_boxes(boxes: np.ndarray, stored_hw: np.ndarray, orientation: np.ndarray) -> np.ndarray:
    """Turn boxes with an extent, corner and size ``[N, 4]``, from the picture as stored to the upright one."""
    turned = boxes.copy()
    for row in np.flatnonzero((boxes[:, 2:] > 0).all(axis=1) & (orientation > 1)).tolist():
        corners = np.concatenate([boxes[row, :2], boxes[row, :2] + boxes[row, 2:]])
        x1, y1, x2, y2 = turn_boxes(corners[None], int(orientation[row]), stored_hw[row].tolist())[0]
        turned[row] = x1, y1, x2 - x1, y2 - y1
    return turned
