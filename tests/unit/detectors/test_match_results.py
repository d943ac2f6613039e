"""Results of other tools: whose images, classes and boxes are written otherwise than the data set's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detrkit.api.evaluate import evaluate
from detrkit.config import Config
from detrkit.data.split import Split, read_split
from detrkit.detectors.on_split import collect
from detrkit.detectors.results import ResultsFile
from detrkit.errors import DataError
from tests.unit.detectors.splits import split_of, write_split

Entries = list[dict[str, Any]]
SIDE = 100


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Split:
    """Ten images img_1.png to img_10.png of ids 1 to 10, two objects each, of category ids 1 and 7."""
    return coco_split(tmp_path_factory.mktemp("coco"), "img_{}.png")


def coco_split(root: Path, name: str, order: int = 1) -> Split:
    random = np.random.default_rng(0)
    annotations = [
        {"image_id": image, "category_id": category, "bbox": [x, y, 25 + image, 15 + image]}
        for image in range(1, 11)
        for category, (x, y) in zip((1, 7), random.integers((5, 60), (55, 70), (2, 2)).tolist(), strict=True)
    ]
    names = {number: name.format(number if order == 1 else 11 - number) for number in range(1, 11)}
    write_split(root, [(SIDE, SIDE)] * 10, annotations, names=names)
    return split_of(root)


def yolo_split(root: Path, names: list[str], classes: int = 3) -> Split:
    """A YOLO set with two objects an image, of classes 0 to ``classes - 1`` in turn."""
    random = np.random.default_rng(1)
    for folder in ("images/val", "labels/val", "images/train"):
        (root / folder).mkdir(parents=True)
    for number, name in enumerate(names):
        Image.new("L", (SIDE, SIDE)).save(root / "images/val" / name)
        boxes = random.uniform(0.3, 0.4, (2, 4)) * (1, 1, 0.5 + number / 20, 0.5 + number / 20) + (0.1, 0.1, 0, 0)
        lines = [
            f"{(2 * number + one) % classes} " + " ".join(f"{value:.4f}" for value in box)
            for one, box in enumerate(boxes)
        ]
        (root / "labels/val" / name).with_suffix(".txt").write_text("\n".join(lines), encoding="utf-8")
    listed = ", ".join(f"c{number}" for number in range(classes))
    text = f"path: {root}\ntrain: images/train\nval: images/val\nnames: [{listed}]\n"
    (root / "data.yaml").write_text(text, encoding="utf-8")
    return read_split(Config(), "val", root, strict=True)


def perfect(split: Split) -> Entries:
    """Every object, found with a score of its own."""
    index, written = split.index, split.index.written
    assert written is not None
    return [
        {
            "image_id": int(index.image_ids[row]),
            "category_id": index.class_map.category_ids[label],
            "bbox": box,
            "score": 0.9 - 0.01 * number,
        }
        for number, (row, label, box) in enumerate(
            zip(written.image_rows.tolist(), written.labels.tolist(), written.boxes_xywh.tolist(), strict=True)
        )
    ]


def measured(tmp_path: Path, split: Split, entries: Entries | bytes) -> tuple[float, str]:
    """AP, and what is said about the file."""
    path = tmp_path / "found.json"
    path.write_bytes(entries if isinstance(entries, bytes) else json.dumps(entries).encode())
    bound = ResultsFile(path).bind(split)
    return collect(bound, split).finish()["AP"], " ".join(bound.notes)


def with_box(change: Callable[[float, float, float, float], list[float]]) -> Callable[[Entries], Entries]:
    return lambda entries: [{**entry, "bbox": change(*entry["bbox"])} for entry in entries]


def with_values(**change: Callable[[Any], Any]) -> Callable[[Entries], Entries]:
    return lambda entries: [{**entry, **{key: of(entry[key]) for key, of in change.items()}} for entry in entries]


BOXES = {
    "corners": with_box(lambda x, y, w, h: [x, y, x + w, y + h]),
    "centre": with_box(lambda x, y, w, h: [x + w / 2, y + h / 2, w, h]),
    "shares": with_box(lambda x, y, w, h: [x / SIDE, y / SIDE, w / SIDE, h / SIDE]),
    "shares of centres": with_box(lambda x, y, w, h: [(x + w / 2) / SIDE, (y + h / 2) / SIDE, w / SIDE, h / SIDE]),
    "shares of corners": with_box(lambda x, y, w, h: [x / SIDE, y / SIDE, (x + w) / SIDE, (y + h) / SIDE]),
}


@pytest.mark.parametrize("way", BOXES)
def test_boxes_that_fit_another_way_only_are_read_so_and_named(tmp_path: Path, coco: Split, way: str):
    ap, said = measured(tmp_path, coco, BOXES[way](perfect(coco)))
    assert ap == pytest.approx(1)
    words = way.split()
    assert ("normalised" in said) == (words[0] == "shares")
    assert ("corners" in said, "centre" in said) == ("corner" in words[-1], "centre" in words[-1])
    assert "0 as written" in said or way == "centre"


def test_boxes_as_they_should_be_are_measured_to_the_last_bit(tmp_path: Path, coco: Split):
    entries = perfect(coco)
    assert measured(tmp_path, coco, entries) == (pytest.approx(1), "")
    # a bad detector: no box is where an object is, many leave the image
    random = np.random.default_rng(3)
    bad = [{**entry, "bbox": random.uniform(40, 60, 4).tolist()} for entry in entries * 5]
    assert "measured as written" in measured(tmp_path, coco, bad)[1]
    boxes = np.array([entry["bbox"] for entry in bad])
    found = ResultsFile(tmp_path / "found.json").detect(coco)
    assert (
        np.sort(np.concatenate([image.boxes_xywh for _, image in found]), axis=0).tolist()
        == np.sort(boxes, axis=0).tolist()
    )


WRITTEN = {
    "bom": (lambda entries: b"\xef\xbb\xbf" + json.dumps(entries).encode(), ""),
    "utf-16": (lambda entries: json.dumps(entries).encode("utf-16"), ""),
    "ids as text": (with_values(image_id=str, category_id=str), ""),
    "ids as text with zeros": (with_values(image_id="{:08}".format), ""),
    "ids as fractions": (with_values(image_id=float, category_id=float), ""),
    "numbers as text": (with_values(score=str, bbox=lambda box: [str(value) for value in box]), "20 entries"),
    "stems": (with_values(image_id="img_{}".format), "name, stem or number"),
    "file names": (lambda entries: [rename(entry, "img_{}.png") for entry in entries], ""),
    "paths": (lambda entries: [rename(entry, "/data/val/img_{}.png") for entry in entries], ""),
    "class names": (with_values(category_id={1: "cat", 7: "dog"}.get), "class names"),
    "places of classes": (with_values(category_id={1: 0, 7: 1}.get), "counted from 0"),
    "percent": (with_values(score=lambda score: 100 * score), "percent"),
    "another class besides": (
        lambda entries: [*entries, {**entries[0], "category_id": 5}],
        "5; 1 of 21 detections",
    ),
    "another image besides": (
        lambda entries: [*entries, {**entries[0], "image_id": 99}],
        "99; 1 of 21 detections",
    ),
    "copies": (lambda entries: [*entries, {**entries[0], "score": 0.1}], "1 detection of found.json repeat"),
    "one score": (with_values(score=lambda _score: 1), "All scores"),
}


def rename(entry: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key != "image_id"} | {
        "file_name": name.format(entry["image_id"])
    }


@pytest.mark.parametrize("way", WRITTEN)
def test_results_are_read_as_forgivingly_as_annotations(tmp_path: Path, coco: Split, way: str):
    change, note = WRITTEN[way]
    ap, said = measured(tmp_path, coco, change(perfect(coco)))
    assert ap == pytest.approx(1)
    assert note in said if note else said == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_values(image_id=lambda number: number + 500), "10 image ids are not in .*20 of 20"),
        (with_values(image_id="other_{}".format), "'other_1'"),
        (with_values(category_id=lambda number: number + 50), "2 category ids are not in .*51, 57; 20 of 20"),
    ],
)
def test_a_file_that_is_mostly_of_something_else_is_refused(
    tmp_path: Path, coco: Split, change: Any, message: str
):
    with pytest.raises(DataError, match=message):
        measured(tmp_path, coco, change(perfect(coco)))


def test_file_names_and_what_lies_in_the_images_decide_over_ids_that_mean_another_image(tmp_path: Path):
    split = coco_split(tmp_path, "{}.png", order=-1)  # image 1 is 10.png
    by_stem = with_values(image_id=lambda number: 11 - number)(perfect(split))
    ap, said = measured(tmp_path, split, by_stem)
    assert ap == pytest.approx(1)
    assert "1 is 1.png" in said or "10 is 10.png" in said
    named = [{**entry, "file_name": f"{entry['image_id']}.png"} for entry in by_stem]
    ap, said = measured(tmp_path, split, named)
    assert ap == pytest.approx(1)
    assert "file_name decides" in said
    assert measured(tmp_path, split, perfect(split)) == (pytest.approx(1), "")


NUMBERS = [f"{number}.png" for number in range(1, 13)]
NAMES = [f"p{number}.png" for number in range(1, 13)]


@pytest.mark.parametrize("names", [NUMBERS, [f"{number:06}.png" for number in range(3, 15)], NAMES])
@pytest.mark.parametrize("key", ["image_id", "stem", "file_name", "both"])
def test_a_set_without_ids_is_matched_by_name(tmp_path: Path, names: list[str], key: str):
    split = yolo_split(tmp_path / "set", names)
    index = split.index
    stems = {int(index.image_ids[row]): index.file_name(row).rpartition("/")[2][:-4] for row in range(len(index))}
    entries = perfect(split)
    for entry in entries:
        stem = stems[entry.pop("image_id")]
        if key in ("image_id", "both", "stem"):  # Ultralytics' way, but for the last
            entry["image_id"] = int(stem) if stem.isdecimal() and key != "stem" else stem
        if key in ("file_name", "both"):
            entry["file_name"] = f"{stem}.png"
    ap, said = measured(tmp_path, split, entries)
    assert ap == pytest.approx(1)
    assert ("number of the file" in said) == (key in ("image_id", "stem"))
    one_too_far = with_values(category_id=lambda number: number + 1)(entries)
    ap, said = measured(tmp_path, split, one_too_far)
    assert ap == pytest.approx(1)
    assert "counted from 1" in said


def test_numbers_that_name_no_image_of_a_set_without_ids_are_refused(tmp_path: Path):
    split = yolo_split(tmp_path / "set", NAMES)
    with pytest.raises(DataError, match=r"no ids of their own .*1 is p1\.png, 2 is p10\.png.*file_name"):
        measured(tmp_path, split, perfect(split))


@pytest.mark.parametrize("names", [NUMBERS, NAMES])
def test_what_detrkit_wrote_for_a_set_without_ids_is_read_again(tmp_path: Path, names: list[str]):
    split = yolo_split(tmp_path / "set", names)
    path = tmp_path / "own.json"
    named = with_values(image_id={n + 1: split.index.file_name(n) for n in range(12)}.get)(perfect(split))
    (tmp_path / "found.json").write_text(json.dumps(named), encoding="utf-8")
    collect(ResultsFile(tmp_path / "found.json"), split).write_results_json(path)
    assert "file_name" in json.loads(path.read_text(encoding="utf-8"))[0]
    content = path.read_bytes()
    assert measured(tmp_path, split, content) == (pytest.approx(1), "")
    # as versions before wrote it: by the place of the image, without its name
    lines = [{key: one for key, one in entry.items() if key != "file_name"} for entry in json.loads(content)]
    old = "[\n" + ",\n".join(json.dumps(entry, separators=(",", ":")) for entry in lines) + "\n]\n"
    ap, said = measured(tmp_path, split, old.encode())
    assert ap == pytest.approx(1)
    assert "which detrkit wrote" in said


def test_a_file_for_a_part_of_the_split_is_told_apart(tmp_path: Path, coco: Split):
    ap, said = measured(tmp_path, coco, perfect(coco)[:4])
    assert ap < 0.3
    assert "8 of the 10 images with objects have no detection" in said


def test_no_detections_are_legal(tmp_path: Path, coco: Split):
    assert measured(tmp_path, coco, []) == (0, "")


def test_annotations_without_a_box_are_named_where_the_number_stands(tmp_path: Path):
    split = coco_split(tmp_path, "img_{}.png")
    entries, path = perfect(split), Path(split.files.annotations)
    content = json.loads(path.read_text(encoding="utf-8"))
    content["annotations"][3]["bbox"] = None
    path.write_text(json.dumps(content), encoding="utf-8")
    (tmp_path / "found.json").write_text(json.dumps(entries), encoding="utf-8")
    evaluation = evaluate(tmp_path / "found.json", path, explain=False, resamples=0)
    assert evaluation.metrics.objects == 19
    assert "untouched file has no AP" in "".join(evaluation.notes)


def test_mutated_files_are_read_or_refused(tmp_path: Path, coco: Split):
    random = np.random.default_rng(5)
    junk = [None, True, -1, 1e308, "", "51", [], {}, "nan", 2**70, [1, 2, 3, 4], float("nan")]
    path, refused = tmp_path / "found.json", 0
    for _ in range(150):
        entries: list[Any] = perfect(coco)
        for row in random.integers(0, len(entries), 2):
            key = ("image_id", "category_id", "bbox", "score", "file_name")[random.integers(5)]
            entries[row] = {**entries[row], key: junk[random.integers(len(junk))]}
        content = bytearray(json.dumps(entries).encode())
        if random.random() < 0.3:
            at = int(random.integers(len(content)))
            content[at : at + int(random.integers(1, 40))] = random.bytes(2)
        path.write_bytes(content)
        try:
            collect(ResultsFile(path).bind(coco), coco).finish()
        except DataError:
            refused += 1
    assert 50 < refused < 150


def test_texts_as_ids_match_and_are_written_back(tmp_path: Path):
    split = coco_split(tmp_path, "img_{}.png")
    entries, path = perfect(split), Path(split.files.annotations)
    content = json.loads(path.read_text(encoding="utf-8"))
    for image in content["images"]:
        image["id"] = f"{image['id']}_{image['id']}"
    for annotation in (*content["annotations"], *entries):
        annotation["image_id"] = f"{annotation['image_id']}_{annotation['image_id']}"
    path.write_text(json.dumps(content), encoding="utf-8")
    split = split_of(tmp_path)
    assert measured(tmp_path, split, entries) == (pytest.approx(1), "")
    collect(ResultsFile(tmp_path / "found.json"), split).write_results_json(tmp_path / "own.json")
    own = json.loads((tmp_path / "own.json").read_text(encoding="utf-8"))
    assert {entry["image_id"] for entry in own} == {entry["image_id"] for entry in entries}
    assert measured(tmp_path, split, (tmp_path / "own.json").read_bytes()) == (pytest.approx(1), "")
