from __future__ import annotations

import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from detrkit.config import TransformConfig
from detrkit.data.coco import Sample
from detrkit.data.geometry import crop_target
from detrkit.data.transforms import (
    IoUCrop,
    RandomSizeCrop,
    ResizeShortSide,
    ScaleJitter,
    ZoomOut,
    eval_transform,
    needed_size,
    train_transform,
)
from detrkit.ops.images import DecodeTarget
from detrkit.types import Target

from .scenes import make_target

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


def bright_box(image: torch.Tensor) -> list[float]:
    """Corners of the bright pixels, to the fraction of a pixel that antialiasing leaves on the border."""
    bright = image[0].float() / 255
    columns, rows = bright.amax(0), bright.amax(1)
    xs, ys = torch.nonzero(columns > 0.5).flatten(), torch.nonzero(rows > 0.5).flatten()
    return [float(xs[0]), float(ys[0]), float(xs[-1]) + 1, float(ys[-1]) + 1]


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


def test_every_crop_size_and_place_is_drawn() -> None:
    image, target = painted(200, 320)
    image = tv_tensors.Image(torch.arange(320).expand(3, 200, 320).to(torch.int16))
    crops = [RandomSizeCrop(318, 400)(image, target)[0] for _ in range(200)]
    places = {(crop.shape[2], int(crop[0, 0, 0])) for crop in crops}
    assert places == {(318, 0), (318, 1), (318, 2), (319, 0), (319, 1), (320, 0)}


def test_every_scale_is_drawn_about_equally() -> None:
    torch.manual_seed(0)
    resize = ResizeShortSide((10, 20, 30), 1000)
    heights = [resize(*painted())[0].shape[1] for _ in range(600)]
    assert all(150 < heights.count(height) < 250 for height in (10, 20, 30))


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


def test_zoom_out_places_the_image_anywhere_on_a_canvas_of_the_fill() -> None:
    places = []
    for seed in range(40):
        torch.manual_seed(seed)
        image, target = painted()
        canvas, padded = ZoomOut(1.0, 3.0, (1, 2, 3), 10_000)(image + 10, target)
        height, width = canvas.shape[1:]
        assert 200 <= height <= 600
        assert width / height == pytest.approx(1.6, abs=0.01)
        left, top = (padded["boxes"][0, :2] - torch.tensor(RECTANGLE[:2])).int().tolist()
        assert canvas[:, top + 5, left + 5].tolist() == [10, 10, 10]
        assert (canvas == torch.tensor([1, 2, 3])[:, None, None]).all(0).sum() == height * width - 200 * 320
        if height > 210:
            places.append((left / (width - 320), top / (height - 200)))
    low, high = torch.tensor(places).amin(0), torch.tensor(places).amax(0)
    assert (low < 0.1).all()
    assert (high > 0.9).all()


def test_zoom_out_of_a_large_image_stays_within_bounds() -> None:
    for seed in range(10):
        torch.manual_seed(seed)
        image, target = painted(500, 800)
        canvas, padded = ZoomOut(1.0, 16.0, (0, 0, 0), 1000)(image, target)
        assert max(canvas.shape) <= 1000
        assert padded["boxes"].canvas_size == tuple(canvas.shape[1:])
        assert padded["boxes"][0].tolist() == pytest.approx(bright_box(canvas), abs=1.1)


def test_scale_jitter_makes_objects_smaller_and_larger_by_the_factors() -> None:
    factors = []
    for seed in range(150):
        torch.manual_seed(seed)
        image, _ = painted()
        whole = target_of([(0, 0, 320, 200)], (200, 320))
        resized, left = ScaleJitter(0.5, 2.0, ResizeShortSide([100]))(image, whole)
        share = float(left["area"][0] / whole["area"][0])
        factors.append((share**-0.5) * resized.shape[1] / 100)
        assert resized.shape[2] <= 161
    values = torch.tensor(factors).log2()
    assert values.min() > -1.05
    assert values.max() < 1.05
    assert abs(float(values.mean())) < 0.2  # halved as often as doubled
    assert ((values < 0).float().mean() - 0.5).abs() < 0.15


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
