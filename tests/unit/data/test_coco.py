from __future__ import annotations

import itertools
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detrkit.config import TransformConfig
from detrkit.data.coco import CocoDataset, SampleKey, sample_seed
from detrkit.data.read import read_coco
from detrkit.data.transforms import train_transform
from detrkit.errors import ImageError
from detrkit.ops.images import DecodeTarget

from .factory import annotation, coco, image_entry, write, write_noise

SMALL = TransformConfig(scales=(40, 48, 56), max_size=90, crop_scales=(50, 60), crop_range=(30, 45))
SEED_OF_1_2_3 = 12997252459554536576


def small_dataset(folder: Path, seed: int = 3) -> CocoDataset:
    images = [image_entry(number) for number in (1, 2, 3)]
    annotations = [annotation(1, 1), annotation(2, 1, bbox=[30, 20, 30, 20]), annotation(3, 2, iscrowd=1)]
    index, _ = read_coco(write(folder, coco(images, annotations)), folder)
    return CocoDataset(index, folder, train_transform(SMALL), seed=seed)


def test_target_follows_the_contract(tmp_path: Path) -> None:
    dataset = small_dataset(tmp_path)
    dataset.transform = None
    sample = dataset[SampleKey(0, 0)]
    assert sample is not None
    image, target = sample
    assert (image.dtype, image.shape) == (torch.uint8, (3, 40, 60))
    assert target["boxes"].tolist() == [[5, 6, 25, 16], [30, 20, 60, 40]]
    assert target["boxes"].dtype == torch.float32
    assert target["boxes"].canvas_size == (40, 60)
    assert (target["labels"].dtype, target["labels"].tolist()) == (torch.int64, [1, 1])
    assert (target["area"].dtype, target["area"].tolist()) == (torch.float32, [200, 600])
    assert (target["iscrowd"].dtype, target["iscrowd"].tolist()) == (torch.bool, [False, False])
    assert (target["image_id"], target["orig_size_hw"]) == (1, (40, 60))


def test_image_without_objects_and_crowd_only_image_are_legal(tmp_path: Path) -> None:
    dataset = small_dataset(tmp_path)
    for epoch in range(5):
        empty, crowd = dataset[SampleKey(epoch, 2)], dataset[SampleKey(epoch, 1)]
        assert empty is not None
        assert crowd is not None
        assert empty[1]["boxes"].shape == (0, 4)
        assert crowd[1]["iscrowd"].all()


def test_seeds_of_neighbours_differ() -> None:
    seeds = {sample_seed(seed, epoch, row) for seed in range(5) for epoch in range(20) for row in range(50)}
    assert len(seeds) == 5000
    assert sample_seed(1, 2, 3) == SEED_OF_1_2_3  # the same on every machine and by every release


def test_unreadable_image_is_skipped_and_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = small_dataset(tmp_path)
    (tmp_path / "2.png").write_bytes(b"not an image")
    with caplog.at_level(logging.WARNING):
        assert dataset[SampleKey(0, 1)] is None
        assert dataset[SampleKey(1, 1)] is None
        assert dataset[SampleKey(0, 0)] is not None
    assert len(caplog.records) == 1
    assert str(tmp_path / "2.png") in caplog.text
    dataset.on_bad_image = "error"
    with pytest.raises(ImageError, match=r"2\.png"):
        dataset[SampleKey(0, 1)]


def test_a_link_of_the_users_own_tree_is_followed(tmp_path: Path) -> None:
    dataset = small_dataset(tmp_path / "images")
    (tmp_path / "images" / "1.png").rename(tmp_path / "stored")
    (tmp_path / "images" / "1.png").symlink_to(tmp_path / "stored")
    assert dataset[SampleKey(0, 0)] is not None


def test_boxes_are_scaled_to_a_resized_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = small_dataset(tmp_path)
    write_noise(tmp_path / "1.png", 20, 90)
    dataset.transform = None
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            sample = dataset[SampleKey(0, 0)]
    assert sample is not None
    assert sample[1]["boxes"][0].tolist() == [7.5, 3, 37.5, 8]
    assert sample[1]["area"][0] == 200 * 0.5 * 1.5
    assert sample[1]["orig_size_hw"] == (20, 90)
    assert len(caplog.records) == 1


def test_boxes_stay_where_exif_exchanges_the_sides(tmp_path: Path) -> None:
    dataset = small_dataset(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / "1.png", exif=exif)
    dataset.transform = None
    sample = dataset[SampleKey(0, 0)]
    assert sample is not None
    assert sample[0].shape == (3, 60, 40)
    assert sample[1]["boxes"].tolist() == [[5, 6, 25, 16], [30, 20, 40, 40]]


def large_dataset(folder: Path, **options: object) -> CocoDataset:
    """Three JPEGs of 3 to 9 times what training asks for, one with odd sides and one that EXIF turns."""
    sizes_hw = ((400, 600), (301, 453), (600, 500))
    images = [image_entry(number + 1, f"{number + 1}.jpg", *size) for number, size in enumerate(sizes_hw)]
    boxes = [[width / 4, height / 8, width / 2, height / 2] for height, width in sizes_hw]
    annotations = [annotation(number + 1, number + 1, bbox=box) for number, box in enumerate(boxes)]
    path = write(folder, coco(images, annotations), files=False)
    for number, (height, width) in enumerate(sizes_hw):
        noise = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        exif = Image.Exif()
        size = (width, height)
        if number == 2:
            exif[0x0112] = 6
            size = (height, width)
        Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(
            folder / f"{number + 1}.jpg", quality=95, exif=exif
        )
    index, _ = read_coco(path, folder)
    return CocoDataset(index, folder, decode_target=DecodeTarget(64, 120), **options)  # type: ignore[arg-type]


def test_fast_decoding_leaves_boxes_areas_and_sizes_as_they_are(tmp_path: Path) -> None:
    exact = large_dataset(tmp_path, transform=None)
    fast = large_dataset(tmp_path, transform=None, fast_decode=True)
    for row, size_hw in enumerate(((100, 150), (76, 114), (150, 125))):
        image, target = exact.read_sample(row)
        reduced, found = fast.read_sample(row)
        assert tuple(reduced.shape[1:]) == found["boxes"].canvas_size == size_hw
        for boxes, picture in ((target["boxes"], image), (found["boxes"], reduced)):
            relative = boxes.as_subclass(torch.Tensor) / torch.tensor([picture.shape[2], picture.shape[1]] * 2)
            assert relative[0].tolist() == pytest.approx([1 / 4, 1 / 8, 3 / 4, 5 / 8], abs=1e-6)
        assert torch.equal(target["area"], found["area"])
        assert found["orig_size_hw"] == target["orig_size_hw"] == tuple(image.shape[1:])


def test_size_of_a_sample_is_known_beforehand(tmp_path: Path) -> None:
    dataset = small_dataset(tmp_path)
    before = torch.random.get_rng_state()
    for epoch, row in itertools.product(range(12), range(3)):
        sample = dataset[SampleKey(epoch, row)]
        assert sample is not None
        assert dataset.sample_size(SampleKey(epoch, row)) == tuple(sample[0].shape[1:])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_selected_images_keep_their_annotations(tmp_path: Path) -> None:
    images = [image_entry(number, f"sub/ö {number}.png") for number in (5, 6, 7)]
    annotations = [annotation(1, 5), annotation(2, 7), annotation(3, 7, category_id=3)]
    whole, _ = read_coco(write(tmp_path, coco(images, annotations)), tmp_path)
    index = whole.select(np.array([2, 1]))
    assert index.image_ids.tolist() == [7, 6]
    assert [index.file_name(row) for row in range(2)] == ["sub/ö 7.png", "sub/ö 6.png"]
    assert index.annotation_ids[index.annotation_rows(0)].tolist() == [2, 3]
    assert index.offsets.tolist() == [0, 2, 2]
    assert len(index.select(np.array([], dtype=np.int64))) == 0
