from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from detrkit.data.faults import Ledger
from detrkit.data.read import read_coco

GOOD = [2, 2, 4, 4]


def write_coco(folder: Path, boxes: Sequence[Any], *, images: int = 2, missing: Sequence[int] = ()) -> Path:
    """A COCO file whose box k lies on image ``k % images``, under class ``k % 2``; some images have no file."""
    listed = [{"id": n + 1, "file_name": f"{n}.png", "width": 20, "height": 10} for n in range(images)]
    for n in set(range(images)) - set(missing):
        Image.new("RGB", (20, 10)).save(folder / f"{n}.png")
    annotations = [
        {"id": n + 1, "image_id": n % images + 1, "category_id": n % 2 + 1, **({"bbox": box} if box else {})}
        for n, box in enumerate(boxes)
    ]
    categories = [{"id": 1, "name": "box"}, {"id": 2, "name": "ball"}]
    path = folder / "train.json"
    path.write_text(json.dumps({"images": listed, "annotations": annotations, "categories": categories}))
    return path


@pytest.mark.parametrize(
    ("boxes", "missing", "left_out", "images_read"),
    [
        ([GOOD] * 4, (), {}, 3),
        ([GOOD, None, [0, 0, 0, 4], [50, 50, 4, 4], ["a", 0, 1, 1], GOOD], (), None, 3),
        ([GOOD] * 6, (1,), {"missing_image": 2}, 2),
        ([GOOD, None, GOOD, GOOD, GOOD, GOOD], (1,), {"missing_image": 1, "box_missing": 1}, 2),
    ],
)
def test_what_was_found_is_what_was_read_and_what_was_left_out(
    tmp_path: Path, boxes: list[Any], missing: tuple[int, ...], left_out: dict[str, int] | None, images_read: int
) -> None:
    path = write_coco(tmp_path, boxes, images=3, missing=missing)
    index, report = read_coco(path, tmp_path)
    ledger = report.ledger
    if left_out is None:
        left_out = dict.fromkeys(("box_missing", "box_empty", "box_outside", "box_not_finite"), 1)
    assert ledger.objects_left_out == left_out
    assert (ledger.objects_found, ledger.objects_read) == (len(boxes), len(index.labels))
    assert (ledger.images_found, ledger.images_read) == (3, images_read)
    last = next(reversed(report.lines()), "")
    assert (f"left out: {len(boxes) - len(index.labels)} of {len(boxes)} objects" in last) == bool(left_out)


def test_classes_and_most_objects_that_are_gone_are_named(tmp_path: Path) -> None:
    _, report = read_coco(write_coco(tmp_path, [GOOD] * 4, missing=[1]), tmp_path)
    assert report.ledger.classes == {"box": (2, 2), "ball": (2, 0)}
    assert report.ledger.losses() == ["no object is left of 1 class: ball"]  # half of all is not most
    _, report = read_coco(write_coco(tmp_path, [GOOD, GOOD, *[None] * 3, GOOD, None]), tmp_path)
    assert report.ledger.losses() == ["4 of 7 objects are lost"]
    assert "WARNING" in report.lines()[-1]


def test_copies_are_accounted_for_but_not_lost() -> None:
    ledger = Ledger(4, 1, {"duplicate_boxes": 3}, 1, 1)
    assert ledger.objects_lost == 0
    assert ledger.losses() == []


def test_an_account_that_does_not_add_up_is_refused() -> None:
    with pytest.raises(AssertionError):
        Ledger(objects_found=2, objects_read=1)
