from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detrkit.config import DataConfig, TransformConfig
from detrkit.curation.synthetic import write_synthetic
from detrkit.data.coco import CocoDataset, SampleKey
from detrkit.data.loader import (
    WINDOW,
    EpochBatchSampler,
    EvaluationBatchSampler,
    auto_workers,
    build_loader,
    collate,
    end_workers,
)
from detrkit.data.read import read_coco
from detrkit.data.transforms import train_transform
from detrkit.data.transport import SharedSlots
from detrkit.errors import ImageError
from detrkit.preprocess import resized_size_hw
from detrkit.types import Batch

from .scenes import make_target

TINY = TransformConfig(scales=(40, 48, 56), max_size=90, crop_scales=(50, 60), crop_range=(30, 45), eval_size=48)


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("synthetic"), 21, 5, size=64, seed=1)


def training_set(root: Path) -> CocoDataset:
    index, report = read_coco(root / "annotations" / "instances_train2017.json", root / "train2017")
    assert report.is_sound
    return CocoDataset(index, root / "train2017", train_transform(TINY), seed=5)


def sample(height: int, width: int, boxes: list[list[float]], crowd: list[bool] | None = None, image_id: int = 1):
    target = make_target(torch.tensor(boxes).reshape(-1, 4), (height, width))
    target["iscrowd"] = torch.tensor(crowd or [False] * len(boxes), dtype=torch.bool)
    target["image_id"] = image_id
    return torch.full((3, height, width), 9, dtype=torch.uint8), target


def batches_of(dataset: CocoDataset, workers: int, epochs: int = 2) -> list[Batch]:
    sampler = EpochBatchSampler(len(dataset), 4, seed=2)
    loader = build_loader(dataset, sampler, DataConfig(workers=workers))
    batches = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        batches += [batch for batch in loader if batch is not None]
    return batches


def test_batch_pads_at_the_bottom_and_on_the_right() -> None:
    batch = collate([sample(4, 6, [[0, 0, 3, 2]]), sample(5, 3, [[0, 0, 3, 5], [1, 1, 2, 2]])])
    assert batch is not None
    assert batch.images.shape == (2, 3, 5, 6)
    assert batch.images.dtype == torch.uint8
    assert batch.sizes_hw == ((4, 6), (5, 3))
    for row, (height, width) in enumerate(batch.sizes_hw):
        assert (batch.images[row, :, :height, :width] == 9).all()
        assert not batch.padding_mask[row, :height, :width].any()
        assert batch.padding_mask[row].sum() == 30 - height * width
    assert (batch.images[batch.padding_mask[:, None].expand_as(batch.images)] == 0).all()
    assert batch.truth.boxes_cxcywh[0].tolist() == [0.25, 0.25, 0.5, 0.5]
    assert batch.truth.boxes_cxcywh[1].tolist() == [0.5, 0.5, 1, 1]
    assert batch.truth.counts == (1, 2)
    assert batch.truth.labels.tolist() == [0, 0, 1]
    assert batch.is_padded


def test_images_of_one_size_are_not_padded() -> None:
    batch = collate([sample(4, 6, []), sample(4, 6, [])])
    assert batch is not None
    assert not batch.is_padded
    assert not batch.padding_mask.any()
    assert batch.truth.boxes_cxcywh.shape == (0, 4)
    assert batch.truth.labels.dtype == torch.int64
    assert batch.truth.counts == (0, 0)


def test_crowd_regions_are_left_out_of_a_batch() -> None:
    boxes = [[0.0, 0, 3, 2], [0, 0, 1, 1]]
    batch = collate([sample(4, 6, boxes, [True, False]), sample(4, 6, boxes, [True, True])])
    assert batch is not None
    assert batch.truth.counts == (1, 0)
    assert batch.truth.labels.tolist() == [1]


def test_order_of_a_batch_changes_only_the_order() -> None:
    first, second = sample(4, 6, [[0, 0, 3, 2]], image_id=1), sample(5, 3, [[1, 1, 2, 2]], image_id=2)
    forward, backward = collate([first, second]), collate([second, first])
    assert forward is not None
    assert backward is not None
    assert torch.equal(forward.images, backward.images.flip(0))
    assert torch.equal(forward.truth.boxes_cxcywh, backward.truth.boxes_cxcywh.flip(0))
    assert backward.image_ids == (2, 1)


def test_unreadable_images_are_left_out() -> None:
    batch = collate([None, sample(4, 6, []), None])
    assert batch is not None
    assert len(batch.images) == 1
    assert collate([None, None]) is None


def test_number_of_workers_does_not_change_batches(synthetic: Path) -> None:
    _assert_same(batches_of(training_set(synthetic), 0), batches_of(training_set(synthetic), 2))


def _assert_same(expected: list[Batch], found: list[Batch]) -> None:
    assert len(expected) == len(found) == 12
    for first, second in zip(expected, found, strict=True):
        assert torch.equal(first.images, second.images)
        assert torch.equal(first.padding_mask, second.padding_mask)
        assert torch.equal(first.truth.boxes_cxcywh, second.truth.boxes_cxcywh)
        assert first.image_ids == second.image_ids
        assert first.sizes_hw == second.sizes_hw
    assert expected[0].image_ids != expected[6].image_ids
    assert first.images.is_contiguous(memory_format=torch.channels_last)


def test_auto_workers_leave_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for cpus, expected in ((1, 1), (2, 1), (4, 3), (64, 4)):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, cpus=cpus: set(range(cpus)), raising=False)
        assert auto_workers() == expected
    monkeypatch.setattr("detrkit.data.loader.usable_cpus", lambda: 2)  # a container's quota, of 64 that are shown
    assert auto_workers() == 1


def test_where_workers_cannot_share_memory_batches_are_the_same(
    synthetic: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = batches_of(training_set(synthetic), 0)
    monkeypatch.setattr(SharedSlots, "take", lambda *_: None)  # as if every batch were too large for a slot
    _assert_same(expected, batches_of(training_set(synthetic), 1))
    monkeypatch.setattr("torch.multiprocessing.get_start_method", lambda: "spawn")
    assert (
        build_loader(training_set(synthetic), EpochBatchSampler(21, 4), DataConfig(workers=1)).collate_fn.slots
        is None
    )


def test_memory_between_processes_is_bounded_by_what_waits(synthetic: Path) -> None:
    sampler = EpochBatchSampler(21, 2, seed=2)
    loader = build_loader(training_set(synthetic), sampler, DataConfig(workers=1, prefetch=2))
    slots = loader.collate_fn.slots
    assert slots is not None
    places = set()
    for epoch in range(3):
        sampler.set_epoch(epoch)
        for batch in loader:
            places.add(batch.images.data_ptr())
            del batch
    assert len(places) <= slots.slots == 5  # every batch lay in one of the slots


def test_workers_end_where_interrupts_are_heard_and_start_again(synthetic: Path) -> None:
    sampler = EpochBatchSampler(21, 4)
    loader = build_loader(training_set(synthetic), sampler, DataConfig(workers=1))
    for _ in range(2):
        sampler.set_epoch(0)
        assert next(iter(loader)) is not None
        (worker,) = loader._iterator._workers
        end_workers(loader)
        assert not worker.is_alive()


def test_errors_of_a_worker_arrive_as_they_are(synthetic: Path, tmp_path: Path) -> None:
    root = write_synthetic(tmp_path, 5, 0, size=64)
    (root / "train2017" / "000002.jpg").write_bytes(b"\xff\xd8 cut off")
    dataset = training_set(root)
    dataset.on_bad_image = "error"
    loader = build_loader(dataset, EpochBatchSampler(5, 2), DataConfig(workers=1))
    with pytest.raises(ImageError, match=r"000002\.jpg"):
        list(loader)
    end_workers(loader)


BUCKETED = pytest.mark.parametrize("bucketed", [False, True])
SCALES = (480, 544, 608, 672, 736, 800)


def size_of(key: SampleKey) -> tuple[int, int]:
    """What a multi-scale resize could make of a COCO image: another scale in every epoch."""
    random = np.random.default_rng((key.epoch, key.row))
    original = ((480, 640), (640, 480), (427, 640), (640, 427), (500, 375), (640, 640))[key.row % 6]
    return resized_size_hw(original, int(random.choice(SCALES)), 1333)


def keys_of(
    num_images: int, size: int, epoch: int = 0, start: int = 0, *, bucketed: bool = True, **options: Any
) -> list[list[SampleKey]]:
    sampler = EpochBatchSampler(num_images, size, seed=3, size_of=size_of if bucketed else None, **options)
    sampler.set_epoch(epoch, start)
    found = list(sampler)
    assert len(found) == len(sampler)
    return found


def padded_share(found: list[list[SampleKey]]) -> float:
    """Padded pixels for each pixel of an image."""
    pixels = padded = 0
    for keys in found:
        sizes = np.array([size_of(key) for key in keys])
        pixels += int(sizes.prod(1).sum())
        padded += int(len(keys) * sizes.max(0).prod() - sizes.prod(1).sum())
    return padded / pixels


@pytest.mark.parametrize("size", [pytest.param(4, marks=pytest.mark.slow), 16])
def test_buckets_cut_padding_by_more_than_half(size: int) -> None:
    plain = EpochBatchSampler(2000, size, seed=3)
    assert padded_share(keys_of(2000, size)) < 0.5 * padded_share(list(plain))


def test_order_of_bucketed_batches_is_random_and_repeatable() -> None:
    first = keys_of(2000, 4, epoch=1)
    assert first == keys_of(2000, 4, epoch=1)
    assert first != keys_of(2000, 4, epoch=2)
    sizes = np.array([size_of(keys[0]) for keys in first[:-1]])
    aspects = sizes[:, 0] / sizes[:, 1]
    # sorted batches would follow each other in shape
    assert abs(np.corrcoef(aspects[:-1], aspects[1:])[0, 1]) < 0.25


@pytest.mark.parametrize("start", [1, WINDOW - 1, WINDOW, WINDOW + 5, 250])
@BUCKETED
def test_an_epoch_can_be_resumed_anywhere(start: int, bucketed: bool) -> None:
    whole = keys_of(1003, 4, epoch=5, bucketed=bucketed)
    assert keys_of(1003, 4, epoch=5, start=start, bucketed=bucketed) == whole[start:]


@pytest.mark.parametrize("drop_last", [False, True])
@BUCKETED
def test_processes_share_an_epoch_evenly(drop_last: bool, bucketed: bool) -> None:
    for num_images, world_size in itertools.product((1, 7, 16, 33, 1003), (1, 2, 3)):
        options = {"world_size": world_size, "drop_last": drop_last, "bucketed": bucketed}
        shares = [keys_of(num_images, 4, rank=rank, **options) for rank in range(world_size)]
        assert len({len(share) for share in shares}) == 1  # else a process would wait forever
        rows = [key.row for share in shares for keys in share for key in keys]
        step = 4 * world_size
        left = num_images // step * step if drop_last and num_images >= step else num_images
        assert len(set(rows)) == len(rows) == left


def test_any_number_of_processes_makes_the_steps_of_one_with_larger_keys_of() -> None:
    """Awkward lengths: fewer images than processes, one over, one short of full batches."""
    for num_images, world_size, size in itertools.product((1, 2, 3, 5, 16, 17, 31, 64), (2, 3, 4, 7), (1, 2, 4)):
        whole = EpochBatchSampler(num_images, size * world_size, seed=5)
        shares = [
            EpochBatchSampler(num_images, size, 5, rank=rank, world_size=world_size) for rank in range(world_size)
        ]
        for epoch, start in ((0, 0), (3, 1)):
            for sampler in (whole, *shares):
                sampler.set_epoch(epoch, start)
            steps = [sorted(key for keys in step for key in keys) for step in zip(*shares, strict=True)]
            assert steps == [sorted(keys) for keys in whole], (num_images, world_size, size)
            for sampler in shares:
                assert len(list(sampler)) == len(sampler)


def test_evaluation_batches_are_dealt_out_whole_and_once() -> None:
    for num_images, world_size, size in itertools.product((1, 2, 5, 16, 17), (1, 2, 3, 7), (1, 4)):
        shares = [EvaluationBatchSampler(num_images, size, rank, world_size) for rank in range(world_size)]
        dealt = sorted(tuple(key.row for key in keys) for share in shares for keys in share)
        assert dealt == [tuple(range(i, min(i + size, num_images))) for i in range(0, num_images, size)]
        turns = [len(share) for share in shares]
        assert turns == [len(list(share)) for share in shares]
        assert max(turns) - min(turns) <= 1


MEMORY_SCRIPT = """
import gc, json, sys
from pathlib import Path
import numpy as np, psutil
from detrkit.config import DataConfig, TransformConfig
from detrkit.data.coco import CocoDataset
from detrkit.data.loader import EpochBatchSampler, build_loader
from detrkit.data.read import read_coco
from detrkit.data.transforms import train_transform

root = Path(sys.argv[1])
index, _ = read_coco(root / "annotations" / "instances_train2017.json", root / "train2017")
index = index.select(np.resize(np.arange(len(index)), len(index) * -(-860_000 // len(index.labels))))
assert len(index.labels) >= 860_000
dataset = CocoDataset(index, root / "train2017", train_transform(TransformConfig()))
sampler = EpochBatchSampler(len(index), 4, seed=2)
loader = build_loader(dataset, sampler, DataConfig(workers=2))
private_mb = []
for epoch in range(4):
    sampler.set_epoch(epoch, start_batch=sampler.num_batches - 60)
    for batch in loader:
        pass
    gc.collect()
    me = psutil.Process()
    workers = [child for child in me.children() if child.cmdline() == me.cmdline()]  # not torch's resource tracker
    private_mb.append([worker.memory_full_info().uss / 2**20 for worker in workers])
print(json.dumps(private_mb))
"""


@pytest.mark.slow
def test_memory_of_a_worker_is_small_and_does_not_grow(shared_data: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", MEMORY_SCRIPT, str(shared_data / "coco_mini")]
    private_mb = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert np.shape(private_mb) == (4, 2)
    assert np.max(private_mb) < 50, private_mb
    # the first epoch fills caches; a list of annotations copied as it is touched would grow on and on
    assert (np.subtract(private_mb[3], private_mb[0]) < 8).all(), private_mb
