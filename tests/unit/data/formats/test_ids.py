"""Ids that are texts: which are numbers, which get their own, and that nothing moves to another image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detrkit.curation.check import examine
from detrkit.curation.convert import convert_data
from detrkit.curation.divide import sample_data, split_data
from detrkit.curation.fix import fix_data
from detrkit.data.faults import ReadReport
from detrkit.data.index import CocoIndex
from detrkit.data.read import read_coco
from detrkit.errors import AnnotationError
from detrkit.evaluation.coco import ImageResults
from detrkit.evaluation.evaluator import CocoEvaluator
from detrkit.evaluation.truth import ground_truth_from_index
from tests.unit.data.factory import annotation, coco, write_noise

Objects = list[tuple[str, str, list[float]]]


def write_set(root: Path, ids: list[Any], refs: list[Any], **fields: list[Any]) -> Path:
    """Write images with these ids, and one annotation a reference, each with a box of its own."""
    root.mkdir(parents=True, exist_ok=True)
    images = [{"id": one, "file_name": f"i{row}.png", "height": 40, "width": 60} for row, one in enumerate(ids)]
    for row in range(len(ids)):
        write_noise(root / f"i{row}.png", 40, 60, seed=row)
    entries = [annotation(row + 1, ref, bbox=[row, 2, 20, 10], area=200) for row, ref in enumerate(refs)]
    for key, values in fields.items():
        for entry, value in zip(entries, values, strict=True):
            entry[key] = value
    names = sorted({str(entry["category_id"]) for entry in entries})
    categories = [{"id": entry["category_id"], "name": f"c{entry['category_id']}"} for entry in entries]
    content = coco(images, entries, [categories[[str(c["id"]) for c in categories].index(one)] for one in names])
    (root / "train.json").write_text(json.dumps(content), encoding="utf-8")
    return root / "train.json"


def objects(index: CocoIndex) -> Objects:
    """File name, class and box of every object."""
    rows = np.repeat(np.arange(len(index)), np.diff(index.offsets)).tolist()
    boxes = index.boxes_xyxy.tolist()
    return sorted(
        (index.file_name(row), index.class_map.names[index.labels[at]], boxes[at]) for at, row in enumerate(rows)
    )


def read(path: Path) -> tuple[CocoIndex, ReadReport]:
    return read_coco(path, path.parent)


@pytest.mark.parametrize(
    ("ids", "refs", "images", "said"),
    [
        (["1_11", "11_1", "111"], ["11_1", "1_11", "111"], [1, 0, 2], {"ids_numbered": 3}),
        (["a", "b"], ["b", "a", "b"], [1, 0, 1], {"ids_numbered": 2}),
        (["017", "17"], ["17", "017"], [1, 0], {"ids_numbered": 2}),
        (["17 ", "17"], ["17", "17 "], [1, 0], {"ids_numbered": 2}),
        (["+1", "1.0", "-1", "1e0"], ["-1", "+1", "1e0", "1.0"], [2, 0, 3, 1], {"ids_numbered": 4}),
        (["١", "1"], ["1", "١"], [1, 0], {"ids_numbered": 2}),  # an Arabic digit is a digit to int()
        (["9" * 30, "9" * 29], ["9" * 29, "9" * 30], [1, 0], {"ids_numbered": 2}),
        (["17", "4"], ["4", 17, 4.0], [1, 0, 1], {"id_is_text": 4}),
        ([17, 4], ["4", "17"], [1, 0], {"id_is_text": 2}),
        ([2, 1], ["1", "1"], [1, 1], {"id_is_text": 2}),
        (["a", "17"], [17, "a"], [1, 0], {"ids_numbered": 2}),  # 17 can only be "17"
        ([1, "a"], ["1", "a", 1], [0, 1, 0], {"ids_numbered": 1}),
        ([1, "1"], ["1", 1], [1, 0], {"ids_numbered": 1, "ids_alike": 1}),
    ],
)
def test_text_ids_stay_with_their_images(
    tmp_path: Path, ids: list[Any], refs: list[Any], images: list[int], said: dict[str, int]
) -> None:
    index, report = read(write_set(tmp_path, ids, refs))
    found = [(name, box[0]) for name, _, box in objects(index)]
    assert found == sorted((f"i{image}.png", float(row)) for row, image in enumerate(images))
    assert {finding.kind: finding.count for finding in report.findings} == said
    if "ids_numbered" in said:
        assert list(map(index.written_id, range(len(index)))) == ids
    texts = sorted(one for one in ids if isinstance(one, str))
    if said == {"ids_numbered": len(ids)}:  # in the order in which pycocotools has texts
        assert [ids[row] for row in np.argsort(index.image_ids)] == texts


def test_unlisted_text_is_named(tmp_path: Path) -> None:
    index, report = read(write_set(tmp_path, ["a", "b"], ["a", "c", "b"], category_id=["x", "x", "y"]))
    assert len(index.labels) == 2
    finding = next(one for one in report.findings if one.kind == "unknown_image_id")
    assert finding.examples == ("annotation 2: image c",)
    repeated = write_set(tmp_path, ["a", "a"], ["a"])
    with pytest.raises(AnnotationError, match=r"images\[1\] has id a, which images\[0\] has already"):
        read(repeated)


def test_categories_of_two_files_have_the_same_numbers(tmp_path: Path) -> None:
    maps = []
    for part, kinds in (("one", ["car", "bus"]), ("two", ["bus", "car"])):
        index, _ = read(write_set(tmp_path / part, [1, 2], [1, 2], category_id=kinds))
        maps.append(index.class_map)
        assert index.category_id_texts == {1: "bus", 2: "car"}
    assert maps[0] == maps[1]


def test_every_copy_keeps_the_texts(tmp_path: Path) -> None:
    ids, kinds = ["1_11", "11_1", "20_3", "2_03"], ["car", "bus", "car", "bus"]
    path = write_set(tmp_path / "set", ids, ids, category_id=kinds, id=["u-1", "u-2", "u_3", "u3"])
    source = json.loads(path.read_text())
    index, report = read(path)
    expected = objects(index)
    assert report.count("ids_numbered") == 4 + 4 + 2
    fixed = fix_data(examine(path.parent), tmp_path / "fix")
    assert fixed.is_clean
    convert_data(path.parent, tmp_path / "convert", "coco")
    sample_data(path.parent, tmp_path / "sample", 4)
    split_data(path.parent, tmp_path / "split", {"train": 0.5, "val": 0.5}, group=False)
    for way, parts in {"fix": 1, "convert": 1, "sample": 1, "split": 2}.items():
        files = sorted((tmp_path / way / "annotations").iterdir())
        assert len(files) == parts, way
        contents = [json.loads(file.read_text()) for file in files]
        for key in ("images", "annotations"):
            entries = [entry for content in contents for entry in content[key]]
            assert {entry["id"]: entry for entry in entries} == {entry["id"]: entry for entry in source[key]}, way
        assert sorted(entry["id"] for entry in contents[0]["categories"]) == ["bus", "car"], way
        again = [
            one for file in files for one in objects(read_coco(file, tmp_path / way / file.stem.split("_")[1])[0])
        ]
        assert sorted(again) == expected, way
    # formats without ids
    for to in ("yolo", "voc"):
        convert_data(path.parent, tmp_path / to, to)


def test_results_of_detrkit_have_the_texts(tmp_path: Path) -> None:
    path = write_set(tmp_path, ["b_1", "a_1"], ["b_1", "a_1"], category_id=["car", "bus"])
    evaluator = CocoEvaluator(ground_truth_from_index(read(path)[0]))
    evaluator.add(2, ImageResults(np.array([[0, 2, 20, 10.0]]), np.array([0.9]), np.array([1])))
    evaluator.write_results_json(tmp_path / "results.json")
    (entry,) = json.loads((tmp_path / "results.json").read_text())
    assert (entry["image_id"], entry["category_id"]) == ("b_1", "car")


def test_annotations_without_images_are_checked(tmp_path: Path) -> None:
    masks = [[[1, 2, 3, 4]], [[1, 1, 2, 2, 3, 3]], []]
    path = write_set(tmp_path, ["a", "b"], ["a", "b", "zz"], segmentation=masks)
    for image in tmp_path.glob("*.png"):
        image.unlink()
    kinds = {"images_not_found": 1, "missing_image": 2, "unknown_image_id": 1, "ids_numbered": 3}
    for data in (tmp_path, path):
        result = examine(data).result
        found = {finding.kind: finding.count for finding in result.findings}
        assert kinds.items() <= found.items()
        assert (found["mask_polygon_short"], found["mask_polygon_flat"]) == (1, 1)
