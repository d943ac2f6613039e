"""Evaluation against COCO JSON: the ground truth of a file, matches of detections and objects, results written.

Training measures with :class:`detrkit.evaluation.coco.BoxEvaluator` alone; all explanations need this.

Shapes: I images, N annotations, D detections, C classes of the data set.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from detrkit.classes import ClassMap
from detrkit.data.faults import Findings
from detrkit.data.formats.ids import IdNumbers
from detrkit.data.table import IdTexts, positions_of
from detrkit.errors import AnnotationError
from detrkit.evaluation.coco import MAX_DETECTIONS, BoxEvaluator, ImageIds
from detrkit.evaluation.matching import Found, Matches, match_detections
from detrkit.evaluation.truth import CocoTruth
from detrkit.files import atomic_file, parse_json

CHECK_HINT = 'run "detrkit data check" to find every defect'


class CocoEvaluator(BoxEvaluator):
    """Evaluator that also reads annotations, matches detections and objects, and writes COCO's result format.

    Args:
        annotations: COCO JSON file, its content, or a :class:`CocoTruth` (see ``ground_truth_from_index``).
        class_map: Classes that the detections speak of; the data set's own when not given.
        max_detections: Detections that count per image and class, best scores first, as in pycocotools.

    Raises:
        AnnotationError: The annotations cannot be read.
        DataError: No class of the model is a class of the data set.
    """

    def __init__(
        self,
        annotations: str | Path | Mapping[str, Any] | CocoTruth,
        class_map: ClassMap | None = None,
        max_detections: int = MAX_DETECTIONS,
    ):
        truth = annotations if isinstance(annotations, CocoTruth) else read_ground_truth(annotations)
        super().__init__(truth, class_map, max_detections)

    def matches(self, image_ids: ImageIds = "all", masks: bool = False) -> Matches:
        """Match detections and objects at every IoU: what all explanations are made from.

        Args:
            image_ids: As for :meth:`finish`.
            masks: Compare masks instead of boxes.
        """
        rows = self._rows(image_ids)
        results = self.results(rows)
        image_rows, class_ids = results[:, [0, 6]].T.astype(np.int64) - 1
        rle = self.masks(rows) if self.has_masks else None
        found = Found(image_rows, class_ids, results[:, 5], results[:, 1:5], rle)
        return match_detections(self.truth, found, rows, self.max_detections, masks)

    def write_results_json(self, path: str | Path) -> int:
        """Write COCO's result format, image after image, and return the number of detections written.

        The numbers are those that are measured here, to the last digit: ``bbox`` [x, y, width, height] in
        float32 arithmetic as the published DETR code does it, ``category_id`` the data set's, ``segmentation``
        the mask as RLE where there are masks. Entries name the file where images have no ids of their own.
        """
        image_ids, texts = self.truth.image_ids, self.truth.category_id_texts
        category_ids = [texts.get(number, number) for number in self.truth.class_map.category_ids]
        encode = msgspec.json.Encoder().encode  # ten times as fast as json, with the same digits
        results, sizes = self.results(), self.truth.sizes_hw.tolist()
        rle = iter(self.masks().tolist() if self.has_masks else ())
        with atomic_file(Path(path)) as file:
            file.write("[")
            for image in np.split(results, np.flatnonzero(np.diff(results[:, 0])) + 1) if len(results) else ():
                row = int(image[0, 0]) - 1
                key = self.truth.image_keys[row] if self.truth.image_keys else {"image_id": int(image_ids[row])}
                entries = [
                    {**key, "category_id": category_ids[int(kind) - 1], "bbox": box, "score": score}
                    for _, *box, score, kind in image.tolist()
                ]
                for entry, counts in zip(entries, rle, strict=False):
                    entry["segmentation"] = {"size": sizes[row], "counts": counts}
                file.write("\n" if image[0, 0] == results[0, 0] else ",\n")
                file.write(b",\n".join(map(encode, entries)).decode())
            file.write("\n]\n")
        return len(results)


def read_ground_truth(source: str | Path | Mapping[str, Any]) -> CocoTruth:
    """Read the ground truth of a COCO JSON file, or of its content, with the file's own float64 values.

    As in pycocotools, an annotation of an unlisted image or category does not count. ``area`` defaults to
    the box's, ``iscrowd`` to 0.

    Raises:
        AnnotationError: The file cannot be read, is not COCO detection JSON, or an entry cannot be used.
    """
    where = "annotations" if isinstance(source, Mapping) else str(source)
    content = source if isinstance(source, Mapping) else _read_json(Path(source))
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), Sequence):
            raise AnnotationError(f"{where}: expected COCO detection JSON with a list {key!r}; it has none")
    # ids as numbers, in the order in which pycocotools sorts them
    annotations = content["annotations"]
    try:
        listed, refs, texts = _numbered(IdNumbers("image", Findings(where)), content["images"], annotations)
        category_ids, category_refs, category_texts = _numbered(
            IdNumbers("category", Findings(where)), content["categories"], annotations
        )
        categories = zip(category_ids.tolist(), content["categories"], strict=True)
        class_map = ClassMap.from_categories([{**entry, "id": number} for number, entry in categories])
        images = dict(zip(listed.tolist(), content["images"], strict=True))  # of one id, the last counts
        sizes = [[int(images[key].get(side) or 0) for side in ("height", "width")] for key in sorted(images)]
    except AnnotationError as error:
        raise AnnotationError(f"{where}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise AnnotationError(
            f"{where}: an image, annotation or category is none, or has no usable size or name ({error!r})"
        ) from error
    image_ids = np.array(sorted(images), dtype=np.int64)
    class_ids = positions_of(category_refs, np.array(class_map.category_ids, dtype=np.int64))
    return CocoTruth(
        image_ids=image_ids,
        sizes_hw=np.array(sizes, dtype=np.int64).reshape(-1, 2),
        class_map=class_map,
        image_keys=[{"image_id": texts.get(key, key)} for key in sorted(images)] if texts else (),
        category_id_texts=category_texts,
        **_annotation_columns(annotations, positions_of(refs, image_ids), class_ids, where),
    )


def _numbered(
    numbers: IdNumbers, listed: Sequence[Mapping[str, Any]], annotations: Sequence[Mapping[str, Any]]
) -> tuple[np.ndarray, np.ndarray, IdTexts]:
    """Return the ids of a list, those by which annotations refer to it, and the texts that they stand for."""
    what, key = f"{numbers.kind}s", f"{numbers.kind}_id"
    ids = numbers.take([entry.get("id", msgspec.UNSET) for entry in listed], "id", what)
    refs = numbers.take([entry.get(key, msgspec.UNSET) for entry in annotations], key, "annotations")
    return ids, refs, numbers.settle(ids, refs)


def _annotation_columns(
    annotations: Sequence[Mapping[str, Any]], image_rows: np.ndarray, class_rows: np.ndarray, where: str
) -> dict[str, Any]:
    # entries of listed images and categories
    entries = []
    rows_of = zip(image_rows.tolist(), class_rows.tolist(), annotations, strict=True)
    for number, (row, class_id, annotation) in enumerate(rows_of):
        try:
            x, y, width, height = (float(value) for value in annotation["bbox"])
            area = float(annotation["area"]) if annotation.get("area") is not None else width * height
            crowd = bool(annotation.get("iscrowd", 0))
        except (KeyError, TypeError, ValueError) as error:
            raise AnnotationError(
                f"{where}: annotation {number} needs bbox [x, y, width, height] and numbers, "
                f"got {error!r}; {CHECK_HINT}"
            ) from error
        if row >= 0 and class_id >= 0:
            entries.append((row, class_id, (x, y, width, height), area, crowd))
    entries.sort(key=lambda entry: entry[0])  # stable: annotations of an image keep their order
    # as columns
    rows, class_ids, boxes, areas, crowds = zip(*entries, strict=True) if entries else ((),) * 5
    columns = {
        "image_rows": np.array(rows, dtype=np.int64),
        "class_ids": np.array(class_ids, dtype=np.int64),
        "boxes_xywh": np.array(boxes, dtype=np.float64).reshape(-1, 4),
        "area": np.array(areas, dtype=np.float64),
        "iscrowd": np.array(crowds, dtype=bool),
    }
    if not (np.isfinite(columns["boxes_xywh"]).all() and np.isfinite(columns["area"]).all()):
        raise AnnotationError(f"{where}: a box or area is NaN or infinite; {CHECK_HINT}")
    return columns


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        content = parse_json(path.read_bytes())
    except OSError as error:
        raise AnnotationError(f"cannot read annotations {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise AnnotationError(f"{path} is not valid JSON, perhaps cut off: {error}") from error
    if not isinstance(content, dict):
        raise AnnotationError(f"{path} holds a {type(content).__name__}, expected a COCO JSON object")
    return content


def select_classes(truth: CocoTruth, class_ids: Sequence[int]) -> CocoTruth:
    """Return the same images with the annotations of some classes alone, given in ascending order."""
    if len(class_ids) == len(truth.class_map):
        return truth
    new_ids = np.full(len(truth.class_map), -1, dtype=np.int64)
    new_ids[class_ids] = np.arange(len(class_ids))
    kept = truth.select(new_ids[truth.class_ids] >= 0)
    return dataclasses.replace(
        kept, class_ids=new_ids[kept.class_ids], class_map=truth.class_map.select(class_ids)
    )
