"""The masks of a data set's objects, kept as their files have them until the pixels of an image are asked for.

Shapes: N objects, n of them, H x W pixels of an image's file.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from detrkit.classes import SizeHW
from detrkit.data.segmentation import mask_extent, mask_rle, measure_segments, read_ids_of
from detrkit.errors import ImageError
from detrkit.masks import LazyMasks, MaskPatch, encode_ids, encode_mask

_PNG, _SEGMENT = "file_name", "segment"
"""Keys of a mask that is a segment of a PNG file."""
_FAR = 1.0
"""Sides of its image that a polygon may lie outside: of one far away, the edges would fill the memory."""


@dataclasses.dataclass(frozen=True)
class ObjectMasks:
    """The masks of objects, encoded, in a few arrays that processes share.

    Polygons and RLE are the text of COCO's ``segmentation``; a panoptic segment is the name of its PNG file and
    its id. Boxes stand in for masks that are not given or not sound, as polygons.

    Args:
        data: All texts, in UTF-8, uint8.
        spans: Start and end of each object's text, int64 ``[N, 2]``; alike where there is none.
        is_given: False where the box stands in, bool ``[N]``.
        orientation: EXIF orientation of the picture, where a mask was drawn on it as it is stored, else 1,
            uint8 ``[N]``.
        folder: Folder of the PNG files.
    """

    data: np.ndarray
    spans: np.ndarray
    is_given: np.ndarray
    orientation: np.ndarray
    folder: Path | None = None

    @classmethod
    def pack(cls, texts: Iterable[bytes], folder: Path | None = None) -> ObjectMasks:
        """Make them of a text for each object; empty where there is no mask."""
        data, ends = bytearray(), [0]
        for text in texts:
            data += text
            ends.append(len(data))
        spans = np.stack([np.array(ends[:-1], dtype=np.int64), np.array(ends[1:], dtype=np.int64)], axis=1)
        shape = len(spans)
        given, upright = np.ones(shape, dtype=bool), np.ones(shape, dtype=np.uint8)
        return cls(np.frombuffer(data, dtype=np.uint8), spans, given, upright, folder)

    def __len__(self) -> int:
        return len(self.spans)

    def select(self, rows: np.ndarray) -> ObjectMasks:
        """Return those of some of the objects, in the given order; the texts stay where they are."""
        return dataclasses.replace(
            self, spans=self.spans[rows], is_given=self.is_given[rows], orientation=self.orientation[rows]
        )

    def turned(self, rows: np.ndarray, orientation: np.ndarray) -> ObjectMasks:
        """Return them with some said to be drawn on pictures as they are stored, of an EXIF orientation each."""
        changed = self.orientation.copy()
        changed[rows] = orientation
        return dataclasses.replace(self, orientation=changed)

    def fault(self, row: int, size_hw: SizeHW) -> str:
        """Return why a mask cannot be used, as kind of fault and words; empty if it can.

        Args:
            row: Number of the object.
            size_hw: Pixels of its image.
        """
        try:
            content = self._content(row)
            if not content:
                return "mask_missing"
            if isinstance(content, dict) and _PNG in content:
                return ""
            size_hw = self._stored_hw(row, size_hw)
            extent = mask_extent(content, size_hw)
        except (ValueError, msgspec.MsgspecError) as error:
            return f"mask_unreadable: {error}"
        limits = np.array([*size_hw[::-1], *size_hw[::-1]])
        if not np.isfinite(extent.bounds_xyxy).all():
            return extent.fault or "mask_empty"
        if (np.abs(extent.bounds_xyxy - limits / 2) > (0.5 + _FAR) * limits).any():
            return f"mask_outside_image: bounds {extent.bounds_xyxy.tolist()}"
        return extent.fault if extent.fault == "mask_polygon_flat" else ""

    def with_boxes(self, rows: np.ndarray, boxes_xyxy: np.ndarray) -> ObjectMasks:
        """Return them with boxes in place of the masks of some objects.

        Args:
            rows: int64 ``[n]``.
            boxes_xyxy: Pixels, float64 ``[n, 4]``.
        """
        corners = boxes_xyxy[:, [0, 1, 2, 1, 2, 3, 0, 3]]
        boxes = self.pack(msgspec.json.encode([polygon]) for polygon in corners.tolist())
        spans, is_given, orientation = self.spans.copy(), self.is_given.copy(), self.orientation.copy()
        spans[rows], is_given[rows], orientation[rows] = boxes.spans + len(self.data), False, 1
        return ObjectMasks(np.concatenate([self.data, boxes.data]), spans, is_given, orientation, self.folder)

    def segment(self, row: int) -> tuple[str, int]:
        """Return the PNG file of an object that is a panoptic segment, and its id there.

        Raises:
            ValueError: It is none.
        """
        content = self._content(row)
        if self.folder is None or not (isinstance(content, dict) and _PNG in content):
            raise ValueError(f"object {row} is no segment of a PNG file")
        return f"{self.folder}/{content[_PNG]}", content[_SEGMENT]

    def lazy(self, rows: np.ndarray | slice, size_hw: SizeHW) -> LazyMasks:
        """Return the masks of objects of one image, decoded when they are looked at; its PNG is read at once.

        Raises:
            ImageError: The PNG file cannot be read, or has another size.
        """
        maps: dict[str, Callable[[int], MaskPatch]] = {}
        patches: list[Callable[[], MaskPatch]] = []
        for row in np.arange(len(self))[rows].tolist():
            content = self._content(row)
            if isinstance(content, dict) and _PNG in content:
                name = content[_PNG]
                if name not in maps:
                    maps[name] = self._segments(name, size_hw)
                patches.append(functools.partial(maps[name], content[_SEGMENT]))
            else:
                patches.append(functools.partial(self._patch, row, content, size_hw))
        return LazyMasks.of_image(patches, self.is_given[rows], size_hw)

    def decode(self, rows: np.ndarray | slice, size_hw: SizeHW) -> np.ndarray:
        """Return the pixels of objects of one image, bool ``[n, H, W]``.

        Args:
            rows: Numbers of the objects.
            size_hw: Pixels of the image.

        Raises:
            ImageError: As :meth:`lazy`.
        """
        return self.lazy(rows, size_hw).pixels()

    def encode(
        self, rows: np.ndarray | slice, size_hw: SizeHW, unlisted: Counter[str] | None = None
    ) -> list[dict[str, Any]]:
        """Return the masks of objects of one image as COCO's compressed RLE, ``size`` and ``counts``.

        Args:
            rows: Numbers of the objects.
            size_hw: Pixels of the image.
            unlisted: Gets the number of ids of a PNG file that are those of none of the objects, by its name.

        Raises:
            ImageError: As :meth:`lazy`.
        """
        encode = functools.cache(lambda name: encode_ids(self._ids(name, size_hw)))
        asked: dict[str, set[int]] = {}
        found = []
        for row in np.arange(len(self))[rows].tolist():
            content = self._content(row)
            if isinstance(content, dict) and _PNG in content:
                name, segment = content[_PNG], content[_SEGMENT]
                asked.setdefault(name, {0}).add(segment)
                found.append(encode(name).get(segment) or encode_mask(np.zeros(size_hw, dtype=bool)))
            else:
                found.append(encode_mask(self.decode(np.array([row]), size_hw)[0]))
        for name, listed in asked.items():
            if unlisted is not None and (others := encode(name).keys() - listed):
                unlisted[name] = len(others)
        return found

    def as_coco(self, rows: np.ndarray | slice, size_hw: SizeHW) -> list[Any]:
        """Return the masks of objects of one image as ``segmentation`` of COCO; an empty list where none is given.

        Polygons and RLE stay as they are; segments, and what was drawn on a picture that EXIF turns, become RLE.
        """
        found: list[Any] = []
        drawn: list[int] = []
        for row in np.arange(len(self))[rows].tolist():
            content = self._content(row) if self.is_given[row] else []
            if content and (self.orientation[row] > 1 or _PNG in content):
                drawn.append(row)
                content = None
            is_flat = isinstance(content, list) and content and not isinstance(content[0], list)
            found.append([content] if is_flat else content)
        encoded = iter(self.encode(np.array(drawn, dtype=np.int64), size_hw))
        return [next(encoded) if content is None else content for content in found]

    def _content(self, row: int) -> Any:
        start, end = self.spans[row]
        return msgspec.json.decode(self.data[start:end].tobytes()) if end > start else None

    def _stored_hw(self, row: int, size_hw: SizeHW) -> SizeHW:
        return size_hw[::-1] if self.orientation[row] >= 5 else size_hw

    def _patch(self, row: int, content: Any, size_hw: SizeHW) -> MaskPatch:
        """Decode polygons or an RLE."""
        from hotcoco import mask as mask_functions

        stored_hw = self._stored_hw(row, size_hw)
        rle = mask_rle(content, stored_hw)
        if tuple(rle["size"]) != stored_hw:
            raise ImageError(f"a mask has height and width {tuple(rle['size'])}, its image has {stored_hw}")
        mask = mask_functions.decode(rle).astype(bool)
        if self.orientation[row] > 1:
            return MaskPatch.of_mask(turn_upright(mask, int(self.orientation[row])))
        x, y, width, height = (int(value) for value in np.ravel(mask_functions.to_bbox(rle)))
        return MaskPatch(y, x, mask[y : y + height, x : x + width].copy())

    def _ids(self, name: str, size_hw: SizeHW) -> np.ndarray:
        assert self.folder is not None
        return read_ids_of(self.folder / name, size_hw)

    def _segments(self, name: str, size_hw: SizeHW) -> Callable[[int], MaskPatch]:
        """Read a PNG file, and return what cuts a segment out of it."""
        ids = self._ids(name, size_hw)
        found = measure_segments(ids)
        boxes = dict(zip(found.ids.tolist(), found.boxes_xywh.tolist(), strict=True))

        def patch(segment: int) -> MaskPatch:
            left, top, width, height = boxes.get(segment, (0, 0, 0, 0))
            return MaskPatch(top, left, ids[top : top + height, left : left + width] == segment)

        return patch


def segment_text(file_name: str, segment: int) -> bytes:
    """Return the text of a segment of a PNG file for :meth:`ObjectMasks.pack`."""
    return msgspec.json.encode({_PNG: file_name, _SEGMENT: segment})


def polygon_text(polygon: np.ndarray) -> bytes:
    """Return the text of a polygon ``[points, 2]`` in pixels for :meth:`ObjectMasks.pack`."""
    return msgspec.json.encode([polygon.ravel().tolist()])


def turn_upright(mask: np.ndarray, orientation: int) -> np.ndarray:
    """Turn a mask of a picture as it is stored, as :func:`detrkit.ops.images.turn_boxes` turns boxes."""
    turned = mask[:: -1 if orientation in (3, 4, 6, 7) else 1, :: -1 if orientation in (2, 3, 7, 8) else 1]
    return turned.T if orientation >= 5 else turned
