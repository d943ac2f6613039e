from __future__ import annotations

import pytest
import torch
from torchvision import tv_tensors

from detrkit.config import TransformConfig
from detrkit.data.coco import Sample
from detrkit.data.transforms import RandomSizeCrop, ResizeShortSide, crop_target, eval_transform, train_transform
from detrkit.types import Target

RECTANGLE = (100, 60, 180, 140)
"""The bright rectangle of :func:`painted`, corners in pixels."""


def target_of(boxes: list[tuple[float, ...]], size_hw: tuple[int, int]) -> Target:
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Target(
        boxes=tv_tensors.BoundingBoxes(corners, format="XYXY", canvas_size=size_hw),
        labels=torch.arange(len(boxes)),
        area=(corners[:, 2:] - corners[:, :2]).prod(1),
        iscrowd=torch.zeros(len(boxes), dtype=torch.bool),
        image_id=1,
        orig_size_hw=size_hw,
    )


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


@pytest.mark.parametrize(
    "config",
    [
        TransformConfig(),
        TransformConfig(crop=1.0),
        TransformConfig(crop=0.0, flip=1.0),
        TransformConfig(recipe="resize", eval_size=150, flip=1.0),
        TransformConfig(scales=(96, 128), max_size=170, crop_scales=(140, 260), crop_range=(90, 150), crop=1.0),
    ],
)
def test_boxes_follow_the_pixels(config: TransformConfig) -> None:
    transform, followed = train_transform(config), 0
    for seed in range(25):
        torch.manual_seed(seed)
        image, target = transform(*painted())
        assert target["boxes"].canvas_size == tuple(image.shape[1:])
        if not len(target["boxes"]):
            assert (image > 127).sum() <= 3 * 2000  # at most a sliver, thinner than a pixel of the crop
            continue
        # a pixel's border may lie half a pixel off, more when a crop after a resize doubled it
        assert target["boxes"][0].tolist() == pytest.approx(bright_box(image), abs=2.6)
        followed += 1
    assert followed >= 10


def test_flip_mirrors_image_and_boxes() -> None:
    image, target = train_transform(TransformConfig(recipe="resize", eval_size=200, flip=1.0))(*painted())
    assert image.shape == (3, 200, 320)
    assert target["boxes"].tolist() == [[320 - 180, 60, 320 - 100, 140]]
    assert bright_box(image) == target["boxes"][0].tolist()


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


def test_crop_of_an_image_without_objects() -> None:
    cropped = crop_target(target_of([], (100, 100)), 10, 10, 40, 40)
    assert cropped["boxes"].shape == (0, 4)
    assert cropped["boxes"].canvas_size == (40, 40)


def test_crop_is_clamped_to_a_small_image() -> None:
    image, target = painted(200, 320)
    for _ in range(20):
        cropped, _ = RandomSizeCrop(384, 600)(image, target)
        assert cropped.shape == (3, 200, 320)
    for _ in range(20):
        cropped, _ = RandomSizeCrop(150, 600)(image, target)
        assert 150 <= cropped.shape[1] <= 200
        assert 150 <= cropped.shape[2] <= 320


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


def test_transform_changes_neither_image_nor_target_it_was_given() -> None:
    image, target = painted()
    before = (image.clone(), target["boxes"].clone(), target["area"].clone())
    for seed in range(10):
        torch.manual_seed(seed)
        train_transform(TransformConfig(crop=1.0, flip=1.0))(image, target)
    assert torch.equal(image, before[0])
    assert torch.equal(target["boxes"], before[1])
    assert torch.equal(target["area"], before[2])
