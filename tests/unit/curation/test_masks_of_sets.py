"""Masks and panoptic pictures through conversion, division and sampling."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detrkit.classes import ClassMap
from detrkit.curation.check import check_data
from detrkit.curation.convert import convert_data
from detrkit.curation.divide import sample_data, split_data
from detrkit.curation.preview import draw_sample
from detrkit.curation.stats import dataset_stats, mask_stats
from detrkit.curation.stats_report import printed_tables, write_stats_page
from detrkit.curation.synthetic import write_synthetic
from detrkit.data.coco import CocoDataset, SampleKey
from detrkit.data.formats import find_splits
from detrkit.data.formats.panoptic_write import paint_objects
from detrkit.data.index import CocoIndex
from detrkit.data.outlines import join_polygons, mask_outlines
from detrkit.data.read import read_split_files
from detrkit.data.segmentation import mask_rle, read_id_map
from detrkit.errors import DataError, UsageError
from tests.unit.data.factory import annotation, coco, image_entry, write

Masks = dict[str, list[tuple[str, np.ndarray]]]


def masks_of(data: Path, layout: Any = "auto", split: str = "train") -> tuple[CocoIndex, Masks]:
    """Class and pixels of each object that is no crowd, by image stem."""
    files = find_splits(data, layout, [split])[split]
    index, _ = read_split_files(files, masks=True)
    found: Masks = {}
    for row in range(len(index)):
        rows = np.arange(len(index.labels))[index.annotation_rows(row)]
        rows = rows[~index.iscrowd[rows]]
        pixels = index.masks.decode(rows, tuple(index.sizes_hw[row].tolist()))
        names = [index.class_map.names[label] for label in index.labels[rows]]
        found[Path(index.file_name(row)).stem] = list(zip(names, pixels, strict=True))
    return index, found


def ious(one: Masks, other: Masks) -> np.ndarray:
    """IoU of each mask with that of the same place; classes and numbers agree."""
    values = []
    for image, objects in one.items():
        assert [name for name, _ in objects] == [name for name, _ in other[image]]
        for (_, first), (_, second) in zip(objects, other[image], strict=True):
            values.append((first & second).sum() / max((first | second).sum(), 1))
    return np.array(values)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("masks") / "shapes", 10, 4, size=64, seed=5, masks=True)


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


def test_outlines_drawn_again_are_the_mask_with_its_holes() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        mask = np.array(Image.fromarray(random.random((5, 7)).astype(np.float32)).resize((40, 30))) > 0.5
        mask[10:13, 10:14], mask[0, 0] = False, True
        polygon = join_polygons(mask_outlines(mask))
        from hotcoco import mask as rle

        drawn = rle.decode(mask_rle([polygon.ravel().tolist()], mask.shape)) > 0
        assert (drawn == mask).mean() > 0.99
        assert (drawn & mask).sum() / (drawn | mask).sum() > 0.97


def test_the_smaller_lies_on_top_and_stuff_is_one_segment() -> None:
    masks = np.zeros((5, 4, 6), dtype=bool)
    masks[0, :2], masks[1, 1:4], masks[2, 1:3, 1:5], masks[3, 3:], masks[4, 1, 1] = True, True, True, True, True
    labels = np.array([1, 0, 0, 1, 0])  # sky, large, middle, sky again, small
    segments, rows = paint_objects(
        masks, labels, np.zeros(5, dtype=bool), ClassMap(("cat", "sky"), (1, 9), stuff=(1,))
    )
    assert rows.tolist() == [0, 1, 2, 4]
    assert segments.class_ids.tolist() == [1, 0, 0, 0]
    expected = [[1] * 6, [2, 4, 3, 3, 3, 2], [2, 3, 3, 3, 3, 2], [2] * 6]
    assert segments.ids.tolist() == expected
    assert segments.areas.tolist() == [6, 10, 7, 1]


def test_panoptic_to_coco_and_back(shapes: Path, tmp_path: Path) -> None:
    result = convert_data(shapes, tmp_path / "coco", "coco", layout="panoptic")
    assert "segments of stuff are left out" in result.notes[0]
    _, drawn = masks_of(shapes, "coco")
    _, back = masks_of(tmp_path / "coco")
    assert ious(drawn, back).min() == 1
    assert result.splits["train"].objects == sum(map(len, drawn.values()))
    with_stuff = convert_data(shapes, tmp_path / "stuff", "coco", layout="panoptic", stuff=True)
    assert {"sky", "grass", "sand"} < set(with_stuff.classes)
    assert "would be things" in with_stuff.notes[0]
    assert with_stuff.splits["train"].objects > result.splits["train"].objects
    assert not [one for one in check_data(tmp_path / "stuff").findings if one.severity != "note"]
    # the things alone as panoptic again: no two of the drawn shapes overlap, so nothing is lost
    again = convert_data(tmp_path / "coco", tmp_path / "again", "panoptic")
    assert again.notes[0].endswith("% of the pixels belong to no segment")
    assert len(again.notes) == 2
    _, found = masks_of(tmp_path / "again")
    for image, objects in drawn.items():
        key = {(name, mask.tobytes()) for name, mask in objects}
        assert {(name, mask.tobytes()) for name, mask in found[image]} == key
    assert not [one for one in check_data(tmp_path / "again").findings if one.severity != "note"]


def test_coco_to_panoptic_counts_what_is_not_seen(tmp_path: Path) -> None:
    square = [[10, 5, 30, 5, 30, 15, 10, 15]]
    boxes = [
        annotation(1, segmentation=square, bbox=[10, 5, 20, 10]),
        annotation(2, segmentation=square, bbox=[10, 5, 20, 10]),  # lies exactly on the first
        annotation(3, bbox=[40, 5, 10, 10], category_id=3),
        annotation(4, segmentation=[[0, 0, 40, 0, 40, 30, 0, 30]], bbox=[0, 0, 40, 30], iscrowd=1),
    ]
    path = write(tmp_path / "set", coco([image_entry()], boxes))
    result = convert_data(path, tmp_path / "out", "panoptic")
    (split,) = result.splits.values()
    assert split.ledger.objects_left_out == {"mask_missing": 1, "mask_covered": 1}
    assert (split.objects, split.ledger.objects_found) == (2, 4)
    assert result.unfit == ("instances: no object is left of 1 class: dog",)
    assert "200 pixels (8.33 %) lie in several masks" in result.notes[-1]
    content = json.loads(next((tmp_path / "out" / "annotations").glob("*.json")).read_text())
    (entry,) = content["annotations"]
    assert [(one["area"], one["iscrowd"]) for one in entry["segments_info"]] == [(200, 0), (1000, 1)]


def test_what_has_no_masks_cannot_be_panoptic(tmp_path: Path) -> None:
    path = write(tmp_path / "set", coco([image_entry()], [annotation()]))
    with pytest.raises(DataError, match="no object has a mask"):
        convert_data(path, tmp_path / "out", "panoptic")
    with pytest.raises(UsageError, match="expected yolo"):
        convert_data(path, tmp_path / "out", "voc", polygons=True)
    assert not (tmp_path / "out").exists()


def test_yolo_polygons_there_and_back(shapes: Path, tmp_path: Path) -> None:
    result = convert_data(shapes, tmp_path / "yolo", "yolo", layout="coco", polygons=True)
    assert result.notes == ()
    convert_data(tmp_path / "yolo", tmp_path / "coco", "coco")
    _, drawn = masks_of(shapes, "coco")
    _, back = masks_of(tmp_path / "coco")
    assert ious(drawn, back).min() > 0.9
    content = json.loads((tmp_path / "coco/annotations/instances_train.json").read_text())
    assert all(isinstance(one["segmentation"], list) for one in content["annotations"])
    boxes = convert_data(shapes, tmp_path / "boxes", "yolo", layout="coco")
    count = boxes.splits["train"].objects
    assert boxes.notes[0] == (
        f"train: the masks of {count} annotations are not written, their boxes are; with polygons: --polygons"
    )


@pytest.mark.parametrize("layout", ["auto", "panoptic"])
def test_division_keeps_pictures_and_entries_as_they_are(shapes: Path, tmp_path: Path, layout: Any) -> None:
    split_data(shapes, tmp_path / "out", {"train": 0.6, "val": 0.4}, split="train", layout=layout, group=False)
    source = json.loads((shapes / "annotations/panoptic_train2017.json").read_text())
    entries = {entry["file_name"]: entry for entry in source["annotations"]}
    images = {entry["id"]: entry for entry in source["images"]}
    original, seen = pictures(shapes / "annotations/panoptic_train2017"), []
    for part in ("train", "val"):
        written = json.loads((tmp_path / f"out/annotations/panoptic_{part}.json").read_text())
        found = pictures(tmp_path / f"out/annotations/panoptic_{part}")
        assert found == {name: original[name] for name in found}
        assert [entry["file_name"] for entry in written["annotations"]] == sorted(found)
        assert all(entries[entry["file_name"]] == entry for entry in written["annotations"])
        assert all(images[entry["id"]] == entry for entry in written["images"])
        assert written["categories"] == source["categories"]
        seen += [entry["file_name"] for entry in written["images"]]
    assert sorted(seen) == [entry["file_name"] for entry in source["images"]]
    has_boxes = (tmp_path / "out/annotations/instances_train.json").exists()
    assert has_boxes == (layout == "auto")
    assert not [one for one in check_data(tmp_path / "out").findings if one.severity != "note"]


def test_samples_keep_segmentations(shapes: Path, tmp_path: Path) -> None:
    sample_data(shapes, tmp_path / "out", 6)
    convert_data(shapes, tmp_path / "yolo", "yolo", layout="coco", polygons=True)
    sample_data(tmp_path / "yolo", tmp_path / "of-yolo", 6)
    for data, least in ((tmp_path / "out", 1.0), (tmp_path / "of-yolo", 0.9)):
        _, found = masks_of(data, "coco")
        _, drawn = masks_of(shapes, "coco")
        assert ious(found, drawn).min() >= least
    assert len(pictures(tmp_path / "out/annotations/panoptic_val")) >= 1


@pytest.mark.slow
def test_real_panoptic_pictures(shared_data: Path, tmp_path: Path) -> None:
    root = shared_data / "coco_panoptic_yolo"
    sample_data(root, tmp_path / "sample", 20, layout="panoptic")
    for split in ("train", "val"):
        found = pictures(tmp_path / f"sample/annotations/panoptic_{split}")
        original = pictures(root / f"annotations/panoptic_{split}2017")
        assert len(found) == 10
        assert found == {name: original[name] for name in found}
    assert not [one for one in check_data(tmp_path / "sample").findings if "panoptic" in one.kind]
    # things to polygons and back: outlines are exact to the pixel
    convert_data(tmp_path / "sample", tmp_path / "yolo", "yolo", polygons=True)
    for split in ("train", "val"):
        index, whole = masks_of(tmp_path / "sample", split=split)
        stuff = {index.class_map.names[class_id] for class_id in index.class_map.stuff}
        things = {image: [one for one in objects if one[0] not in stuff] for image, objects in whole.items()}
        assert ious(things, masks_of(tmp_path / "yolo", split=split)[1]).min() == 1
    # things and stuff to COCO and painted again: the same pixels
    convert_data(tmp_path / "sample", tmp_path / "coco", "coco", stuff=True)
    result = convert_data(tmp_path / "coco", tmp_path / "again", "panoptic")
    assert not [note for note in result.notes if "several masks" in note]
    for split in ("train", "val"):
        for path in (tmp_path / f"sample/annotations/panoptic_{split}").glob("*.png"):
            before = read_id_map(path)
            after = read_id_map(tmp_path / f"again/annotations/panoptic_{split}" / path.name)
            pairs = np.unique(np.stack([before.ravel(), after.ravel()]), axis=1)
            assert len(pairs[0]) == len(np.unique(before)) == len(np.unique(after))
    counts = {split: part.objects for split, part in result.splits.items()}
    assert not any(part.ledger.objects_left_out for part in result.splits.values()), counts


def test_stats_of_masks_are_those_of_the_pixels(shapes: Path, tmp_path: Path) -> None:
    read = {layout: masks_of(shapes, layout) for layout in ("coco", "panoptic")}
    sizes = [mask.sum() for objects in read["coco"][1].values() for _, mask in objects]
    for layout, (index, _) in read.items():
        stats = mask_stats(index)
        assert (stats.masks, stats.without) == (len(sizes), 0)
        things = index.things()
        assert np.count_nonzero(things.labels >= 0) == len(sizes)
        assert things.class_map.names == read["coco"][0].class_map.names
        boxes = (things.boxes_xyxy[:, 2:] - things.boxes_xyxy[:, :2]).prod(axis=1)
        assert stats.box_share.mean == pytest.approx((things.area / boxes).mean())
        assert (stats.area_share.least, stats.area_share.greatest) == (1, 1)
        assert (stats.void_share, len(stats.stuff)) == ((0, 3) if layout == "panoptic" else (None, 0))
        if layout == "panoptic":
            pixels = sum(own.share for own in stats.stuff) * len(index) * 64 * 64
            assert pixels + sum(sizes) == pytest.approx(len(index) * 64 * 64)
            told = dataset_stats({"train": things}, masks={"train": stats})
            tables = [table.title for table in printed_tables(told)]
            assert tables[3:5] == ["Masks", "Stuff: images that show it, and its share of all pixels"]
            assert told.to_dict()["masks"]["train"]["masks"] == len(sizes)
            write_stats_page(tmp_path / "page.html", "shapes", {"train": things}, told)
            assert "pixels of no segment" in (tmp_path / "page.html").read_text()
    index, _ = read_split_files(find_splits(shapes, "coco")["train"])
    assert mask_stats(index) is None


def test_masks_and_stuff_are_drawn_where_they_are(shapes: Path) -> None:
    index, _ = masks_of(shapes, "panoptic")
    images = find_splits(shapes, "panoptic")["train"].images
    dataset = CocoDataset(index, images, None, masks=True)
    for row in range(len(index)):
        image, target = dataset[SampleKey(0, row)]
        drawn = draw_sample(image, target, index.class_map).astype(int)
        plain = draw_sample(image, {key: one for key, one in target.items() if key != "masks"}, index.class_map)
        assert drawn.shape == plain.shape == (640, 640, 3)
        assert (drawn != plain).any(axis=2).mean() > 0.8  # no void: nearly every pixel is tinted
        labels = [index.class_map.names[label] for label in target["labels"].tolist()]
        assert len(labels) == len(target["masks"])
