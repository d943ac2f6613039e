"""Whether boxes were drawn before or after EXIF turns pictures is decided for a whole split."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from detrkit.curation.check import check_data
from detrkit.curation.check.run import examine
from detrkit.curation.convert import convert_data
from detrkit.curation.fix import fix_data
from detrkit.data import exif
from detrkit.data.formats import find_split
from detrkit.data.read import read_split_files
from detrkit.ops.images import decode_image, read_header, read_image_size, turn_boxes

WIDE, TALL, SQUARE = (64, 96), (96, 64), (80, 80)
FITS_BOTH, FITS_WIDE, FITS_TALL = (10, 20, 30, 12), (70, 20, 20, 30), (20, 70, 30, 20)


def make(
    root: Path, pictures: list[tuple[tuple[int, int], int]], boxes: list[tuple[int, ...]], seen: str = "stored"
) -> Path:
    """Write pictures with an EXIF orientation, and annotations of a tool that saw them as stored or upright.

    Args:
        root: Folder of the data set.
        pictures: Stored size (height, width) and orientation of each.
        boxes: Box of the object of each, where the tool saw it.
        seen: ``stored``, ``upright``, or ``size`` for boxes in the upright picture, but the stored size.
    """
    (root / "images").mkdir(parents=True)
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "thing"}]}
    for number, ((height, width), orientation) in enumerate(pictures):
        tag = Image.Exif()
        tag[0x0112] = orientation
        stored = Image.new("RGB", (width, height), (90, 90, 90))
        shown = stored if seen == "stored" else ImageOps.exif_transpose(_tagged(stored, tag))
        x, y, w, h = boxes[number % len(boxes)]
        pixels = np.array(shown)
        pixels[y : y + h, x : x + w] = (250, 0, 0)
        drawn = Image.fromarray(pixels)
        if seen != "stored":
            drawn = drawn.transpose(_BACK[orientation]) if orientation in _BACK else drawn
        drawn.save(root / "images" / f"{number}.png", exif=tag)
        size_wh = shown.size if seen == "upright" else stored.size
        content["images"].append(
            {"id": number, "file_name": f"{number}.png", "width": size_wh[0], "height": size_wh[1]}
        )
        content["annotations"].append(
            {"id": number, "image_id": number, "category_id": 1, "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0,
             "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]]}
        )  # fmt: skip
    (root / "train.json").write_text(json.dumps(content))
    return root


def _tagged(image: Image.Image, tag: Image.Exif) -> Image.Image:
    image.info["exif"] = tag.tobytes()
    return image


_BACK = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
         5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
         8: Image.Transpose.ROTATE_270}  # fmt: skip


def misses(root: Path) -> tuple[int, dict[str, int]]:
    """Return how many boxes or masks do not lie on their object, as training reads them, and the findings."""
    files = find_split(root, "train")
    index, report = read_split_files(files, masks=True)
    wrong = 0
    for row in range(len(index)):
        image = decode_image(files.images / index.file_name(row)).numpy()
        assert tuple(index.sizes_hw[row]) == image.shape[1:]
        red, rows = image[0] - image[2].astype(int) > 100, index.annotation_rows(row)
        for x1, y1, x2, y2 in index.boxes_xyxy[rows].astype(int).tolist():
            wrong += not (red[y1:y2, x1:x2].all() and red.sum() == (y2 - y1) * (x2 - x1))
        masks = [] if index.masks is None else index.masks.decode(rows, red.shape)
        wrong += sum(not np.array_equal(mask, red) for mask in masks)
    lost = "mask_missing"  # of pictures that were turned, the copy has none
    return wrong, {finding.kind: finding.count for finding in report.findings if finding.kind != lost}


@pytest.mark.parametrize(
    ("pictures", "boxes", "seen", "found"),
    [
        # all eight orientations, and one box in three that shows it
        ([(WIDE, o) for o in range(1, 9)], [FITS_BOTH, FITS_WIDE, FITS_BOTH], "stored", {"exif_ignored": 7}),
        # square and mirrored pictures go with the others
        ([(SQUARE, 6), (WIDE, 3), (WIDE, 8)], [FITS_BOTH, FITS_BOTH, FITS_WIDE], "stored", {"exif_ignored": 3}),
        ([(TALL, 6), (TALL, 8), (TALL, 1)], [FITS_TALL], "stored", {"exif_ignored": 2}),
        # the size without EXIF, boxes as people saw them: a box that fits only so, or none that tells
        ([(WIDE, 6), (WIDE, 8), (WIDE, 3)], [FITS_BOTH, FITS_TALL], "size", {"exif_rotated_size": 2}),
        ([(WIDE, 6), (WIDE, 8), (SQUARE, 5)], [FITS_BOTH], "size", {"exif_rotated_size": 2}),
        # a tool that honours EXIF
        ([(WIDE, o) for o in range(1, 9)], [FITS_BOTH], "upright", {}),
    ],
)  # fmt: skip
def test_boxes_lie_on_their_objects_in_training_conversion_and_the_repaired_copy(
    pictures: list[Any], boxes: list[Any], seen: str, found: dict[str, int], tmp_path: Path
) -> None:
    root = make(tmp_path / "set", pictures, boxes, seen)
    assert misses(root) == (0, found)
    kinds = {
        finding.kind: finding.count for finding in check_data(root).findings if finding.kind.startswith("exif")
    }
    kinds.pop("exif_orientation")
    assert kinds == found
    assert fix_data(examine(root), tmp_path / "fixed").after.is_clean
    convert_data(root, tmp_path / "coco", "coco")
    for copy in ("fixed", "coco"):
        assert misses(tmp_path / copy) == (0, {})
        content = json.loads((tmp_path / copy / "annotations" / "instances_train.json").read_text())
        assert all(entry["area"] == entry["bbox"][2] * entry["bbox"][3] for entry in content["annotations"])
        for entry in content["annotations"]:
            x, y, w, h = entry["bbox"]
            assert entry["segmentation"] in ([], [[x, y, x + w, y, x + w, y + h, x, y + h]]), (
                "no mask of another place"
            )


def test_where_no_box_shows_it_that_is_said(tmp_path: Path) -> None:
    root = make(tmp_path, [(WIDE, 6), (WIDE, 8)], [FITS_BOTH], "size")
    _, report = read_split_files(find_split(root, "train"))
    assert "no box shows" in str(report)


def test_pictures_of_two_tools_are_told_apart_by_their_sizes(tmp_path: Path) -> None:
    root = make(tmp_path / "set", [(WIDE, 6)] * 4, [FITS_BOTH, FITS_WIDE])
    content = json.loads((root / "train.json").read_text())
    for number in (2, 3):  # seen upright
        content["images"][number].update(width=64, height=96)
        content["annotations"][number]["bbox"] = [2, 2, 30, 90]
    (root / "train.json").write_text(json.dumps(content))
    index, report = read_split_files(find_split(root, "train"))
    assert report.count("exif_ignored") == 2
    assert index.boxes_xyxy[2].tolist() == [2, 2, 32, 92]


@pytest.mark.parametrize("upright", [2, 3])
def test_pictures_of_two_tools_that_both_write_the_stored_size_go_by_their_boxes(
    upright: int, tmp_path: Path
) -> None:
    root = make(tmp_path / "stored", [(WIDE, o) for o in (6, 5, 7)], [FITS_WIDE])
    other = make(tmp_path / "upright", [(WIDE, o) for o in (6, 8, 7)[:upright]], [FITS_TALL], "size")
    first, second = (json.loads((folder / "train.json").read_text()) for folder in (root, other))
    for entry in second["images"]:
        name = f"u{entry['file_name']}"
        (other / "images" / entry["file_name"]).rename(root / "images" / name)
        first["images"].append({**entry, "file_name": name, "id": 100 + entry["id"]})
    first["annotations"] += [
        {**entry, "id": 100 + entry["id"], "image_id": 100 + entry["image_id"]} for entry in second["annotations"]
    ]
    (root / "train.json").write_text(json.dumps(first))
    assert misses(root) == (0, {"exif_ignored": 3, "exif_rotated_size": upright})
    _, report = read_split_files(find_split(root, "train"))
    assert f"3 images fit only the stored picture, of {upright} only the upright one" in str(report)
    assert fix_data(examine(root), tmp_path / "fixed").after.is_clean
    assert misses(tmp_path / "fixed") == (0, {})


def test_a_large_split_is_sampled_and_read_whole_only_where_one_shows_the_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exif, "SAMPLE", 3)
    opened: list[Path] = []
    monkeypatch.setattr(exif, "read_header", lambda path: (opened.append(path), read_header(path))[1])
    sound = make(tmp_path / "sound", [(WIDE, 1)] * 20, [FITS_BOTH])
    assert misses(sound) == (0, {})
    assert len(opened) == 3
    faulty = make(tmp_path / "faulty", [(WIDE, 1), *[(WIDE, 6)] * 19], [FITS_WIDE])
    assert misses(faulty) == (0, {"exif_ignored": 19})


def test_evaluation_counts_the_turned_boxes(tmp_path: Path) -> None:
    index, _ = read_split_files(find_split(make(tmp_path, [(WIDE, 6)], [FITS_WIDE]), "train"))
    x1, y1, x2, y2 = index.boxes_xyxy[0]
    assert index.written.boxes_xywh.tolist() == [[x1, y1, x2 - x1, y2 - y1]]


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_headers_are_those_of_the_stored_picture_in_every_format(suffix: str, tmp_path: Path) -> None:
    for orientation in range(1, 9):
        tag = Image.Exif()
        tag[0x0112] = orientation
        path = tmp_path / f"{orientation}.{suffix}"
        Image.new("RGB", (60, 40)).save(path, exif=tag)
        assert read_header(path) == ((40, 60), orientation)
        assert read_image_size(path) == tuple(decode_image(path).shape[1:])


def test_boxes_turn_as_pictures_do() -> None:
    stored = np.zeros((40, 60, 3), np.uint8)
    stored[5:15, 20:50] = 255
    for orientation in range(1, 9):
        tag = Image.Exif()
        tag[0x0112] = orientation
        upright = np.asarray(ImageOps.exif_transpose(_tagged(Image.fromarray(stored), tag)))
        (x1, y1, x2, y2), = turn_boxes(np.array([[20, 5, 50, 15]]), orientation, (40, 60)).tolist()  # fmt: skip
        assert upright[y1:y2, x1:x2].all()
        assert upright.any(axis=2).sum() == 300


def test_real_pictures_of_a_clean_set_are_left_alone(shared_data: Path) -> None:
    files = find_split(shared_data / "coco_mini", "val")
    index, report = read_split_files(files)
    assert not report.count("exif_ignored") + report.count("exif_rotated_size")
    assert dataclasses.is_dataclass(index)
