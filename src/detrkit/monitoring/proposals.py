"""Pictures that a model is least sure of, with its detections as proposals for labelling, as a COCO data set."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detrkit.classes import ClassMap
from detrkit.data.formats.coco.write import write_coco_json
from detrkit.data.formats.output import new_folder
from detrkit.files import SUFFIXES_BY_FORMAT
from detrkit.monitoring.observations import Observed
from detrkit.ops.images import read_format

SPLIT = "train"


def write_proposals(out: Path, observed: Sequence[Observed], class_map: ClassMap, model: str, most: int) -> int:
    """Write the least sure pictures and their detections, which carry their scores, into a new folder.

    Args:
        out: The folder; labelling tools read ``annotations/instances_train.json``, as does ``detrkit data``.
        observed: All pictures that were seen.
        class_map: Classes of the detections.
        model: What people call the model.
        most: Greatest number of pictures.

    Returns:
        Number of pictures.

    Raises:
        UsageError: The folder is not empty.
    """
    chosen = sorted(observed, key=lambda one: -one.doubt)[:most]
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    with new_folder(out) as folder:
        (folder / SPLIT).mkdir()
        (folder / "annotations").mkdir()
        for number, one in enumerate(chosen, 1):
            kind, _ = read_format(one.path, tuple(SUFFIXES_BY_FORMAT))
            name = f"{one.path.stem}{SUFFIXES_BY_FORMAT[kind][0]}"
            shutil.copyfile(one.path, folder / SPLIT / name)
            height, width = one.size_hw
            images.append(
                {"id": number, "file_name": name, "height": height, "width": width, "doubt": round(one.doubt, 4)}
            )
            seen = one.observation
            for box, score, class_id in zip(
                one.boxes_xyxy.astype(float).tolist(), seen.scores, seen.class_ids, strict=True
            ):
                sides = [box[2] - box[0], box[3] - box[1]]
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": class_map.category_ids[class_id],
                        "bbox": [*box[:2], *sides],
                        "area": sides[0] * sides[1],
                        "iscrowd": 0,
                        "score": score,
                    }
                )
        content = {
            "info": {
                "description": f"Proposals of {model}, to be corrected by people; they are no annotations yet"
            },
            "images": images,
            "annotations": annotations,
            "categories": [
                {"id": category_id, "name": name}
                for category_id, name in zip(class_map.category_ids, class_map.names, strict=True)
            ],
        }
        write_coco_json(folder / "annotations" / f"instances_{SPLIT}.json", content)
    return len(chosen)
