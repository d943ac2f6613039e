from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detrkit.data.faults import ReadReport
from detrkit.data.formats.coco.read import load_json
from detrkit.data.index import CocoIndex
from detrkit.data.read import read_coco
from detrkit.errors import AnnotationError, DataError, ImageError
from tests.unit.data.factory import CATEGORIES, annotation, coco, image_entry, write, write_noise


def read(folder: Path, content: Any, **options: Any) -> tuple[CocoIndex, ReadReport]:
    return read_coco(write(folder, content), folder, **options)


def test_sound_file_gives_an_empty_report(tmp_path: Path) -> None:
    index, report = read(
        tmp_path,
        coco([image_entry(9), image_entry(4)], [annotation(1, 4, category_id=3, area=77), annotation(2, 9)]),
    )
    assert report.is_sound
    assert report.lines() == []
    assert str(report).endswith("no faults")
    assert index.image_ids.tolist() == [9, 4]
    assert [index.file_name(row) for row in range(2)] == ["9.png", "4.png"]
    assert index.class_map.names == ("dog", "cat")
    assert index.labels.tolist() == [1, 0]
    assert index.area.tolist() == [200, 77]  # without an area that of the box is taken
    assert index.boxes_xyxy.tolist() == [[5, 6, 25, 16]] * 2
    assert index.offsets.tolist() == [0, 1, 2]
    assert index.annotation_ids.tolist() == [2, 1]


def test_real_coco_equals_pycocotools(shared_data: Path) -> None:
    from pycocotools.coco import COCO

    path = shared_data / "coco_mini" / "annotations" / "instances_train2017.json"
    index, report = read_coco(path, shared_data / "coco_mini" / "train2017")
    reference = COCO(path)
    assert report.is_sound
    assert len(index) == len(reference.imgs) == 180
    assert len(index.class_map) == 80
    for row, image_id in enumerate(index.image_ids.tolist()):
        rows = index.annotation_rows(row)
        expected = reference.loadAnns(reference.getAnnIds(imgIds=image_id))
        assert index.annotation_ids[rows].tolist() == [entry["id"] for entry in expected]
        assert index.iscrowd[rows].tolist() == [bool(entry["iscrowd"]) for entry in expected]
        assert index.area[rows].tolist() == [entry["area"] for entry in expected]
        categories = [index.class_map.category_ids[label] for label in index.labels[rows]]
        assert categories == [entry["category_id"] for entry in expected]
        boxes = index.boxes_xyxy[rows]
        xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
        np.testing.assert_allclose(xywh, np.array([e["bbox"] for e in expected]).reshape(-1, 4), atol=1e-9)


def test_05_boxes_outside_their_image_are_clipped_or_left_out(shared_data: Path) -> None:
    folder = shared_data / "bad_inputs" / "05_coco_boxes_outside_image" / "train"
    index, report = read_coco(folder / "_annotations.coco.json", folder)
    assert {finding.kind: finding.count for finding in report.findings} == {
        "box_outside": 1,
        "box_leaves_image": 17,
    }
    assert len(index) == 24
    assert len(index.labels) == 210
    assert 809 not in index.annotation_ids
    limits = np.repeat(index.sizes_hw, np.diff(index.offsets), axis=0)[:, ::-1]
    assert (index.boxes_xyxy >= 0).all()
    assert (index.boxes_xyxy[:, 2:] <= limits).all()
    assert (np.diff(index.offsets) == 0).sum() == 3


def test_06_and_11_text_numbers_and_image_ids_are_converted(shared_data: Path) -> None:
    folder = shared_data / "bad_inputs" / "06_coco_exif_rotated_string_boxes"
    index, report = read_coco(folder / "_annotations.coco.json", folder)
    assert [(finding.kind, finding.count) for finding in report.findings] == [("number_is_text", 4)]
    row = index.annotation_ids.tolist().index(4)
    np.testing.assert_allclose(index.boxes_xyxy[row], [191.746, 143.492, 191.746 + 669.2063, 143.492 + 403.8095])
    assert index.class_map.names == ("pens", "pen", *index.class_map.names[2:])  # the unused super-category stays
    folder = shared_data / "bad_inputs" / "11_coco_string_image_id"
    index, report = read_coco(folder / "gt_ignore_test.json", folder)
    assert (index.image_ids.tolist(), len(index.labels), report.count("id_is_text")) == ([2299], 14, 2)


def test_07_missing_file_is_left_out_or_an_error(shared_data: Path) -> None:
    folder = shared_data / "bad_inputs" / "07_coco_missing_file_and_empty" / "train"
    index, report = read_coco(folder / "_annotations.coco.json", folder)
    assert {finding.kind: finding.count for finding in report.findings} == {
        "missing_image": 1,
        "box_leaves_image": 4,
    }
    assert len(index) == 11
    assert all((folder / index.file_name(row)).is_file() for row in range(len(index)))
    assert "perspective_jpg" in report.lines()[0]
    with pytest.raises(ImageError, match="1 of 12 image files do not exist"):
        read_coco(folder / "_annotations.coco.json", folder, on_bad_image="error")


@pytest.mark.parametrize(
    ("fields", "defect"),
    [
        ({"bbox": [5, 6, 0, 10]}, "box_empty"),
        ({"bbox": [5, 6, 10, -3]}, "box_empty"),
        ({"bbox": [float("nan"), 6, 10, 3]}, "box_not_finite"),
        ({"bbox": [1, 6, "wide", 3]}, "box_not_finite"),
        ({"bbox": [1, 6, 3]}, "box_missing"),
        ({"bbox": None}, "box_missing"),
        ({"bbox": [60, 6, 10, 3]}, "box_outside"),
        ({"image_id": 99}, "unknown_image_id"),
        ({"category_id": 99}, "unknown_category_id"),
    ],
)
def test_unusable_annotation_is_left_out_and_counted(tmp_path: Path, fields: dict[str, Any], defect: str) -> None:
    index, report = read(tmp_path, coco([image_entry()], [annotation(1), annotation(2, **fields)]))
    assert index.annotation_ids.tolist() == [1]
    assert [(finding.kind, finding.count) for finding in report.findings] == [(defect, 1)]
    assert "2" in report.findings[0].examples[0]


def test_missing_size_is_read_from_the_file(tmp_path: Path) -> None:
    content = coco([image_entry(1, height=33, width=44)], [annotation(1, bbox=[1, 1, 10, 50])])
    write(tmp_path, content)
    del content["images"][0]["height"]
    index, report = read_coco(write(tmp_path, content, files=False), tmp_path)
    assert index.sizes_hw.tolist() == [[33, 44]]
    assert index.boxes_xyxy[0].tolist() == [1, 1, 11, 33]
    assert report.count("missing_size") == 1


def test_exchanged_width_and_height_are_turned_where_boxes_prove_it(tmp_path: Path) -> None:
    content = coco([image_entry(1, height=40, width=60)], [annotation(1, bbox=[2, 41, 10, 15])])
    path = write(tmp_path, content, files=False)
    write_noise(tmp_path / "1.png", 60, 40)
    index, report = read_coco(path, tmp_path)
    assert index.sizes_hw.tolist() == [[60, 40]]
    assert index.boxes_xyxy.tolist() == [[2, 41, 12, 56]]
    assert [finding.kind for finding in report.findings] == ["size_mismatch"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "holds a list, expected a COCO object"),
        (coco([], []), "the data set is empty"),
        (coco([image_entry()], [], []), "lists no categories"),
        ({"images": [], "annotations": []}, "has no 'categories'.*found 'images', 'annotations'"),
        ({"images": {}, "annotations": [], "categories": CATEGORIES}, "'images' is a dict, expected a list"),
        (coco([image_entry()], [3]), r"annotations\[0\] is a int"),
        (coco([image_entry(), image_entry()], []), r"images\[1\] has id 1, which images\[0\] has already"),
        (coco([{"id": 1, "height": 4, "width": 4}], []), r"images\[0\] \(id 1\) has file_name None"),
        (coco([image_entry() | {"id": 1.5}], []), r"images\[0\] has id 1.5, expected an integer"),
        (coco([image_entry() | {"id": ""}], []), r"images\[0\] has id '', expected an integer"),
        (coco([image_entry()], [{"id": 1, "bbox": [1, 2, 3, 4]}]), r"annotations\[0\] has no image_id"),
        (coco([image_entry()], [], [*CATEGORIES, CATEGORIES[0]]), "category ids repeat"),
        (coco([image_entry()], [], [{"id": 1}]), "category 1 has name None"),
    ],
)
def test_unusable_file_is_an_error_that_names_it(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DataError, match=message) as caught:
        read_coco(path, tmp_path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("text", ["", "not json", '{"images": [1, 2', '{"a": "b', "\xff\xfe"])
def test_text_that_is_not_json_is_an_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "instances.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(AnnotationError, match=r"instances\.json: not valid JSON"):
        load_json(path)
    with pytest.raises(AnnotationError, match="No such file"):
        load_json(tmp_path / "gone.json")


@pytest.mark.parametrize(
    "name", ["../secret.png", "/etc/passwd", "a/../../secret.png", "link/../secret.png", "link/../../secret.png"]
)
def test_file_name_outside_the_image_folder_is_refused(tmp_path: Path, name: str) -> None:
    write_noise(tmp_path / "secret.png", 40, 60)
    images = tmp_path / "images"
    images.mkdir()
    (tmp_path / "deep").mkdir()
    (images / "link").symlink_to(tmp_path / "deep")
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(coco([image_entry(1, name)], [])), encoding="utf-8")
    with pytest.raises(DataError, match=r"instances\.json: .*(outside the image folder|none of its 1 image)"):
        read_coco(path, images)


def test_links_in_the_image_folder_and_to_it_are_legal(tmp_path: Path) -> None:
    write(tmp_path / "store", coco([image_entry(1, "1.png")], []))
    write(tmp_path / "real", coco([image_entry(1, "a/1.png")], []))
    (tmp_path / "real" / "a" / "2.png").symlink_to(tmp_path / "real" / "a" / "1.png")
    (tmp_path / "real" / "b").symlink_to(tmp_path / "store")
    (tmp_path / "real" / "3.png").symlink_to(tmp_path / "store" / "1.png")
    (tmp_path / "alias").symlink_to(tmp_path / "real")
    images = [image_entry(number, name) for number, name in enumerate(["a/2.png", "b/1.png", "3.png"])]
    path = write(tmp_path / "alias", coco(images, []), files=False)
    index, report = read_coco(path, tmp_path / "alias")
    assert report.is_sound
    assert len(index) == 3


def square(left: int, top: int, right: int, bottom: int) -> list[list[int]]:
    return [[left, top, right, top, right, bottom, left, bottom]]


def rle(left: int, top: int, right: int, bottom: int, *, compressed: bool) -> dict[str, Any]:
    from pycocotools import mask

    pixels = np.zeros((40, 60), dtype=np.uint8, order="F")
    pixels[top:bottom, left:right] = 1
    encoded = mask.encode(pixels)
    if compressed:
        return {"size": [40, 60], "counts": encoded["counts"].decode()}
    flat = pixels.ravel(order="F")
    steps = np.flatnonzero(np.diff(flat)) + 1
    return {"size": [40, 60], "counts": np.diff([0, *steps, flat.size]).tolist()}


@pytest.mark.parametrize("cut", [1, 2, 5, 9, 0])
def test_no_box_comes_of_an_rle_that_is_cut_off_or_of_another_image(tmp_path: Path, cut: int) -> None:
    mask = rle(5, 6, 30, 21, compressed=True)
    mask["counts"] = mask["counts"][: len(mask["counts"]) - cut]
    image = image_entry(1, height=40 if cut else 41, width=60)
    entries = [annotation(1, bbox=[1, 2, 3, 4]), annotation(2, bbox=None, segmentation=mask)]
    index, report = read(tmp_path, coco([image], entries))
    assert index.boxes_xyxy.tolist() == [[1, 2, 4, 6]]
    assert report.ledger.objects_left_out == {"box_missing": 1}
    assert "annotation 2: " in report.examples("mask_unreadable")[0]


@pytest.mark.parametrize(
    ("flag", "is_crowd", "is_said"),
    [
        *((0, False, 0), (True, True, 0), (1.0, True, 0), (2, True, 1), (-1, True, 1), (0.5, True, 1)),
        *(
            ("1", True, 1),
            ("0", False, 1),
            ("false", False, 1),
            ("yes", True, 1),
            (None, False, 1),
            ([], False, 1),
        ),
    ],
)
def test_crowd_flags_are_those_of_pycocotools_and_odd_ones_are_said(
    tmp_path: Path, flag: Any, is_crowd: bool, is_said: int
) -> None:
    index, report = read(tmp_path, coco([image_entry()], [annotation(1, iscrowd=flag), annotation(2)]))
    assert index.iscrowd.tolist() == [is_crowd, False]
    assert report.count("crowd_flag_odd") == is_said


def test_a_key_that_an_annotation_has_twice_is_said_and_the_last_counts(tmp_path: Path) -> None:
    entries = [annotation(1, bbox=[1, 2, 3, 4], attributes={"bbox": 1}), annotation(2, bbox=[5, 6, 7, 8])]
    path = write(tmp_path, coco([image_entry()], entries))
    text = path.read_text().replace('"bbox": [5, 6, 7, 8]', '"bbox": [0, 0, 2, 2], "bbox": [5, 6, 7, 8]')
    path.write_text(text)
    index, report = read_coco(path, tmp_path)
    assert index.boxes_xyxy.tolist() == [[1, 2, 4, 6], [5, 6, 12, 14]]
    assert report.examples("repeated_keys") == ("annotations[1]: 'bbox'",)


def test_annotations_without_an_id_get_numbers_that_no_other_has_and_that_are_not_0(tmp_path: Path) -> None:
    entries = [annotation(number) for number in (0, 2, 0, 3, 0)]
    for entry in entries[::2]:
        del entry["id"]
    index, report = read(tmp_path, coco([image_entry()], entries))
    assert index.annotation_ids.tolist() == [1, 2, 4, 3, 5]
    assert report.count("annotation_ids_missing") == 3


@pytest.mark.parametrize("box", ["missing", None, [], [None] * 4])
def test_box_comes_from_the_mask_where_none_is_given(tmp_path: Path, box: Any) -> None:
    bounds = [5, 6, 30, 21]
    two = [*square(5, 6, 9, 9), *square(20, 15, 30, 21)]
    masks = [
        square(*bounds),
        square(*bounds)[0],
        two,
        rle(*bounds, compressed=True),
        rle(*bounds, compressed=False),
    ]
    entries = [annotation(row + 1, segmentation=mask, bbox=box) for row, mask in enumerate(masks)]
    entries.append(annotation(6, bbox=[1, 2, 3, 4], segmentation=square(10, 10, 20, 20)))  # its box is its own
    entries += [annotation(7, bbox=box, segmentation=[[1, 2, 3, 4]]), annotation(8, bbox=box, segmentation=[])]
    entries += [annotation(9, bbox=box, segmentation={"size": [40, 60], "counts": "!!"})]
    for entry in entries:
        if entry["bbox"] == "missing":
            del entry["bbox"]
    index, report = read(tmp_path, coco([image_entry()], entries))
    assert index.boxes_xyxy.tolist() == [bounds] * 5 + [[1, 2, 4, 6]]
    assert index.area.tolist() == [375, 375, 72, 375, 375, 12]
    assert {one.kind: one.count for one in report.findings} == {
        "box_from_mask": 5,
        "box_missing": 3,
        "mask_unreadable": 1,
    }
    assert report.ledger.objects_left_out == {"box_missing": 3}


@pytest.mark.parametrize(
    ("degrees", "mask", "expected"),
    [
        (0.0, [], [10, 15, 50, 25]),
        (180, [], [10, 15, 50, 25]),
        (90.0, [], [25, 0, 35, 40]),
        (-90, square(10, 15, 50, 25), [25, 0, 35, 40]),  # the polygon is the rectangle before the turn
        ("30,0", [], [30 - 19.8205, 20 - 14.3301, 30 + 19.8205, 20 + 14.3301]),
        (330, [[12, 10, 50, 20, 48, 30, 10, 20]], [10, 10, 50, 30]),  # it is the turned one
    ],
)
def test_box_around_the_turned_rectangle_is_taken(tmp_path: Path, degrees: Any, mask: Any, expected: Any) -> None:
    attributes = {"occluded": False, "rotation": degrees}
    entry = annotation(bbox=[10, 15, 40, 10], attributes=attributes, segmentation=mask)
    index, report = read(tmp_path, coco([image_entry()], [entry, annotation(2, attributes={"rotation": None})]))
    np.testing.assert_allclose(index.boxes_xyxy, [expected, [5, 6, 25, 16]], atol=1e-3)
    assert report.count("box_turned") == (degrees not in (0.0, 180))


def test_a_turned_box_is_turned_once(tmp_path: Path) -> None:
    from detrkit.curation.convert import convert_data

    entry = annotation(bbox=[10, 15, 40, 10], attributes={"rotation": 90, "occluded": True})
    path = write(tmp_path / "set", coco([image_entry()], [entry]))
    path.rename(tmp_path / "set" / "train.json")
    convert_data(tmp_path / "set", tmp_path / "out", "coco")
    written = json.loads((tmp_path / "out" / "annotations" / "instances_train.json").read_text())["annotations"][0]
    assert (written["bbox"], written["attributes"]) == ([25, 0, 10, 40], {"occluded": True})


@pytest.mark.parametrize(
    ("value", "number"), [("1,5", 1.5), (" 2.5 ", 2.5), ("1e1", 10), (".5", 0.5), ("1_0", None), ("1.234,5", None)]
)
def test_numbers_as_text(tmp_path: Path, value: str, number: float | None) -> None:
    index, report = read(
        tmp_path, coco([image_entry(width=60)], [annotation(bbox=[value, 2, 3, 4]), annotation(2)])
    )
    assert index.boxes_xyxy[:-1].tolist() == ([] if number is None else [[number, 2, number + 3, 6]])
    assert report.count("number_is_text") == report.count("box_not_finite") + 1 - 2 * (number is None)


def test_areas_and_sizes_as_text_are_counted(tmp_path: Path) -> None:
    content = coco([image_entry()], [annotation(area="12,5", iscrowd="1"), annotation(2, area="7")])
    write(tmp_path, content)
    content["images"][0] |= {"width": "60"}
    index, report = read_coco(write(tmp_path, content, files=False), tmp_path)
    assert (index.area.tolist(), index.iscrowd.tolist()) == ([12.5, 7], [True, False])
    assert (index.sizes_hw.tolist(), report.count("number_is_text")) == ([[40, 60]], 3)


@pytest.mark.parametrize(
    ("encoding", "name", "said"),
    [
        ("utf-8-sig", "球", 0),
        ("utf-16", "球", 1),
        ("utf-16-be", "cat", 1),
        ("gbk", "纸箱", 1),
        ("latin-1", "Röhre", 1),
        ("shift_jis", "猫", -1),
        ("cp1251", "кошка", -1),
    ],
)
def test_json_is_read_in_its_encoding_or_refused(tmp_path: Path, encoding: str, name: str, said: int) -> None:
    path = write(tmp_path, coco([image_entry()], [annotation()], [{"id": 7, "name": name}]))
    text = json.dumps(json.loads(path.read_text()), ensure_ascii=False)
    path.write_bytes(text.encode(encoding))
    if said < 0:
        with pytest.raises(AnnotationError, match=r"instances\.json: byte \d+ is 0x.*save it as UTF-8"):
            read_coco(path, tmp_path)
        return
    index, report = read_coco(path, tmp_path)
    assert (index.class_map.names, report.count("text_not_utf8")) == ((name,), said)


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ('{"images": [1, 2,]}', "byte 17.*line 1 .*comma too much before ']'; remove it"),
        ('{"images": [],\n}\n', "line 2|line 1.*comma too much before '}'; remove it"),
        ('{"images": [1, 2', "byte 16.*cut off"),
        ('{"images": [1, tru', "cut off"),
        ('{"images": []} }', "Extra data"),
        ("{'images': []}", "property name"),
    ],
)
def test_fault_of_a_json_text_is_named(tmp_path: Path, text: str, facts: str) -> None:
    path = tmp_path / "instances.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(AnnotationError, match=f"(?s)instances.json: .*{facts}"):
        load_json(path)


def test_two_lists_of_one_name_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, coco([image_entry()], [annotation()]))
    path.write_text(path.read_text()[:-1] + ', "annotations": []}')
    with pytest.raises(AnnotationError, match="has 'annotations' twice"):
        read_coco(path, tmp_path)


def test_half_a_character_in_a_name_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, coco([image_entry()], []))
    for whole in ('"1.png"', '"cat"'):
        broken = path.with_name("broken.json")
        broken.write_text(path.read_text().replace(whole, r'"\ud800"'), encoding="utf-8")
        with pytest.raises(AnnotationError, match=r"broken\.json: .*expected (a path|text)"):
            read_coco(broken, tmp_path)


def test_lvis_images_are_named_by_their_address(tmp_path: Path) -> None:
    content = coco([image_entry()], [annotation()])
    path = write(tmp_path, content)
    del content["images"][0]["file_name"]
    content["images"][0]["coco_url"] = "https://images.example.org/train2017/1.png"
    index, report = read_coco(write(tmp_path, content, files=False), tmp_path)
    assert (index.file_name(0), len(index.labels), path.name) == ("1.png", 1, "instances.json")
    assert [one.kind for one in report.findings] == ["file_name_from_url"]
