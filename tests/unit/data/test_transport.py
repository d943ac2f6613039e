from __future__ import annotations

import gc
import pickle
from typing import Any

import pytest
import torch

from detrkit.data.coco import Sample
from detrkit.data.loader import collate, pack_targets
from detrkit.data.transport import SharedBatch, SharedSlots, batch_bytes, split_buffer
from detrkit.preprocess import pad_images
from detrkit.types import Batch

from .scenes import random_scene


def sample(height: int, width: int, objects: int, number: int) -> Sample:
    return random_scene(6 * number + objects, (height, width))


def send(slots: SharedSlots, samples: list[Any], worker: int = 0) -> Batch:
    """Through the slots as a worker and a training process do, in one process."""
    sizes_hw = tuple((image.shape[1], image.shape[2]) for image, _ in samples)
    slot = slots.take(worker, batch_bytes(sizes_hw))
    assert slot is not None
    pad_images([image for image, _ in samples], split_buffer(torch.from_numpy(slots.view(worker, slot)), sizes_hw))
    targets = [target for _, target in samples]
    names = tuple(target["image_id"] for target in targets), tuple(target["orig_size_hw"] for target in targets)
    shared = SharedBatch((slots.key, worker, slot), sizes_hw, pack_targets(targets), *names)
    batch: Batch = pickle.loads(pickle.dumps(shared))
    return batch


def assert_same(found: Batch, expected: Batch) -> None:
    assert torch.equal(found.images, expected.images)
    assert torch.equal(found.padding_mask, expected.padding_mask)
    assert found.images.is_contiguous(memory_format=torch.channels_last)
    assert found.sizes_hw == expected.sizes_hw
    assert (found.image_ids, found.orig_sizes_hw) == (expected.image_ids, expected.orig_sizes_hw)
    assert found.truth.counts == expected.truth.counts
    assert torch.equal(found.truth.labels, expected.truth.labels)
    assert torch.equal(found.truth.boxes_cxcywh, expected.truth.boxes_cxcywh)


def test_a_batch_arrives_as_it_was_sent() -> None:
    for samples in ([sample(6, 9, 3, 1), sample(8, 5, 0, 2), sample(8, 9, 1, 3)], [sample(6, 9, 0, 1)]):
        expected = collate(samples)
        assert expected is not None
        assert_same(send(SharedSlots(1, 2, 3), samples), expected)


def test_a_slot_is_used_again_once_nothing_refers_to_it() -> None:
    slots = SharedSlots(2, 2, 1)
    first, second = send(slots, [sample(4, 4, 1, 1)]), send(slots, [sample(5, 5, 1, 2)])
    assert slots.take(0, 64) is None
    assert slots.take(1, 64) is not None  # another worker has slots of its own
    kept = first.images[0, 0]  # a view is a reference too
    expected = kept.clone()
    del first
    gc.collect()
    assert slots.take(0, 64) is None
    assert torch.equal(kept, expected)
    del kept
    gc.collect()
    slot = slots.take(0, 64)
    assert slot is not None
    assert second.images.shape == (1, 3, 5, 5)


def test_the_largest_batch_of_the_published_recipe_fits() -> None:
    slots = SharedSlots(1, 1, 4)
    assert slots.capacity >= batch_bytes([(1333, 800), (800, 1333), (800, 800), (1, 1)])
    assert slots.take(0, slots.capacity + 1) is None


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_a_used_slot_leaves_no_trace_in_the_next_batch(order: list[int]) -> None:
    slots = SharedSlots(1, 1, 2)
    contents = [[sample(9, 9, 1, 1), sample(3, 4, 1, 2)], [sample(4, 7, 1, 3), sample(8, 2, 1, 4)]]
    for number in order:
        expected = collate(contents[number])
        assert expected is not None
        assert_same(send(slots, contents[number]), expected)
        gc.collect()
