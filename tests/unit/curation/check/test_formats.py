"""Faults in YOLO and VOC files are named with their file and line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detrkit.curation.check import CheckOptions, examine
from detrkit.curation.fix import fix_data

WIDTH, HEIGHT, IMAGES = 120, 80, 8


def alarms(root: Path) -> dict[str, int]:
    result = examine(root, CheckOptions(duplicates=False)).result
    return {finding.kind: finding.count for finding in result.findings if finding.severity != "note"}


def write_images(folder: Path) -> None:
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(IMAGES):
        pixels = random.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")


@pytest.fixture
def yolo(tmp_path: Path) -> Path:
    root = tmp_path / "yolo"
    write_images(root / "train" / "images")
    (root / "train" / "labels").mkdir()
    for number in range(IMAGES):
        lines = [f"0 0.{number + 1} 0.5 0.1 0.4", "1 0.5 0.2 0.3 0.2"]
        (root / "train" / "labels" / f"{number}.txt").write_text("\n".join(lines) + "\n")
    (root / "data.yaml").write_text("train: train/images\nnames: [cat, dog]\n")
    return root


YOLO_LINES = {
    "pixels": ("1 60 40 30 20", "box_in_pixels"),
    "unknown class": ("7 0.5 0.5 0.1 0.1", "unknown_category_id"),
    "no width": ("1 0.5 0.5 0 0.1", "box_empty"),
    "negative width": ("1 0.5 0.5 -0.1 0.1", "box_negative"),
    "outside": ("1 1.4 0.5 0.1 0.1", "box_outside"),
    "twice": ("1 0.5 0.2 0.3 0.2", "duplicate_boxes"),
    "words": ("a cat", "label_line_unreadable"),
    "NaN": ("1 nan 0.5 0.1 0.1", "box_not_finite"),
}


@pytest.mark.parametrize("name", YOLO_LINES)
def test_a_faulty_line_is_named_and_repaired(name, yolo, tmp_path):
    line, kind = YOLO_LINES[name]
    assert alarms(yolo) == {}
    path = yolo / "train" / "labels" / "3.txt"
    path.write_text(path.read_text() + line + "\n")
    checked = examine(yolo, CheckOptions(duplicates=False))
    (finding,) = [one for one in checked.result.findings if one.severity != "note"]
    assert (finding.kind, finding.count) == (kind, 1)
    assert "3.txt line 3" in finding.examples[0]
    fixed = fix_data(checked, tmp_path / "fixed")
    assert fixed.after.is_clean, fixed.after.lines()
    assert fixed.repaired == {kind: 1}


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    root = tmp_path / "voc"
    write_images(root / "JPEGImages")
    (root / "Annotations").mkdir()
    for number in range(IMAGES):
        write_xml(root, number, (10 + number, 20, 50, 60))
    return root


def write_xml(root: Path, number: int, box: tuple[float, ...], name: str = "cat", width: int = WIDTH) -> None:
    corners = "".join(
        f"<{key}>{value}</{key}>" for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    text = (
        f"<annotation><filename>{number}.png</filename><size><width>{width}</width><height>{HEIGHT}</height></size>"
        f"<object><name>{name}</name><bndbox>{corners}</bndbox></object></annotation>"
    )
    (root / "Annotations" / f"{number}.xml").write_text(text)


VOC_FAULTS = {
    "no extent": ({"box": (10, 20, 10, 20)}, {"box_empty": 1}),
    "outside": ({"box": (130, 20, 160, 60)}, {"box_outside": 1}),
    "normalised": ({"box": (0.1, 0.2, 0.5, 0.6)}, {"box_normalised": 1}),
    "size": ({"box": (10, 20, 50, 60), "width": 999}, {"size_mismatch": 1}),
    "case": ({"box": (10, 20, 50, 60), "name": "CAT"}, {"class_names_differ_by_case": 1}),
}


@pytest.mark.parametrize("name", VOC_FAULTS)
def test_a_faulty_xml_file_is_named_and_repaired(name, voc, tmp_path):
    changes, expected = VOC_FAULTS[name]
    assert alarms(voc) == {}
    write_xml(voc, 3, **changes)
    assert alarms(voc) == expected
    assert fix_data(examine(voc), tmp_path / "fixed").after.is_clean


def test_broken_xml_is_a_finding(voc):
    path = voc / "Annotations" / "2.xml"
    path.write_text(path.read_text()[:50])
    assert alarms(voc) == {"label_file_unreadable": 1}
