from __future__ import annotations

import numpy as np
import pytest
import torch

from detrkit.preprocess import normalize_images, pad_images, resize_image, resized_size_hw

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def random_pixels(height: int, width: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(0)).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_resized_sizes_equal_transformers() -> None:
    reference = pytest.importorskip("transformers.image_transforms").get_size_with_aspect_ratio
    random = np.random.Generator(np.random.PCG64(0))
    sizes = [*random.integers(1, 3000, (3000, 2)).tolist(), (640, 480), (1, 1), (800, 800), (800, 1333)]
    for height, width in sizes:
        for short, longest in ((800, 1333), (480, 1333), (608, 1333), (400, None), (128, 213)):
            expected = reference((height, width), short, longest)
            if 0 in expected:
                expected = tuple(max(1, side) for side in expected)  # transformers gives an image of no pixels
            assert resized_size_hw((height, width), short, longest) == expected


@pytest.mark.parametrize("by_pixel", [False, True])
def test_resize_does_not_depend_on_how_memory_lies(by_pixel: bool) -> None:
    from torchvision.transforms.v2.functional import resize

    image = torch.from_numpy(random_pixels(50, 70)).permute(2, 0, 1)
    expected = resize(image.contiguous(), [33, 90], antialias=True)
    assert torch.equal(resize_image(image if by_pixel else image.contiguous(), (33, 90)), expected)
    assert torch.equal(resize_image(image[:, 5:], (33, 90)), resize(image[:, 5:].contiguous(), [33, 90]))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_normalized_pixels_follow_the_published_formula(memory_format: torch.memory_format) -> None:
    images = torch.from_numpy(random_pixels(8, 10)).permute(2, 0, 1).repeat(2, 1, 1, 1)
    images = images.contiguous(memory_format=memory_format)
    padding_mask = torch.zeros(2, 8, 10, dtype=torch.bool)
    padding_mask[1, 5:] = True
    before = images.clone()
    normalized = normalize_images(images, MEAN, STD, padding_mask)
    expected = (images.float() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    # two roundings less than the published formula: a few float32 steps at values up to 2.7
    torch.testing.assert_close(normalized[~padding_mask[:, None].expand_as(images)],
                               expected[~padding_mask[:, None].expand_as(images)], rtol=0, atol=1e-6)  # fmt: skip
    assert (normalized[1, :, 5:] == 0).all()
    assert torch.equal(images, before)
    assert normalized.is_contiguous(memory_format=memory_format)
    assert normalized.dtype == torch.float32


def test_padding_overwrites_what_the_memory_held() -> None:
    images = [torch.full((3, 4, 6), 7, dtype=torch.uint8), torch.full((3, 5, 2), 8, dtype=torch.uint8)]
    expected, expected_mask = pad_images(images)
    out = torch.full((2, 3, 5, 6), 99, dtype=torch.uint8), torch.ones(2, 5, 6, dtype=torch.bool)
    out[1][0, 0, 0] = True
    out[1][1, 4, 5] = False
    padded, padding_mask = pad_images(images, out)
    assert padded is out[0]
    assert torch.equal(padded, expected)
    assert torch.equal(padding_mask, expected_mask)
    assert expected_mask.sum() == 60 - 24 - 10
    assert (expected[expected_mask[:, None].expand_as(expected)] == 0).all()


def test_size_of_a_resize_is_known_without_pixels() -> None:
    image = torch.empty(3, 20, 30, dtype=torch.uint8, device="meta")
    assert resize_image(image, (7, 9)).shape == (3, 7, 9)
