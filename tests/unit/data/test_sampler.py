from __future__ import annotations

import numpy as np
import pytest

from detrkit.data.coco import SampleKey
from detrkit.data.sampler import WINDOW, EpochBatchSampler
from detrkit.ops.images import resized_size_hw

SCALES = (480, 544, 608, 672, 736, 800)


def size_of(key: SampleKey) -> tuple[int, int]:
    """What a multi-scale resize could make of a COCO image: another scale in every epoch."""
    random = np.random.default_rng((key.epoch, key.row))
    original = ((480, 640), (640, 480), (427, 640), (640, 427), (500, 375), (640, 640))[key.row % 6]
    return resized_size_hw(original, int(random.choice(SCALES)), 1333)


def batches(num_images: int, size: int, epoch: int = 0, start: int = 0, **options) -> list[list[SampleKey]]:
    sampler = EpochBatchSampler(num_images, size, seed=3, size_of=size_of, **options)
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


@pytest.mark.parametrize("num_images", [1, 3, 4, 5, 130, 4 * WINDOW, 4 * WINDOW + 1, 1003])
def test_every_image_is_in_one_batch_of_an_epoch(num_images: int) -> None:
    found = batches(num_images, 4)
    assert sorted(key.row for keys in found for key in keys) == list(range(num_images))
    assert [len(keys) for keys in found[:-1]] == [4] * (len(found) - 1)  # only the last may be smaller


@pytest.mark.parametrize("size", [2, 4, 8, 16])
def test_buckets_cut_padding_by_more_than_half(size: int) -> None:
    plain = EpochBatchSampler(4000, size, seed=3)
    assert padded_share(batches(4000, size)) < 0.5 * padded_share(list(plain))


def test_order_of_bucketed_batches_is_random_and_repeatable() -> None:
    first = batches(2000, 4, epoch=1)
    assert first == batches(2000, 4, epoch=1)
    assert first != batches(2000, 4, epoch=2)
    sizes = np.array([size_of(keys[0]) for keys in first[:-1]])
    aspects = sizes[:, 0] / sizes[:, 1]
    # sorted batches would follow each other in shape
    assert abs(np.corrcoef(aspects[:-1], aspects[1:])[0, 1]) < 0.25


def test_images_of_a_batch_change_from_epoch_to_epoch() -> None:
    def pairs(epoch: int) -> set[frozenset[int]]:
        return {frozenset(key.row for key in keys) for keys in batches(2000, 2, epoch)}

    assert len(pairs(0) & pairs(1)) < 20


@pytest.mark.parametrize("start", [1, WINDOW - 1, WINDOW, WINDOW + 5, 250])
def test_a_bucketed_epoch_can_be_resumed_anywhere(start: int) -> None:
    assert batches(1003, 4, epoch=5, start=start) == batches(1003, 4, epoch=5)[start:]


@pytest.mark.parametrize("drop_last", [False, True])
def test_processes_share_a_bucketed_epoch_evenly(drop_last: bool) -> None:
    shares = [batches(1003, 4, rank=rank, world_size=3, drop_last=drop_last) for rank in range(3)]
    assert len({tuple(len(keys) for keys in share) for share in shares}) == 1
    rows = [key.row for share in shares for keys in share for key in keys]
    assert len(set(rows)) == (1003 // 12 * 12 if drop_last else 1003)
    assert len(rows) <= 1003 + 2


def test_buckets_hold_the_images_that_plain_batches_would() -> None:
    plain = EpochBatchSampler(1003, 4, seed=3)
    first_window = [key.row for keys in list(plain)[:WINDOW] for key in keys]
    bucketed = [key.row for keys in batches(1003, 4)[:WINDOW] for key in keys]
    assert bucketed != first_window
    assert sorted(bucketed) == sorted(first_window)
