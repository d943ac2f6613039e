from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors

from detrkit.data.geometry import (
    crop_sample,
    crop_target,
    flip_sample,
    pad_sample,
    resize_sample,
    select_objects,
)
from detrkit.types import Target

from .scenes import assert_sound, make_target, painted_scene, random_scene


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


def test_keep_removes_objects_that_are_inside() -> None:
    target = make_target(torch.tensor([[1, 1, 5, 5], [2, 2, 6, 6]]), (10, 10))
    cropped = crop_target(target, 0, 0, 8, 8, keep=torch.tensor([False, True]))
    assert cropped["labels"].tolist() == [1]


@pytest.mark.parametrize("seed", range(12))
def test_area_of_crops_is_that_of_the_visible_part(seed: int) -> None:
    image, target = random_scene(seed, (60, 80))
    region = (7, 11, 31, 43)
    _, cropped = crop_sample(image, target, *region)
    for label, area in zip(cropped["labels"].tolist(), cropped["area"].tolist(), strict=True):
        row = target["labels"].tolist().index(label)
        x1, y1, x2, y2 = target["boxes"][row].tolist()
        visible = (min(x2, 11 + 43) - max(x1, 11)) * (min(y2, 7 + 31) - max(y1, 7))
        assert area == pytest.approx(float(target["area"][row]) * visible / ((x2 - x1) * (y2 - y1)), rel=1e-3)


@pytest.mark.parametrize("vertical", [False, True])
def test_a_flip_twice_is_no_flip(vertical: bool) -> None:
    image, target = random_scene(3, (20, 30), masks=True)
    once = flip_sample(image, target, vertical=vertical)
    twice = flip_sample(*once, vertical=vertical)
    assert not torch.equal(once[0], image)
    assert torch.equal(twice[0], image)
    assert torch.allclose(twice[1]["boxes"], target["boxes"], atol=1e-4)
    assert torch.equal(twice[1]["masks"], target["masks"])


def test_padding_moves_objects_and_shows_the_colour() -> None:
    image, target = painted_scene(1, masks=True)
    canvas, padded = pad_sample(image, target, 20, 10, (200, 300), (9, 8, 7))
    assert canvas.shape == (3, 200, 300)
    assert torch.equal(canvas[:, 10:110, 20:170].as_subclass(Tensor), image.as_subclass(Tensor))
    assert canvas[:, 0, 0].tolist() == canvas[:, 199, 299].tolist() == [9, 8, 7]
    assert torch.equal(
        padded["boxes"].as_subclass(Tensor),
        target["boxes"].as_subclass(Tensor) + torch.tensor([20, 10, 20, 10]),
    )
    assert torch.equal(padded["masks"][:, 10:110, 20:170].as_subclass(Tensor), target["masks"].as_subclass(Tensor))
    assert padded["masks"].sum() == target["masks"].sum()
    assert torch.equal(padded["area"], target["area"])


def test_resizing_leaves_the_area() -> None:
    image, target = random_scene(5, (20, 30), masks=True)
    resized, after = resize_sample(image, target, (50, 33))
    assert_sound(resized, after, [target])
    assert torch.equal(after["area"], target["area"])
    assert after["masks"].shape[1:] == (50, 33)


def test_selecting_objects_selects_all_that_is_known_of_them() -> None:
    _, target = random_scene(5, (20, 30), masks=True)
    selected = select_objects(target, torch.tensor([True, False, True, False, False]))
    assert selected["labels"].tolist() == [50, 52]
    assert torch.equal(selected["boxes"], target["boxes"][[0, 2]])
    assert torch.equal(selected["masks"], target["masks"][[0, 2]])
    assert selected["boxes"].canvas_size == (20, 30)
    assert len(target["boxes"]) == 5
