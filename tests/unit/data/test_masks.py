from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detrkit.config import Config, DataConfig, TransformConfig, update_config
from detrkit.data import segmentation
from detrkit.data.augment import augment_batch
from detrkit.data.coco import CocoDataset, Sample, SampleKey
from detrkit.data.compose import load_composed
from detrkit.data.faults import ReadReport
from detrkit.data.formats import SplitFiles, find_split
from detrkit.data.index import CocoIndex
from detrkit.data.loader import EvaluationBatchSampler, build_loader, collate
from detrkit.data.masks import ObjectMasks, turn_upright
from detrkit.data.read import read_split_files
from detrkit.data.split import read_split
from detrkit.data.transforms import train_transform
from detrkit.errors import DataError, ImageError
from detrkit.masks import nearest
from detrkit.ops.images import DecodeTarget, turn_boxes
from detrkit.types import Batch

from .factory import annotation, coco, image_entry, write, write_noise
from .scenes import OPTION_CONFIGS, RECIPE_CONFIGS, SIZES, DenseMasks, Scenes, random_scene

COCO, PANOPTIC = DataConfig(layout="coco"), DataConfig(layout="panoptic")
TRIANGLE = [[5, 6, 25, 6, 5, 16]]


def sizes_of(index: CocoIndex, row: int) -> tuple[int, int]:
    height, width = index.sizes_hw[row].tolist()
    return height, width


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools
@pytest.mark.parametrize(("root", "split"), [("coco_mini", "train"), ("coco_panoptic_yolo", "train")])
def test_real_masks_equal_those_of_pycocotools(root: str, split: str, shared_data: Path) -> None:
    from pycocotools.coco import COCO as Reference

    files = find_split(shared_data / root, split, COCO)
    index, report = read_split_files(files, masks=True)
    assert report.is_sound
    assert index.masks is not None
    assert index.masks.is_given.all()
    reference = Reference(str(files.annotations))
    kinds = set()
    for row in range(0, len(index), 3):
        rows, size_hw = index.annotation_rows(row), sizes_of(index, row)
        ids = index.annotation_ids[rows].tolist()
        found, encoded = index.masks.decode(rows, size_hw), index.masks.encode(rows, size_hw)
        for number, mask, rle in zip(ids, found, encoded, strict=True):
            assert np.array_equal(mask, reference.annToMask(reference.anns[number]))
            assert rle["counts"].encode() == reference.annToRLE(reference.anns[number])["counts"]
            kinds.add(type(reference.anns[number]["segmentation"]))
    assert kinds == {list, dict}
    assert index.written is not None
    assert len(index.written.masks or ()) == len(index.written.labels)


def test_real_panoptic_segments_are_things_and_stuff(shared_data: Path) -> None:
    root = shared_data / "coco_panoptic_yolo"
    files = find_split(root, "val", stuff=True)
    assert files.format == "panoptic"
    assert "data.layout=coco" in files.reason
    index, report = read_split_files(files, masks=True)
    assert report.is_sound
    assert index.masks is not None
    assert (len(index.labels), index.iscrowd.sum()) == (490, 3)
    assert (len(index.class_map), len(index.class_map.stuff)) == (133, 53)
    assert np.isin(index.labels, index.class_map.stuff).sum() == 147
    content = json.loads(files.annotations.read_text())
    segments = {entry["image_id"]: entry for entry in content["annotations"]}
    for row in range(len(index)):
        entry = segments[int(index.image_ids[row])]
        pixels = np.asarray(Image.open(files.listings[0] / entry["file_name"]), dtype=np.int64)
        ids = pixels[..., 0] + 256 * pixels[..., 1] + 65536 * pixels[..., 2]
        found = index.masks.decode(index.annotation_rows(row), sizes_of(index, row))
        expected = {info["id"]: ids == info["id"] for info in entry["segments_info"]}
        assert len(found) == len(expected)
        for mask, info in zip(found, entry["segments_info"], strict=True):
            assert np.array_equal(mask, expected[info["id"]])


def test_polygons_of_yolo_are_masks_and_boxes_among_them_are_filled(tmp_path: Path) -> None:
    for split in ("images", "labels"):
        (tmp_path / split / "train").mkdir(parents=True)
    lines = []
    for number in range(4):
        write_noise(tmp_path / "images" / "train" / f"{number}.png", 40, 60)
        polygon = [5 / 60, 6 / 40, 25 / 60, 6 / 40, 5 / 60, (16 + number) / 40, 4 / 60, 11 / 40, 4 / 60, 9 / 40]
        lines = [f"0 {' '.join(map(str, polygon[: 6 + 2 * (number % 3)]))}"] * 2
        (tmp_path / "labels" / "train" / f"{number}.txt").write_text(
            "\n".join([*lines, "1 0.5 0.5 0.2 0.2"][number:])
        )
    (tmp_path / "data.yaml").write_text("train: images/train\nnames: [cat, dog]\n")
    files = find_split(tmp_path, "train")
    index, report = read_split_files(files, masks=True)
    assert index.masks is not None
    assert index.masks.is_given.tolist() == [True, True, False, True, False, False]
    assert report.count("mask_missing") == 3
    assert "labels/train/0.txt line 3" in str(report)
    expected = ObjectMasks.pack([json.dumps(TRIANGLE).encode()]).decode(slice(1), (40, 60))
    assert np.array_equal(index.masks.decode(slice(1), (40, 60)), expected)
    assert index.masks.decode(np.array([2]), (40, 60))[0].sum() == 12 * 8
    assert read_split_files(files)[0].masks is None


RLE_2X3 = {"size": [40, 60], "counts": [45, 2, 38, 2, 40 * 60 - 87]}
BROKEN = {
    "mask_missing": [],
    "mask_unreadable": {"size": [40, 60], "counts": [10]},
    "mask_empty": {"size": [40, 60], "counts": [2400]},
    "mask_polygon_short": [[1, 2, 3, 4]],
    "mask_polygon_flat": [[1, 2, 3, 2, 9, 2]],
    "mask_outside_image": [[1, 2, 1e8, 2, 1e8, 1e8]],
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_mask_that_cannot_be_used_is_counted_and_its_box_filled(kind: str, tmp_path: Path) -> None:
    entries = [
        annotation(1, segmentation=TRIANGLE),
        annotation(2, segmentation=BROKEN[kind], bbox=[50, 30, 20, 20]),
        annotation(3, segmentation=RLE_2X3, iscrowd=1),
    ]
    index, report = read(write(tmp_path, coco([image_entry()], entries)))
    assert index.masks is not None
    assert index.masks.is_given.tolist() == [True, False, True]
    assert report.count(kind) == 1
    assert "annotation 2" in str(report)
    assert "the box is filled" in str(report)
    found = index.masks.decode(slice(None), (40, 60))
    assert found[1].sum() == 10 * 10
    assert found[2].sum() == 4


def read(path: Path) -> tuple[CocoIndex, ReadReport]:
    return read_split_files(SplitFiles(path, path.parent, "COCO JSON", "named"), masks=True)


def test_a_model_of_masks_is_refused_a_set_without_them(tmp_path: Path) -> None:
    config = update_config(Config(), {"model.masks": True})
    path = write(tmp_path, coco([image_entry()], [annotation(n) for n in range(1, 4)]))
    with pytest.raises(DataError, match=r"none of its 3 objects has a mask.*--set model\.masks=false"):
        read_split(config, "train", path)
    assert read_split(config, "train", path, masks=False).index.masks is None
    assert read_split(Config(), "train", path).index.masks is None
    path = write(
        tmp_path, coco([image_entry()], [annotation(1, segmentation=TRIANGLE), annotation(2), annotation(3)])
    )
    with pytest.raises(DataError, match=r"2 of 3 objects have no mask.*on_lost_objects=warn"):
        read_split(config, "train", path)
    masks = read_split(config, "train", path, may_lose=True).index.masks
    assert masks is not None
    assert masks.is_given.sum() == 1


def test_selecting_images_selects_their_masks(tmp_path: Path) -> None:
    entries = [annotation(n, n, segmentation=[[5, 6, 25, 6, 5, 6 + 2 * n]]) for n in (1, 2, 3)]
    index, _ = read(write(tmp_path, coco([image_entry(n) for n in (1, 2, 3)], entries)))
    chosen = index.select(np.array([2, 0]))
    assert index.masks is not None
    assert chosen.masks is not None
    assert chosen.written is not None
    assert chosen.written.masks is not None
    expected = index.masks.decode(slice(None), (40, 60))[[2, 0]]
    for masks in (chosen.masks, chosen.written.masks):
        assert np.array_equal(masks.decode(slice(None), (40, 60)), expected)
        assert masks.data is index.masks.data


@pytest.mark.parametrize("fast_decode", [False, True])
def test_masks_fit_the_picture_that_is_read(fast_decode: bool, tmp_path: Path) -> None:
    path = write(
        tmp_path, coco([image_entry(name="1.jpg", height=400, width=600)], [annotation(1, segmentation=TRIANGLE)])
    )
    Image.new("RGB", (1200, 800)).save(tmp_path / "1.jpg")  # another size than the listed one
    index, _ = read(path)
    options: dict[str, Any] = {"decode_target": DecodeTarget(100, 200), "fast_decode": fast_decode, "masks": True}
    image, target = CocoDataset(index, tmp_path, None, **options).read_sample(0)
    size_hw = image.shape[1], image.shape[2]
    assert index.masks is not None
    mask = index.masks.decode(slice(None), (400, 600))[0]
    assert size_hw == ((100, 150) if fast_decode else (800, 1200))
    rows, columns = nearest(400, size_hw[0]), nearest(600, size_hw[1])
    assert np.array_equal(target["masks"].pixels()[0], mask[rows][:, columns])


def test_an_rle_of_a_picture_that_lies_is_no_mask_of_one_that_stands(tmp_path: Path) -> None:
    path = write(tmp_path, coco([image_entry()], [annotation(1, segmentation=RLE_2X3, iscrowd=1)]))
    index, _ = read(path)
    write_noise(tmp_path / "1.png", 60, 40)
    with pytest.raises(ImageError, match=r"\(40, 60\)"):
        CocoDataset(index, tmp_path, None, masks=True).read_sample(0)


@pytest.mark.parametrize("damage", ["missing", "broken", "size"])
def test_a_panoptic_png_that_cannot_be_used_is_told(damage: str, tmp_path: Path, shared_data: Path) -> None:
    shutil.copytree(shared_data / "coco_panoptic_yolo" / "panopticapi_sample_data", tmp_path / "set")
    png = next(iter(sorted((tmp_path / "set" / "panoptic_examples").iterdir())))
    if damage == "missing":
        png.unlink()
    elif damage == "broken":
        png.write_bytes(png.read_bytes()[:1000])
    else:
        Image.open(png).resize((30, 20)).save(png)
    files = find_split(tmp_path / "set", "examples")
    index, report = read_split_files(files, masks=True)
    dataset = CocoDataset(index, files.images, None, on_bad_image="error", masks=True)
    if damage == "missing":
        assert len(index) == 1
        assert report.count("panoptic_png_missing") == 1
        assert report.ledger.objects_left_out["panoptic_png_missing"] > 0
    else:
        assert report.is_sound
        with pytest.raises(ImageError, match=png.name):
            [dataset[SampleKey(0, row)] for row in range(len(index))]


def test_a_segment_without_a_pixel_is_left_out_and_said(
    tmp_path: Path, shared_data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(shared_data / "coco_panoptic_yolo" / "panopticapi_sample_data", tmp_path / "set")
    path = tmp_path / "set" / "panoptic_examples.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["segments_info"][1]["id"] = 3
    path.write_text(json.dumps(content))
    files = find_split(tmp_path / "set", "examples")
    index, _ = read_split_files(files, masks=True)
    dataset = CocoDataset(index, files.images, None, masks=True)
    rows = index.image_ids.tolist().index(content["annotations"][0]["image_id"])
    for _ in range(2):
        _, target = dataset.read_sample(rows)
    count = len(content["annotations"][0]["segments_info"])
    assert len(target["masks"]) == len(target["labels"]) == count - 1
    assert [f"1 of its {count} panoptic segments" in message for message in caplog.messages] == [True]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_masks_turn_upright_as_boxes_do(orientation: int) -> None:
    box = np.array([[2, 1, 7, 4]])
    mask = np.zeros((6, 9), dtype=bool)
    mask[1:4, 2:7] = True
    x1, y1, x2, y2 = turn_boxes(box, orientation, (6, 9))[0]
    turned = turn_upright(mask, orientation)
    assert turned[y1:y2, x1:x2].all()
    assert turned.sum() == mask.sum()
    size_hw = (9, 6) if orientation >= 5 else (6, 9)
    masks = ObjectMasks.pack([b"[[2,1,7,1,7,4,2,4]]"]).turned(np.array([0]), np.array([orientation]))
    assert np.array_equal(masks.decode(slice(None), size_hw)[0], turned)
    assert masks.fault(0, size_hw) == ""


def test_nearest_is_that_of_torch() -> None:
    for length in (1, 2, 7, 333, 640):
        for wanted in (1, 3, 7, 250, 480, 1333):
            ramp = torch.arange(length, dtype=torch.float64)[None, None]
            expected = torch.nn.functional.interpolate(ramp, wanted, mode="nearest-exact")[0, 0].long()
            assert np.abs(nearest(length, wanted) - expected.numpy()).max() <= (length % 2 == 0 or wanted % 2 == 0)


def dense(sample: Sample) -> Sample:
    image, target = sample
    return image, {**target, "masks": DenseMasks(target["masks"].pixels())}  # type: ignore[typeddict-item]


CONFIGS = {**RECIPE_CONFIGS, **OPTION_CONFIGS}


@pytest.mark.parametrize("name", CONFIGS)
def test_masks_that_wait_equal_those_moved_step_by_step(name: str) -> None:
    config = CONFIGS[name]
    samples = [random_scene(seed, size, masks=True) for seed, size in enumerate(SIZES)]
    for row in range(len(SIZES)):
        found = []
        for scenes in (Scenes(samples), Scenes([dense(sample) for sample in samples])):
            torch.manual_seed(100 + row)
            image, target = load_composed(scenes, row, scenes.samples[row], config)
            found.append(train_transform(config)(image, target))
        (lazy_image, lazy), (dense_image, reference) = found
        assert torch.equal(lazy_image, dense_image)
        assert torch.equal(lazy["area"], reference["area"])
        assert torch.equal(lazy["labels"], reference["labels"])
        assert np.array_equal(lazy["masks"].pixels(), reference["masks"].pixels())


def batches(index: CocoIndex, images: Path, workers: int) -> list[Batch]:
    transform = train_transform(TransformConfig(recipe="mosaic", scales=(200,), max_size=300))
    dataset = CocoDataset(index, images, transform, seed=3, masks=True)
    loader = build_loader(dataset, EvaluationBatchSampler(6, 3), DataConfig(workers=workers))
    found = list(loader)
    assert all(batch is not None for batch in found)
    return found  # type: ignore[return-value]


def test_masks_of_a_batch_come_through_workers_as_without(shared_data: Path) -> None:
    files = find_split(shared_data / "coco_panoptic_yolo", "train", PANOPTIC)
    index, _ = read_split_files(files, masks=True)
    assert index.masks is not None
    lacking = np.arange(0, len(index.labels), 3)
    index = dataclasses.replace(index, masks=index.masks.with_boxes(lacking, index.boxes_xyxy[lacking]))
    alone = batches(index, files.images, 0)
    for first, second in zip(alone, batches(index, files.images, 2), strict=True):
        masks = first.truth.masks
        assert masks is not None
        assert second.truth.masks is not None
        assert masks.shape == (sum(first.truth.counts), *first.images.shape[2:])
        assert masks.any(dim=2).any(dim=1).float().mean() > 0.9
        assert torch.equal(masks, second.truth.masks)
        known = first.truth.has_mask
        assert 0.5 < np.mean(known) < 0.8
        assert known == second.truth.has_mask == sum((part.truth.has_mask for part in first.split(2)), ())
        is_box = [bool((own.any(0)[None] & own.any(1)[:, None] == own).all()) for own in masks]
        assert all(has_mask or box for has_mask, box in zip(known, is_box, strict=True))
        assert torch.equal(first.images, second.images)
        padding = first.padding_mask.repeat_interleave(torch.tensor(first.truth.counts), dim=0)
        assert not (masks & padding).any()


def test_flips_on_the_device_take_masks_along() -> None:
    samples = [random_scene(seed, size, masks=True) for seed, size in enumerate(SIZES[:4], start=2)]
    batch = collate(samples)
    assert batch is not None
    config = TransformConfig(flip=1.0, vertical_flip=1.0)
    masks = augment_batch(batch, config, 0).truth.masks
    assert masks is not None
    parts = masks.split(batch.truth.counts)
    for (_, target), found, (height, width) in zip(samples, parts, batch.sizes_hw, strict=True):
        expected = target["masks"].pixels()[~target["iscrowd"].numpy()][:, ::-1, ::-1]
        assert np.array_equal(found[:, :height, :width].numpy(), expected)
        assert found.sum() == expected.sum()


def test_models_of_boxes_pay_nothing(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = find_split(shared_data / "coco_mini", "train", COCO)
    with_masks, _ = read_split_files(files, masks=True)

    def never(*_arguments: Any) -> None:
        raise AssertionError("a mask was looked at")

    monkeypatch.setattr(ObjectMasks, "pack", never)
    monkeypatch.setattr(ObjectMasks, "lazy", never)
    monkeypatch.setattr(segmentation, "mask_extent", never)
    index, _ = read_split_files(files)
    assert index.masks is None
    found = batches(index, files.images, 0)
    assert found[0].truth.masks is None
    monkeypatch.undo()
    for first, second in zip(found, batches(with_masks, files.images, 0), strict=True):
        assert torch.equal(first.images, second.images)  # masks draw no random numbers
