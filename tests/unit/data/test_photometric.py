from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from detrkit.config import TransformConfig
from detrkit.data.augment import (
    BRIGHTNESS,
    CONTRAST,
    HUE,
    SATURATION,
    Distortions,
    Photometric,
    distort_batch,
    distort_image,
    draw_distortions,
)

from .scenes import random_scene

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


def test_a_batch_is_close_to_the_rounded_images_of_the_workers() -> None:
    images = [smooth(seed, 30, 40) for seed in range(6)]
    batch, mask = padded(images)
    distortions = draw_distortions(ALL, 6, torch.Generator().manual_seed(3))
    found = distort_batch(batch, distortions, mask)
    for row, image in enumerate(images):
        difference = (found[row].int() - distort_image(image, distortions, row).as_subclass(Tensor).int()).abs()
        assert difference.float().mean() < 3
        assert difference.max() <= 16


@pytest.mark.parametrize("field", ["brightness", "contrast", "saturation", "hue", "channels"])
def test_each_change_alone_has_parity_and_changes_something(field: str) -> None:
    nothing = draw_distortions(TransformConfig(), 4)
    drawn = draw_distortions(ALL, 4, torch.Generator().manual_seed(1))
    distortions = dataclasses.replace(nothing, **{field: getattr(drawn, field)})
    images = [smooth(seed, 30, 40) for seed in range(4)]
    batch, mask = padded(images)
    found = distort_batch(batch, distortions, mask)
    assert not torch.equal(found, batch)
    for row, image in enumerate(images):
        expected = distort_image(image.float() / 255, distortions, row) * 255
        assert (found[row] - expected.as_subclass(Tensor)).abs().max() <= 0.51


def test_nothing_drawn_changes_nothing() -> None:
    batch, mask = padded([smooth(0, 20, 30), smooth(1, 30, 20)])
    assert torch.equal(distort_batch(batch, draw_distortions(TransformConfig(), 2), mask), batch)
    image, target = random_scene(3, (20, 30))
    assert torch.equal(Photometric(TransformConfig())(image, target)[0], image)


def test_padding_counts_in_no_mean() -> None:
    image = smooth(0, 20, 30)
    alone, _ = padded([image])
    together, mask = padded([image, smooth(1, 60, 70)])
    drawn = draw_distortions(ALL, 2, torch.Generator().manual_seed(2))
    first = Distortions(
        **{field.name: getattr(drawn, field.name)[:1] for field in dataclasses.fields(Distortions)}
    )
    found = distort_batch(together, drawn, mask)[0, :, :20, :30]
    assert torch.equal(found, distort_batch(alone, first, torch.zeros(1, 20, 30, dtype=torch.bool))[0])


def test_strength_and_probability_are_kept() -> None:
    config = TransformConfig(photometric=0.4, photometric_strength=0.5, channel_shuffle=0.3)
    drawn = draw_distortions(config, 4000, torch.Generator().manual_seed(0))
    for values, center, greatest in (
        (drawn.brightness, 1, BRIGHTNESS),
        (drawn.contrast, 1, CONTRAST),
        (drawn.saturation, 1, SATURATION),
        (drawn.hue, 0, HUE),
    ):
        change = (values - center).abs()
        assert 0.37 < (change > 0).float().mean() < 0.43
        assert 0.49 * greatest < change.max() <= 0.5 * greatest
        assert abs(float((values - center).mean())) < 0.02 * greatest
    shuffled = (drawn.channels != torch.arange(3)).any(1).float().mean()
    assert 0.22 < shuffled < 0.28  # one order in six is the usual one
    assert (drawn.channels.sort(1).values == torch.arange(3)).all()
    assert 0.45 < drawn.contrast_first.float().mean() < 0.55
