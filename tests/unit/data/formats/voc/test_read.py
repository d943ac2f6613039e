from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detrkit.config import DataConfig
from detrkit.data.faults import ReadReport
from detrkit.data.formats import find_split
from detrkit.data.formats.voc.read import read_voc_file
from detrkit.data.index import CocoIndex
from detrkit.data.read import read_split_files
from detrkit.errors import AnnotationError, DataError
from tests.unit.data.factory import voc_xml, write_noise

HEIGHT, WIDTH = 40, 60
CAT = ("cat", 1, 2, 30, 20)


def data_set(root: Path, **files: str) -> Path:
    """One image per XML text."""
    for folder in ("JPEGImages", "Annotations"):
        (root / folder).mkdir(parents=True)
    for name, text in files.items():
        write_noise(root / "JPEGImages" / f"{name}.png", HEIGHT, WIDTH)
        (root / "Annotations" / f"{name}.xml").write_text(text, encoding="utf-8")
    return root


def read(root: Path) -> tuple[CocoIndex, ReadReport]:
    return read_split_files(find_split(root, "train"))


def counts(report: ReadReport) -> dict[str, int]:
    return {finding.kind: finding.count for finding in report.findings}


def test_bccd_is_what_its_coco_file_says(shared_data: Path) -> None:
    root = shared_data / "bccd_voc"
    for split, empty in (("train", 1), ("val", 1), ("test", 0)):
        voc, report = read_split_files(find_split(root, split, DataConfig(layout="voc")))
        coco, _ = read_split_files(find_split(root, split, DataConfig(layout="coco")))
        assert counts(report) == ({"box_empty": empty} if empty else {})
        assert voc.class_map.names == coco.class_map.names
        assert [voc.file_name(row) for row in range(len(voc))] == [coco.file_name(row) for row in range(len(coco))]
        np.testing.assert_array_equal(voc.boxes_xyxy, coco.boxes_xyxy)
        np.testing.assert_array_equal(voc.labels, coco.labels)


@pytest.mark.parametrize(
    ("change", "labels", "found"),
    [
        (lambda text: text.replace("<object>", "<Object>").replace("</object>", "</Object>"), 2, {}),
        (lambda text: text.replace("</object>", "", 1).replace("</annotation>", "</object></annotation>"), 2, {}),
        (
            lambda text: text.replace("<bndbox>", "<bndbox><xmin>1</xmin></bndbox><bndbox>", 1),
            2,
            {"box_not_finite": 1},
        ),
        (lambda text: text.replace("<bndbox>", "<part><name>head</name><bndbox/></part><bndbox>", 1), 2, {}),
    ],
)
def test_no_box_is_passed_over_wherever_it_stands(change: Any, labels: int, found: Any, tmp_path: Path) -> None:
    index, report = read(data_set(tmp_path, a=change(voc_xml("a.png", [CAT, ("dog", 3, 3, 20, 20)]))))
    assert len(index.labels) == labels
    assert counts(report) == found


def test_difficult_objects_are_crowd_and_said(tmp_path: Path) -> None:
    index, report = read(data_set(tmp_path, a=voc_xml("a.png", [CAT, (*CAT, 1), (*CAT, 0)])))
    assert index.iscrowd.tolist() == [False, True, False]
    assert "1 objects marked difficult (as crowd" in str(report)


@pytest.mark.parametrize(
    ("objects", "kept", "found"),
    [
        ([("cat", 30, 2, 1, 20), CAT], 2, {"box_negative": 1}),
        ([("cat", "x", 2, 30, 20), CAT], 1, {"box_not_finite": 1}),
        ([("", 1, 2, 30, 20), CAT], 1, {"unknown_category_id": 1}),
        ([("cat", 1, 2, 70, 20)], 1, {"box_leaves_image": 1}),
        ([("cat", 61, 2, 70, 20), CAT], 1, {"box_outside": 1}),
        ([("cat", "1,5", "2,0", "30", "20"), CAT], 2, {"label_line_with_commas": 1}),
        ([("cat", "1,5,0", 2, 30, 20), CAT], 1, {"box_not_finite": 1}),
    ],
)
def test_damaged_objects(tmp_path: Path, objects: list[tuple[Any, ...]], kept: int, found: dict[str, int]) -> None:
    index, report = read(data_set(tmp_path, a=voc_xml("a.png", objects)))
    assert (len(index.labels), counts(report)) == (kept, found)
    assert "label_line_with_commas" not in found or index.boxes_xyxy[0].tolist() == [1.5, 2, 30, 20]


def test_the_image_is_found_by_the_name_of_the_xml_file_or_what_it_says(tmp_path: Path) -> None:
    root = data_set(tmp_path, a=voc_xml("z.jpg", [CAT]), b=voc_xml("b", [CAT]), c=voc_xml("c.png", [CAT]))
    write_noise(root / "JPEGImages" / "d.png", HEIGHT, WIDTH)
    (root / "Annotations" / "other.xml").write_text(voc_xml("d.png", [CAT]))
    (root / "Annotations" / "gone.xml").write_text(voc_xml("gone.png", [CAT]))
    write_noise(root / "JPEGImages" / "e.png", HEIGHT, WIDTH)
    (root / "Annotations" / "e.png.xml").write_text(voc_xml("unknown", [CAT]))
    index, report = read(root)
    assert [index.file_name(row) for row in range(len(index))] == ["a.png", "b.png", "c.png", "d.png", "e.png"]
    assert counts(report) == {"file_name_in_xml": 2, "missing_image": 1}
    assert "a.xml says 'z.jpg', the image is a.png" in str(report)


def test_file_names_cannot_lead_out(tmp_path: Path) -> None:
    root = data_set(tmp_path / "set", a=voc_xml("a.png", [CAT]))
    write_noise(tmp_path / "secret.png", HEIGHT, WIDTH)
    (root / "Annotations" / "b.xml").write_text(voc_xml("../../secret.png", [CAT]))
    index, report = read(root)
    assert (len(index), counts(report)) == (1, {"missing_image": 1})


def test_a_broken_file_costs_its_image_only(tmp_path: Path) -> None:
    root = data_set(tmp_path, a=voc_xml("a.png", [CAT]), b="<annotation><object>", c="")
    index, report = read(root)
    assert len(index) == 1
    assert report.count("label_file_unreadable") == 2
    (root / "Annotations" / "a.xml").unlink()
    with pytest.raises(DataError, match=r"no XML file in .* can be read"):
        read(root)


def test_entities_are_refused_before_they_unfold(tmp_path: Path) -> None:
    entities = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 20))
    path = tmp_path / "a.xml"
    path.write_text(
        f'<!DOCTYPE x [<!ENTITY a0 "x">{entities}]><annotation><filename>&a19;</filename></annotation>'
    )
    with pytest.raises(AnnotationError, match="declares the entity 'a0', which is refused"):
        read_voc_file(path)
    path.write_text('<!DOCTYPE x [<!ENTITY f SYSTEM "file:///etc/passwd">]><annotation>&f;</annotation>')
    with pytest.raises(AnnotationError, match="declares the entity 'f'"):
        read_voc_file(path)


def test_no_object_anywhere(tmp_path: Path) -> None:
    root = data_set(tmp_path, a=voc_xml("a.png", []))
    with pytest.raises(DataError, match="no XML file holds an object"):
        read(root)


def test_objects_without_box_and_parts_with_box(tmp_path: Path) -> None:
    part = (
        "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
    )
    text = voc_xml("a.png", [CAT]).replace("</object>", f"{part}</object><object><name>cat</name>{part}</object>")
    index, report = read(data_set(tmp_path, a=text))
    assert index.boxes_xyxy.tolist() == [[1, 2, 30, 20]]
    assert counts(report) == {"box_missing": 1}
    assert "a.xml object 2: no box" in str(report)


@pytest.mark.parametrize(
    ("encoding", "declared"), [("gbk", "GBK"), ("gbk", ""), ("utf-16", "UTF-16"), ("utf-8", "GBK"), ("cp1252", "")]
)
def test_texts_are_decoded_as_declared_or_as_their_bytes_are(tmp_path: Path, encoding: str, declared: str) -> None:
    name = "café" if encoding == "cp1252" else "足球场"
    root = data_set(tmp_path, a="")
    declaration = f'<?xml version="1.0" encoding="{declared}"?>' if declared else ""
    text = declaration + voc_xml("a.png", [(name, *CAT[1:])])
    (root / "Annotations" / "a.xml").write_bytes(text.encode(encoding))
    index, _ = read(root)
    assert index.class_map.names == (name,)


def test_suffixes_in_any_case_with_lists_and_without(tmp_path: Path) -> None:
    root = data_set(tmp_path, a=voc_xml("a.png", [CAT]), b=voc_xml("b.png", [CAT]))
    (root / "Annotations" / "a.xml").rename(root / "Annotations" / "a.XML")
    index, report = read(root)
    assert (len(index), report.is_sound) == (2, True)
    (root / "ImageSets").mkdir()
    (root / "ImageSets" / "train.txt").write_text("a\n")
    index, _ = read(root)
    assert [index.file_name(row) for row in range(len(index))] == ["a.png"]


def test_where_nothing_can_be_read_the_first_reason_is_told(tmp_path: Path) -> None:
    root = data_set(tmp_path, a="<annotation><object>", b="<svg/>")
    for number in range(3):
        (root / "Annotations" / f"{number}.json").touch()
    with pytest.raises(DataError, match=r"can be read, for instance .*a\.xml: not valid XML: no element found"):
        read(root)
    (root / "Annotations" / "a.xml").write_text(voc_xml("a.png", [CAT]))
    _, report = read(root)
    assert counts(report) == {"label_file_unreadable": 1, "label_files_of_other_kind": 3}
    assert "b.xml: begins with <svg>" in str(report)
