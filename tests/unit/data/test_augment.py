from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from detrkit.config import TransformConfig
from detrkit.data.augment import augment_batch, augments_on_device, distort_batch, distort_image, draw_distortions
from detrkit.data.loader import collate, pack_targets
from detrkit.data.transforms import train_transform
from detrkit.types import Batch, GroundTruth

from .scenes import painted_scene, random_scene

STRONG = TransformConfig(recipe="strong", vertical_flip=0.5)


def make_batch() -> Batch:
    sizes = ((100, 150), (120, 90), (64, 64), (31, 150))
    batch = collate([random_scene(seed, size, masks=seed % 2 == 0) for seed, size in enumerate(sizes, start=2)])
    assert batch is not None
    return batch


def test_each_image_is_flipped_within_its_bounds_and_its_boxes_with_it() -> None:
    batch = collate([painted_scene(1), painted_scene(2, (120, 90))])
    assert batch is not None
    seen = set()
    for seed in range(20):
        found = augment_batch(batch, TransformConfig(vertical_flip=0.5), seed)
        assert (found.images * batch.padding_mask[:, None]).eq(0).all()
        for row, (height, width) in enumerate(batch.sizes_hw):
            before, after = (one.truth.boxes_cxcywh.split(one.truth.counts)[row] for one in (batch, found))
            axes = [axis for axis in (0, 1) if not torch.equal(before[:, axis], after[:, axis])]
            assert torch.allclose(after[:, axes], 1 - before[:, axes])
            assert torch.equal(after[:, 2:], before[:, 2:])
            expected = batch.images[row, :, :height, :width].flip([2 - axis for axis in axes])
            assert torch.equal(found.images[row, :, :height, :width], expected)
            seen.add(tuple(axes))
    assert len(seen) == 4  # neither, each, both


def test_augmentation_is_a_function_of_the_seed() -> None:
    batch = make_batch()
    before = batch.images.clone(), batch.truth.boxes_cxcywh.clone()
    torch.manual_seed(1)
    one = augment_batch(batch, STRONG, 5)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    two, other = augment_batch(batch, STRONG, 5), augment_batch(batch, STRONG, 6)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.images, two.images)
    assert torch.equal(one.truth.boxes_cxcywh, two.truth.boxes_cxcywh)
    assert not torch.equal(one.images, other.images)
    assert torch.equal(batch.images, before[0])
    assert torch.equal(batch.truth.boxes_cxcywh, before[1])


def test_a_blank_batch_without_objects_is_legal() -> None:
    truth = GroundTruth(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), (0,))
    images, mask = torch.zeros(1, 3, 64, 64, dtype=torch.uint8), torch.zeros(1, 64, 64, dtype=torch.bool)
    batch = Batch(images, mask, truth, ((64, 64),))
    for seed in range(5):
        assert augment_batch(batch, STRONG, seed).truth.boxes_cxcywh.shape == (0, 4)


@pytest.mark.parametrize(
    ("changes", "device_type", "expected"),
    [
        ({}, "cuda", False),
        ({"photometric": 0.5}, "cuda", True),
        ({"channel_shuffle": 0.5}, "cuda", True),
        ({"photometric": 0.5}, "cpu", False),
        ({"on_device": True}, "cpu", True),
        ({"photometric": 0.5, "on_device": False}, "cuda", False),
    ],
)
def test_what_is_left_to_the_device(changes: dict[str, object], device_type: str, expected: bool) -> None:
    assert augments_on_device(TransformConfig(**changes), device_type) == expected  # type: ignore[arg-type]


def test_workers_leave_to_the_device_what_it_does() -> None:
    config = TransformConfig(recipe="resize", eval_size=100, flip=1.0, vertical_flip=1.0, photometric=1.0)
    image, target = painted_scene(1)
    left, left_target = train_transform(config, on_device=True)(image, target)
    assert torch.equal(left, image)
    assert torch.equal(left_target["boxes"], target["boxes"])
    batch = collate([(left, left_target)])
    assert batch is not None
    plain = config.model_copy(update={"photometric": 0.0})
    done, expected = augment_batch(batch, plain, 0), train_transform(plain)(image, target)
    assert torch.equal(done.images[0], expected[0].as_subclass(torch.Tensor))
    assert torch.allclose(done.truth.boxes_cxcywh, pack_targets([expected[1]]).boxes_cxcywh)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_gpu_gives_what_the_cpu_gives() -> None:
    batch = make_batch()
    expected = augment_batch(batch, STRONG, 4)
    found = augment_batch(batch.to(torch.device("cuda")), STRONG, 4)
    assert found.images.is_cuda
    assert (found.images.cpu().int() - expected.images.int()).abs().max() <= 1
    assert torch.allclose(found.truth.boxes_cxcywh.cpu(), expected.truth.boxes_cxcywh)
    assert dataclasses.replace(found, images=batch.images).sizes_hw == batch.sizes_hw


ALL = TransformConfig(photometric=1.0, channel_shuffle=1.0)


def smooth(seed: int, height: int, width: int) -> Tensor:
    """Soft colours, gray and saturated and black parts among them; uint8 ``[3, h, w]``."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 4, 4, generator=generator) * 255
    image = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0]
    image[:, : height // 4] = image[0, : height // 4]
    image[:, :, -3:] = 0
    return image.round().to(torch.uint8)


def padded(images: list[Tensor]) -> tuple[Tensor, Tensor]:
    height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
    batch = torch.zeros(len(images), 3, height, width, dtype=torch.uint8)
    mask = torch.ones(len(images), height, width, dtype=torch.bool)
    for row, image in enumerate(images):
        batch[row, :, : image.shape[1], : image.shape[2]] = image
        mask[row, : image.shape[1], : image.shape[2]] = False
    return batch, mask


def test_a_batch_is_distorted_as_torchvision_does_each_image() -> None:
    """Bound: torchvision in float32, of which only the last rounding to 8 bit differs."""
    images = [smooth(seed, 24 + 3 * seed, 50 - 4 * seed) for seed in range(8)]
    batch, mask = padded(images)
    for seed in range(6):
        distortions = draw_distortions(ALL, len(images), torch.Generator().manual_seed(seed))
        found = distort_batch(batch, distortions, mask)
        assert found.dtype == torch.uint8
        assert (found * mask[:, None] == 0).all()
        for row, image in enumerate(images):
            expected = distort_image(image.float() / 255, distortions, row) * 255
            inside = found[row, :, : image.shape[1], : image.shape[2]]
            assert (inside - expected.as_subclass(Tensor)).abs().max() <= 0.51
