"""Labels, class lists and names in other layouts than the format's own: read rightly and said, or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detrkit.curation.check import CheckOptions, examine
from detrkit.curation.fix import fix_data
from detrkit.data.faults import ReadReport
from detrkit.data.formats import find_splits
from detrkit.data.index import CocoIndex
from detrkit.data.read import read_split_files
from detrkit.errors import DataError
from tests.unit.data.factory import write_noise

WIDTH, HEIGHT = 60, 40
NAMES = ("cat", "dog", "fox")
BOXES = [
    [(6, 4, 20, 12), (30, 8, 24, 30)],
    [(12, 20, 10, 16), (2, 2, 54, 34)],
    [(40, 4, 10, 12), (16, 18, 30, 20)],
]
"""Left, top, width and height of two objects in each of three images; the class is the place modulo 3."""
Line = Callable[[int, int], str]


def class_of(image: int, place: int) -> int:
    return (2 * image + place) % 3


def line(image: int, place: int) -> str:
    left, top, width, height = BOXES[image][place]
    shares = (left + width / 2) / WIDTH, (top + height / 2) / HEIGHT, width / WIDTH, height / HEIGHT
    return " ".join(map(str, (class_of(image, place), *shares)))


def pixels(image: int, place: int) -> str:
    left, top, width, height = BOXES[image][place]
    return " ".join(map(str, (class_of(image, place), left, top, left + width, top + height)))


def yolo(
    root: Path,
    line: Line = line,
    text: str = "cat\ndog\nfox\n",
    *,
    head: str = "",
    tail: str = "",
    stems: Callable[[int], str] = str,
) -> Path:
    (root / "labels").mkdir()
    (root / "images").mkdir()
    for image in range(len(BOXES)):
        write_noise(root / "images" / f"{image}.png", HEIGHT, WIDTH)
        lines = "".join(f"{line(image, place)}\n" for place in (0, 1))
        (root / "labels" / f"{stems(image)}.txt").write_text(head + lines + tail)
    (root / "classes.txt").write_text(text)
    return root


def read(root: Path) -> tuple[CocoIndex, ReadReport]:
    ((_, files),) = find_splits(root).items()
    return read_split_files(files)


def check_objects(index: CocoIndex, names: tuple[str, ...] = NAMES) -> None:
    """All objects are there, on their image and of their class."""
    found = set()
    for row in range(len(index)):
        rows = index.annotation_rows(row)
        for corners, label in zip(index.boxes_xyxy[rows], index.labels[rows].tolist(), strict=True):
            box = tuple(np.rint([*corners[:2], *(corners[2:] - corners[:2])]).astype(int).tolist())
            image = int(index.file_name(row)[-5])
            found.add((image, box, index.class_map.names[label]))
    places = [(image, place) for image in range(len(BOXES)) for place in (0, 1)]
    assert found == {(image, BOXES[image][place], names[class_of(image, place)]) for image, place in places}


def check_everywhere(root: Path, out: Path, kinds: dict[str, int], names: tuple[str, ...] = NAMES) -> None:
    """Reading and the repaired copy have all objects, and say what was odd."""
    index, report = read(root)
    check_objects(index, names)
    assert {finding.kind: finding.count for finding in report.findings} == kinds
    assert report.ledger.objects_left_out == {}
    check_copy(root, out, names)


def check_copy(root: Path, out: Path, names: tuple[str, ...] = NAMES) -> None:
    fixed = fix_data(examine(root, CheckOptions(duplicates=False, workers=1)), out)
    assert fixed.is_clean
    assert all(not ledger.objects_left_out for ledger in fixed.ledgers.values())
    check_objects(read(out)[0], names)


@pytest.mark.parametrize(
    ("text", "odd", "names"),
    [
        ("cat\n\nfox\n", 1, ("cat", "class_1", "fox")),
        ("cat\ndog\nfox\n\n\n", 0, NAMES),
        ("0: cat\n1: dog\n2: fox\n", 3, NAMES),
        ("1 dog\n0 cat\n2 fox\n", 3, NAMES),
        ("# classes\ncat\ndog\nfox", 1, NAMES),
        ("#1\n#2\n#3\n", 0, ("#1", "#2", "#3")),
        ("1 cent\n2 cent\n3 cent\n", 0, ("1 cent", "2 cent", "3 cent")),
    ],
)
def test_lines_of_class_lists_are_counted_as_meant(
    tmp_path: Path, text: str, odd: int, names: tuple[str, ...]
) -> None:
    (tmp_path / "set").mkdir()
    kinds = {"class_list_lines": odd} if odd else {}
    check_everywhere(yolo(tmp_path / "set", text=text), tmp_path / "out", kinds, names)


@pytest.mark.parametrize("text", ["\ncat\ndog\nfox\n", "cat\n\ndog\nfox\n", "cat\n# dog\nfox\n"])
def test_class_lists_that_can_be_counted_in_two_ways_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match="labels use the classes 0, 1, 2: do these lines count or not"):
        read(yolo(tmp_path, text=text))


@pytest.mark.parametrize(
    ("head", "tail", "passed"),
    [
        ("class x y w h\n", "", 3),
        ("# made by hand\n# class x y w h\n", "# end\n// end\n", 12),
        ("2\n", "", 3),
        ("", "\n\n", 0),
    ],
)
def test_lines_that_are_no_objects_are_passed_over_and_counted(
    tmp_path: Path, head: str, tail: str, passed: int
) -> None:
    (tmp_path / "set").mkdir()
    kinds = {"label_line_no_object": passed} if passed else {}
    check_everywhere(yolo(tmp_path / "set", head=head, tail=tail), tmp_path / "out", kinds)


def test_comments_behind_objects_are_no_part_of_them(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    root = yolo(tmp_path / "set", lambda *at: f"{line(*at)} # a cat")
    check_everywhere(root, tmp_path / "out", {"label_line_no_object": 6})


def test_nul_bytes_are_damage(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    root = yolo(tmp_path / "set", tail="\0" * 99)
    check_everywhere(root, tmp_path / "out", {"label_file_damaged": 3})
    for image in (0, 1):
        (root / "labels" / f"{image}.txt").write_bytes(b"\0" * 512)
    index, report = read(root)
    assert len(index) == 1
    assert "holds only NUL bytes" in report.examples("label_file_unreadable")[0]
    assert report.ledger.losses() == ["label files of 2 of 3 images cannot be read"]
    fixed = fix_data(examine(root, CheckOptions(duplicates=False, workers=1)), tmp_path / "other")
    assert not fixed.is_clean


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda at, number: [number, 0.9 - at / 20, *at_box(at)], "a confidence before the box"),
        (lambda at, number: [number, *at_box(at), 3 + at], "a track id"),
        (
            lambda at, number: [number, *at_box(at), *(0.6 if n == number else 0.3 for n in range(3))],
            "a score of each class",
        ),
    ],
)
def test_columns_beside_the_box_are_told_from_all_lines(
    tmp_path: Path, made: Callable[[int, int], list[float]], words: str
) -> None:
    (tmp_path / "set").mkdir()
    root = yolo(tmp_path / "set", lambda image, place: row_text(made(2 * image + place, class_of(image, place))))
    check_everywhere(root, tmp_path / "out", {"extra_numbers": 6})
    assert read(root)[1].examples("extra_numbers")[0].endswith(f": {words}")


def row_text(numbers: list[float]) -> str:
    return " ".join(map(str, numbers))


def at_box(at: int) -> list[str]:
    return line(*divmod(at, 2)).split()[1:]


@pytest.mark.parametrize(
    "angles", [(17, 171, 88, 3, 140, 64), (0, 90, 45, 0, 90, 90), (5, 5, 9, 9, 7, 7), (1.5, -0.2, 3, 0, 1, 2)]
)
def test_angles_are_no_track_ids(tmp_path: Path, angles: tuple[float, ...]) -> None:
    with pytest.raises(DataError, match="6 of 6 lines of its labels cannot be understood"):
        read(yolo(tmp_path, lambda image, place: f"{line(image, place)} {angles[2 * image + place]}"))


def test_corners_in_pixels_are_one_decision_for_the_split(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    root = yolo(tmp_path / "set", pixels)
    with pytest.raises(DataError, match="6 boxes in pixels where the format has 0"):
        read(root)
    check_copy(root, tmp_path / "out")


@pytest.mark.parametrize("stems", [lambda image: f"0a1b2c3{image}-{image}", lambda image: f"other_{image}"])
def test_labels_of_other_names_are_found_by_rule_or_lost_with_a_word(
    tmp_path: Path, stems: Callable[[int], str]
) -> None:
    (tmp_path / "set").mkdir()
    root = yolo(tmp_path / "set", stems=stems)
    if stems(0).endswith("-0"):
        check_everywhere(root, tmp_path / "out", {"label_file_name_rule": 3})
        return
    with pytest.raises(DataError, match="none of its 6 annotations can be used"):
        read(root)
    assert not fix_data(examine(root, CheckOptions(duplicates=False, workers=1)), tmp_path / "out").is_clean


Change = Callable[[dict[str, Any], int], object]


def coco(
    root: Path, change: Change = lambda entry, image: None, *, file: str = "train/_annotations.coco.json"
) -> Path:
    """A COCO file, ``change`` being called for each entry with the image that it is or lies on."""
    images, annotations = [], []
    for image, boxes in enumerate(BOXES):
        name = f"{image}.png"
        (root / "train").mkdir(exist_ok=True)
        write_noise(root / "train" / name, HEIGHT, WIDTH)
        images.append({"id": image + 1, "file_name": name, "width": WIDTH, "height": HEIGHT})
        change(images[-1], image)
        for place, box in enumerate(boxes):
            entry = {"id": len(annotations) + 1, "image_id": image + 1, "category_id": class_of(image, place) + 1}
            annotations.append({**entry, "bbox": list(box)})
            change(annotations[-1], image)
    categories = [{"id": number, "name": name} for number, name in enumerate(NAMES, start=1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / file).parent.mkdir(exist_ok=True)
    (root / file).write_text(json.dumps(content))
    return root


@pytest.mark.parametrize("file", ["train/_annotations.coco.json", "annotations/instances_train.json"])
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("export/train/{}.png", "file_name_rule"),
        ("/home/me/set/{}.png", "absolute_file_name"),
        ("C:\\set\\{}.png", "absolute_file_name"),
        ("https://example.org/set/{}.png?size=1#top", "file_name_rule"),
        ("train/0a1b2c3d-{}.png", "file_name_rule"),
    ],
)
def test_names_are_matched_by_one_rule_for_reading_and_repair(
    tmp_path: Path, name: str, kind: str, file: str
) -> None:
    (tmp_path / "set").mkdir()

    def change(entry: dict[str, Any], image: int) -> None:
        if "file_name" in entry:
            entry["file_name"] = name.format(image)

    check_everywhere(coco(tmp_path / "set", change, file=file), tmp_path / "out", {kind: 3})


@pytest.mark.parametrize(
    ("key", "written"),
    [
        ("image_id", lambda entry, image: f"{image}.png"),
        ("image_id", lambda entry, image: f"{image + 1:06}"),
        ("category_id", lambda entry, image: NAMES[entry["category_id"] - 1]),
        ("bbox", lambda entry, image: str(entry["bbox"])),
        ("bbox", lambda entry, image: " ".join(f"{side},0" for side in entry["bbox"])),
        ("bbox", lambda entry, image: dict(zip(("x", "y", "width", "height"), entry["bbox"], strict=True))),
        ("bbox", lambda entry, image: corners_of(*entry["bbox"])),
    ],
)
def test_references_by_name_and_boxes_in_words_are_read(
    tmp_path: Path, key: str, written: Callable[[dict[str, Any], int], object]
) -> None:
    (tmp_path / "set").mkdir()

    def change(entry: dict[str, Any], image: int) -> None:
        if key in entry:
            entry[key] = written(entry, image)

    kinds = {"number_is_text" if key == "bbox" else "id_by_name": 6}
    check_everywhere(coco(tmp_path / "set", change), tmp_path / "out", kinds)


def corners_of(left: int, top: int, width: int, height: int) -> dict[str, int]:
    return {"xmin": left, "ymin": top, "xmax": left + width, "ymax": top + height}


def test_numbers_that_are_names_of_images_and_ids_of_others_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()

    def change(entry: dict[str, Any], image: int) -> None:
        if "image_id" in entry:
            entry["image_id"] = f"{image:02}"
        else:
            entry["id"] = (image + 1) % 3

    with pytest.raises(DataError, match="an image that is not listed"):
        read(coco(tmp_path / "set", change))


@pytest.mark.parametrize("which", ["blanks", "some corners", "all corners"])
def test_blanks_and_exchanged_corners_of_voc_are_put_right_and_counted(tmp_path: Path, which: str) -> None:
    root = tmp_path / "set"
    (root / "JPEGImages").mkdir(parents=True)
    for image, boxes in enumerate(BOXES):
        write_noise(root / "JPEGImages" / f"{image}.png", HEIGHT, WIDTH)
        objects = []
        for place, box in enumerate(boxes):
            corners = corners_of(*box)
            if which == "all corners" or (which == "some corners" and (image, place) == (1, 0)):
                corners |= {"xmin": corners["xmax"], "xmax": corners["xmin"]}
            name = (
                f" {NAMES[class_of(image, place)]} "
                if which == "blanks" and place
                else NAMES[class_of(image, place)]
            )
            sides = "".join(f"<{side}>{value}</{side}>" for side, value in corners.items())
            objects.append(f"<object><name>{name}</name><bndbox>{sides}</bndbox></object>")
        (root / "Annotations").mkdir(exist_ok=True)
        size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
        text = f"<annotation><filename>{image}.png</filename>{size}{''.join(objects)}</annotation>"
        (root / "Annotations" / f"{image}.xml").write_text(text)
    count = {"blanks": 3, "some corners": 1, "all corners": 6}[which]
    check_everywhere(root, tmp_path / "out", {"class_name_spaces" if which == "blanks" else "box_negative": count})
