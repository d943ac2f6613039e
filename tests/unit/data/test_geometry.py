from __future__ import annotations

import pytest
import torch
from torchvision import tv_tensors

from detrkit.data.geometry import (
    crop_target,
)
from detrkit.types import Target

from .scenes import make_target


def half_masked() -> Target:
    """Two objects whose masks fill the left half of their boxes."""
    target = make_target(torch.tensor([[10, 10, 30, 30], [0, 0, 4, 4]]), (40, 40), masks=True)
    masks = target["masks"].clone()
    masks[0, :, 20:] = False
    masks[1] = False  # too thin to be drawn
    return {**target, "masks": tv_tensors.Mask(masks)}


def test_area_takes_the_share_of_the_mask_where_there_is_one() -> None:
    target = half_masked()
    cropped = crop_target(target, 0, 0, 40, 15)  # a quarter of the box, half of the mask
    assert cropped["boxes"].tolist() == [[10, 10, 15, 30], [0, 0, 4, 4]]
    assert cropped["area"].tolist() == pytest.approx([float(target["area"][0]) / 2, float(target["area"][1])])
    assert cropped["masks"].shape == (2, 40, 15)


def test_area_takes_the_share_of_the_box_where_no_mask_is_drawn() -> None:
    target = half_masked()
    cropped = crop_target(target, 0, 1, 40, 39)
    assert cropped["area"].tolist() == pytest.approx([float(target["area"][0]), float(target["area"][1]) * 3 / 4])


def test_an_object_without_a_visible_pixel_is_removed() -> None:
    cropped = crop_target(half_masked(), 0, 22, 40, 18)  # the box reaches in, the mask does not
    assert cropped["labels"].tolist() == []
    assert cropped["masks"].shape == (0, 40, 18)
