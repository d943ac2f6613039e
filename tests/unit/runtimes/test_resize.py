"""Resizing in NumPy against torch's, to the bit."""

import numpy as np
import pytest
import torch

from detrkit.preprocess import resize_image
from detrkit.runtimes.resize import resize_pixels

SIZES = [
    ((480, 640), (320, 427)),
    ((120, 160), (200, 267)),
    ((1, 1), (64, 64)),
    ((20, 400), (24, 480)),
    ((900, 600), (48, 32)),
    ((7, 3), (298, 128)),
    ((700, 11), (133, 2)),
    ((5, 5), (5, 9)),
    ((100, 100), (50, 100)),
    ((33, 47), (33, 47)),
]


def assert_same(image: np.ndarray, size_hw: tuple[int, int]) -> None:
    expected = resize_image(torch.from_numpy(image).permute(2, 0, 1), size_hw).permute(1, 2, 0).numpy()
    assert np.array_equal(resize_pixels(image, size_hw), expected), (image.shape, size_hw)


@pytest.mark.parametrize(("size_hw", "wanted_hw"), SIZES)
def test_every_pixel_is_torchs(size_hw, wanted_hw):
    assert_same(np.random.default_rng(0).integers(0, 256, (*size_hw, 3)).astype(np.uint8), wanted_hw)


def test_every_pixel_is_torchs_at_sizes_drawn_at_random():
    random = np.random.default_rng(1)
    for _ in range(25):
        sizes = random.integers(1, 300, 4).tolist()
        assert_same(random.integers(0, 256, (*sizes[:2], 3)).astype(np.uint8), (sizes[2], sizes[3]))


@pytest.mark.parametrize("wanted_hw", [(100, 160), (97, 211), (30, 20)])
def test_sums_that_float32_does_not_hold_are_exact_too(wanted_hw):
    # to a fourth and less, of bright pixels: float32 would round some that lie at a half to the other side
    assert_same(np.random.default_rng(3).integers(225, 256, (480, 640, 3)).astype(np.uint8), wanted_hw)


def test_a_view_of_other_strides_is_read_as_it_looks():
    image = np.random.default_rng(2).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    assert np.array_equal(
        resize_pixels(image[:, ::-1, ::-1], (20, 30)), resize_pixels(image[:, ::-1, ::-1].copy(), (20, 30))
    )
