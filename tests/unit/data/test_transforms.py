from __future__ import annotations

import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from detrkit.config import TransformConfig
from detrkit.data.coco import Sample
from detrkit.data.geometry import crop_target
from detrkit.data.transforms import IoUCrop, eval_transform, needed_size, train_transform
from detrkit.ops.images import DecodeTarget
from detrkit.types import Target

from .scenes import make_target, masks_of

RECTANGLE = (100, 60, 180, 140)
"""The bright rectangle of :func:`painted`, corners in pixels."""


def target_of(boxes: list[tuple[float, ...]], size_hw: tuple[int, int]) -> Target:
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    target = make_target(corners, size_hw)
    target["area"] = (corners[:, 2:] - corners[:, :2]).prod(1)
    return target


def painted(height: int = 200, width: int = 320) -> Sample:
    """A black image with one bright rectangle, and its box."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    x1, y1, x2, y2 = RECTANGLE
    image[:, y1:y2, x1:x2] = 255
    return tv_tensors.Image(image), target_of([RECTANGLE], (height, width))


def test_eval_resizes_without_randomness() -> None:
    image, target = eval_transform(TransformConfig())(*painted())
    assert image.shape == (3, 800, 1280)
    assert target["boxes"].tolist() == [[4 * corner for corner in RECTANGLE]]
    assert target["area"].tolist() == [6400]  # of the original image
    assert target["orig_size_hw"] == (200, 320)
    assert torch.equal(eval_transform(TransformConfig())(*painted())[0], image)


def test_crop_clips_boxes_and_removes_objects_outside() -> None:
    inside, cut, outside, touching = (20, 20, 30, 30), (0, 12, 20, 22), (60, 60, 70, 70), (50, 10, 60, 20)
    target = target_of([inside, cut, outside, touching], (100, 100))
    cropped = crop_target(target, 10, 10, 40, 40)
    assert cropped["boxes"].tolist() == [[10, 10, 20, 20], [0, 2, 10, 12]]
    assert cropped["boxes"].canvas_size == (40, 40)
    assert cropped["labels"].tolist() == [0, 1]
    assert cropped["area"].tolist() == [100, 100]  # half of the second object is left
    assert target["boxes"].tolist()[1] == [0, 12, 20, 22]


def test_iou_crop_has_the_distribution_of_torchvision() -> None:
    """Sides and kept objects over many crops, beside torchvision's own; the bound is 4 standard errors."""
    torch.manual_seed(0)
    boxes = [(10, 10, 60, 90), (100, 60, 180, 140), (300, 150, 316, 196), (40, 20, 280, 190)]
    image, target = painted()[0], target_of(boxes, (200, 320))
    reference, ours = v2.Compose([v2.RandomIoUCrop(), v2.SanitizeBoundingBoxes()]), IoUCrop(1.0)
    found, expected = [], []
    for _ in range(500):
        for crop, rows in ((ours, found), (reference, expected)):
            cropped, left = crop(image, target)
            rows.append([*cropped.shape[1:], cropped.shape[1:] == (200, 320), len(left["boxes"])])
    for one, two in zip(torch.tensor(found).float().T, torch.tensor(expected).float().T, strict=True):
        assert abs(one.mean() - two.mean()) < 4 * (one.var() / 500 + two.var() / 500).sqrt()
        assert one.std() == pytest.approx(float(two.std()), rel=0.15)


def test_iou_crop_without_objects_or_without_luck_leaves_the_image() -> None:
    image, _ = painted()
    assert IoUCrop(1.0)(image, target_of([], (200, 320)))[0] is image
    assert IoUCrop(0.0)(image, painted()[1])[0] is image


def test_a_strip_does_not_fill_the_memory() -> None:
    transform = train_transform(TransformConfig(crop=1.0))
    for seed in range(6):
        torch.manual_seed(seed)
        image, target = torch.zeros(3, 1, 5000, dtype=torch.uint8), target_of([(10, 0, 4000, 1)], (1, 5000))
        resized, _ = transform(tv_tensors.Image(image), target)
        assert max(resized.shape) <= 1333
    first = transform.steps[-1].crop.steps[0]  # type: ignore[attr-defined]
    assert max(first(image, target)[0].shape) <= 8192


def test_slivers_are_dropped_as_the_network_would_see_them() -> None:
    boxes = [(0, 0, 320, 3), (0, 0, 320, 9), (5, 0, 8, 200)]
    config = TransformConfig(recipe="resize", eval_size=100, flip=0.0, min_box_side=2.0)
    _, left = train_transform(config)(painted()[0], target_of(boxes, (200, 320)))
    assert left["labels"].tolist() == [1]


def test_needed_size_follows_the_recipe() -> None:
    assert needed_size(TransformConfig()) == DecodeTarget(800, 1333, 600)
    assert needed_size(TransformConfig(crop=0.0)) == DecodeTarget(800, 1333, 0)
    assert needed_size(TransformConfig(recipe="resize", eval_size=320, max_size=500)) == DecodeTarget(320, 500)
    assert needed_size(TransformConfig(scale_jitter=(0.5, 2.0), crop=0.0)) == DecodeTarget(1600, 2666, 0)


def half_masked() -> Target:
    """Two objects whose masks fill the left half of their boxes."""
    target = make_target(torch.tensor([[10, 10, 30, 30], [0, 0, 4, 4]]), (40, 40), masks=True)
    masks = target["masks"].pixels()
    masks[0, :, 20:] = False
    masks[1] = False  # too thin to be drawn
    return {**target, "masks": masks_of(masks)}


def test_area_takes_the_share_of_the_mask_where_there_is_one() -> None:
    target = half_masked()
    cropped = crop_target(target, 0, 0, 40, 15)  # a quarter of the box, half of the mask
    assert cropped["boxes"].tolist() == [[10, 10, 15, 30], [0, 0, 4, 4]]
    assert cropped["area"].tolist() == pytest.approx([float(target["area"][0]) / 2, float(target["area"][1])])
    assert cropped["masks"].pixels().shape == (2, 40, 15)


def test_area_takes_the_share_of_the_box_where_no_mask_is_drawn() -> None:
    target = half_masked()
    cropped = crop_target(target, 0, 1, 40, 39)
    assert cropped["area"].tolist() == pytest.approx([float(target["area"][0]), float(target["area"][1]) * 3 / 4])


def test_an_object_without_a_visible_pixel_is_removed() -> None:
    cropped = crop_target(half_masked(), 0, 22, 40, 18)  # the box reaches in, the mask does not
    assert cropped["labels"].tolist() == []
    assert cropped["masks"].pixels().shape == (0, 40, 18)
