from __future__ import annotations

import itertools

import numpy as np
import pytest

from detrkit.data.coco import SampleKey
from detrkit.data.loader import WINDOW, EpochBatchSampler, EvaluationBatchSampler
from detrkit.preprocess import resized_size_hw

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
    assert len({len(share) for share in shares}) == 1
    rows = [key.row for share in shares for keys in share for key in keys]
    assert len(set(rows)) == len(rows) == (1003 // 12 * 12 if drop_last else 1003)


def test_any_number_of_processes_makes_the_steps_of_one_with_larger_batches() -> None:
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


def test_buckets_hold_the_images_that_plain_batches_would() -> None:
    plain = EpochBatchSampler(1003, 4, seed=3)
    first_window = [key.row for keys in list(plain)[:WINDOW] for key in keys]
    bucketed = [key.row for keys in batches(1003, 4)[:WINDOW] for key in keys]
    assert bucketed != first_window
    assert sorted(bucketed) == sorted(first_window)
