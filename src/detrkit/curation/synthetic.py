"""A data set drawn on the spot: coloured shapes on cluttered backgrounds, in the layout of COCO 2017.

Every image is a function of (seed, split, index), so that more images never change the first ones.
Geometry is in pixels of the final image unless it says share, which is of the image's side.
"""

from __future__ import annotations

import colorsys
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from detrkit.errors import UsageError
from detrkit.files import atomic_file

SHAPES = ("disc", "square", "triangle", "star", "ring", "cross")
MAX_OBJECTS = 6
OBJECT_SIDE_SHARE = (0.08, 0.40)
ASPECT_SPREAD = 0.2
"""Log of the greatest ratio by which width and height differ from their mean."""
ROTATION = 0.3
"""Greatest turn to either side, in radians; more would make a square look like a diamond."""
MAX_COVERED = 0.4
"""Greatest share of a box that the other boxes may cover together."""
MIN_CONTRAST = 0.3
"""Least distance of an object's colour from the background behind it, in its most different channel."""
RING_HOLE = 0.55
STAR_WAIST = 0.42
CROSS_ARM = 0.34
HUE_SPREAD = 0.08
"""Standard deviation of an object's hue around that of its class, of a full turn. Like ripe fruit, a class has a
typical colour; neighbours overlap so much that only the shape decides, and the clutter has all colours."""
SUPERSAMPLING = 4
JPEG_QUALITY = 95

_SPLITS = ("train", "val")


def write_synthetic(
    root: str | Path,
    train_images: int = 2000,
    val_images: int = 500,
    size: int = 128,
    seed: int = 0,
    num_classes: int = len(SHAPES),
    max_objects: int = MAX_OBJECTS,
    side_share: tuple[float, float] = OBJECT_SIDE_SHARE,
) -> Path:
    """Write the data set: ``train2017/``, ``val2017/`` and ``annotations/``.

    Args:
        root: Folder to write into; made if missing, and files of the same names are replaced.
        train_images: Number of images to train on.
        val_images: Number of images to evaluate on.
        size: Side of the square images.
        seed: Seed of everything drawn.
        num_classes: Number of :data:`SHAPES` to use.
        max_objects: Greatest number of objects in an image; the least is 0.
        side_share: Least and greatest side of an object.

    Returns:
        ``root``.

    Raises:
        UsageError: There are not so many shapes.
    """
    if not 1 <= num_classes <= len(SHAPES):
        raise UsageError(
            f"num_classes is {num_classes}, expected 1 to {len(SHAPES)}, one per shape: {', '.join(SHAPES)}"
        )
    root = Path(root)
    categories = [{"id": number, "name": name} for number, name in enumerate(SHAPES[:num_classes], start=1)]
    for split, count in zip(_SPLITS, (train_images, val_images), strict=True):
        folder = root / f"{split}2017"
        folder.mkdir(parents=True, exist_ok=True)
        content: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": [], "categories": categories}
        # each image has a random state of its own
        for index in range(count):
            random = np.random.Generator(np.random.PCG64((seed, _SPLITS.index(split), index)))
            pixels, objects = draw_scene(random, size, num_classes, max_objects, side_share)
            name = f"{index + 1:06d}.jpg"
            Image.fromarray(pixels).save(folder / name, quality=JPEG_QUALITY, subsampling=0)
            content["images"].append({"id": index + 1, "file_name": name, "height": size, "width": size})
            for class_id, box in objects:
                entry = {"id": len(content["annotations"]) + 1, "image_id": index + 1, "category_id": class_id + 1}
                content["annotations"].append({**entry, "bbox": box, "area": box[2] * box[3], "iscrowd": 0})
        with atomic_file(root / "annotations" / f"instances_{split}2017.json", own_folder=True) as file:
            json.dump(content, file)
    return root


def draw_scene(
    random: np.random.Generator,
    size: int,
    num_classes: int = len(SHAPES),
    max_objects: int = MAX_OBJECTS,
    side_share: tuple[float, float] = OBJECT_SIDE_SHARE,
) -> tuple[np.ndarray, list[tuple[int, list[int]]]]:
    """Draw one image and its objects.

    Returns:
        uint8 ``[size, size, 3]`` RGB, and a class id and a box (x, y, width, height) per object.
    """
    canvas = _draw_background(random, size)
    objects: list[tuple[int, list[int]]] = []
    for _ in range(int(random.integers(0, max_objects + 1))):
        box = _place(random, size, side_share, [box for _, box in objects])
        if box is not None:
            class_id = int(random.integers(num_classes))
            _draw_object(random, canvas, SHAPES[class_id], box, class_id / num_classes)
            objects.append((class_id, box))
    return np.rint(canvas.clip(0, 1) * 255).astype(np.uint8), objects


def _place(
    random: np.random.Generator, size: int, side_share: tuple[float, float], others: list[list[int]]
) -> list[int] | None:
    """Choose a box (x, y, width, height) that hides little of the others, or None if there is no room."""
    least, greatest = (share * size for share in side_share)
    for _ in range(30):
        side = math.sqrt(random.uniform(least**2, greatest**2))  # all areas alike
        aspect = math.exp(random.uniform(-ASPECT_SPREAD, ASPECT_SPREAD))
        width, height = (round(min(max(length, least), greatest)) for length in (side * aspect, side / aspect))
        x, y = int(random.integers(0, size - width + 1)), int(random.integers(0, size - height + 1))
        boxes = [*others, [x, y, width, height]]
        if all(_covered(number, boxes) <= MAX_COVERED for number in range(len(boxes))):
            return boxes[-1]
    return None


def _covered(number: int, boxes: list[list[int]]) -> float:
    """Return the share of a box that the others cover, at most."""
    x, y, width, height = boxes[number]
    covered = 0
    for left, top, other_width, other_height in boxes[:number] + boxes[number + 1 :]:
        common_width = min(x + width, left + other_width) - max(x, left)
        common_height = min(y + height, top + other_height) - max(y, top)
        covered += max(common_width, 0) * max(common_height, 0)
    return covered / (width * height)


def _draw_object(random: np.random.Generator, canvas: np.ndarray, shape: str, box: list[int], hue: float) -> None:
    """Paint a shape with soft edges and a slight shading, its outline touching all sides of the box."""
    x, y, width, height = box
    mask = _shape_mask(shape, width, height, random.uniform(-ROTATION, ROTATION))[:, :, None]
    region = canvas[y : y + height, x : x + width]
    behind = region.mean(axis=(0, 1))
    color = _object_color(random, hue)
    while np.abs(color - behind).max() < MIN_CONTRAST:
        color = _object_color(random, hue)
    shading = np.linspace(-1, 1, width)[None, :, None] * random.uniform(-0.1, 0.1)
    shading = shading + np.linspace(-1, 1, height)[:, None, None] * random.uniform(-0.1, 0.1)
    region += (np.clip(color + shading, 0, 1) - region) * mask


def _object_color(random: np.random.Generator, hue: float) -> np.ndarray:
    """Draw a colour around a hue (0 to 1), any saturation and brightness, so that none is like the background."""
    varied = (hue + random.normal(0, HUE_SPREAD)) % 1.0
    return np.array(colorsys.hsv_to_rgb(varied, random.uniform(0.3, 1), random.uniform(0.25, 1)))


def _shape_mask(shape: str, width: int, height: int, turn: float) -> np.ndarray:
    """Draw the coverage of a shape, 0 to 1, ``[height, width]``."""
    points = _outline(shape) @ np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    low, high = points.min(axis=0), points.max(axis=0)
    fine = np.array([width, height]) * SUPERSAMPLING
    points = (points - low) / (high - low) * (fine - 1)
    image = Image.new("L", (int(fine[0]), int(fine[1])))
    draw = ImageDraw.Draw(image)
    draw.polygon([(float(x), float(y)) for x, y in points], fill=255)
    if shape == "ring":
        center = (fine - 1) / 2
        draw.ellipse([*(center * (1 - RING_HOLE)).tolist(), *(center * (1 + RING_HOLE)).tolist()], fill=0)
    return np.asarray(image.reduce(SUPERSAMPLING), dtype=np.float32) / 255


def _outline(shape: str) -> np.ndarray:
    """Return the corners of a shape in -1 to 1, ``[points, 2]`` as (x, y), y downwards."""
    if shape == "square":
        return np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], dtype=np.float64)
    if shape == "triangle":
        return np.array([(0, -1), (1, 0.8), (-1, 0.8)], dtype=np.float64)
    if shape == "cross":
        arm = CROSS_ARM
        quarter = np.array([(-arm, -1), (arm, -1), (arm, -arm)])
        turns = [np.linalg.matrix_power(np.array([[0, 1], [-1, 0]]), count) for count in range(4)]
        return np.concatenate([quarter @ turn for turn in turns])
    count, waist = (10, STAR_WAIST) if shape == "star" else (60, 1.0)
    angles = np.arange(count) * (2 * math.pi / count) - math.pi / 2
    radii = np.where(np.arange(count) % 2, waist, 1.0)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _draw_background(random: np.random.Generator, size: int) -> np.ndarray:
    """Draw a gradient with noise, stripes, thin lines, and blobs smaller than any object; float32 0 to 1."""
    across = np.linspace(0, 1, size, dtype=np.float32)
    x, y = across[None, :, None], across[:, None, None]
    angle = random.uniform(0, 2 * math.pi)
    ramp = np.clip(0.5 + (x - 0.5) * math.cos(angle) + (y - 0.5) * math.sin(angle), 0, 1)
    first, second = random.uniform(0.1, 0.9, (2, 3)).astype(np.float32)
    canvas = first * (1 - ramp) + second * ramp
    canvas += _soft_noise(random, size) * np.float32(random.uniform(0.03, 0.12))
    if random.random() < 0.4:
        frequency, angle = random.uniform(3, 16) * 2 * math.pi, random.uniform(0, math.pi)
        waves = np.sin(frequency * (x * math.cos(angle) + y * math.sin(angle)))
        canvas += waves.astype(np.float32) * np.float32(random.uniform(0.03, 0.09))
    return _draw_clutter(random, np.clip(canvas, 0, 1))


def _soft_noise(random: np.random.Generator, size: int) -> np.ndarray:
    """Draw smooth coloured or gray noise, ``[size, size, 3]`` float32, about -2 to 2."""
    cells, channels = int(random.integers(4, 17)), 3 if random.random() < 0.5 else 1
    grid = random.standard_normal((channels, cells, cells), dtype=np.float32)
    planes = [Image.fromarray(plane).resize((size, size), Image.Resampling.BICUBIC) for plane in grid]
    return np.broadcast_to(np.stack([np.asarray(plane) for plane in planes], axis=-1), (size, size, 3))


def _draw_clutter(random: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    size = len(canvas)
    coarse = Image.fromarray(np.rint(canvas * 255).astype(np.uint8))
    fine = coarse.resize((2 * size, 2 * size), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(fine)
    for _ in range(int(random.integers(0, 7))):
        ends = random.uniform(-0.1, 1.1, 4) * 2 * size
        draw.line(ends.tolist(), fill=_color(random), width=int(random.integers(1, 4)))
    for _ in range(int(random.integers(0, 13))):
        radius = random.uniform(0.008, 0.024) * 2 * size
        x, y = random.uniform(0, 2 * size, 2)
        draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=_color(random))
    return np.asarray(fine.reduce(2), dtype=np.float32) / 255


def _color(random: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = random.integers(0, 256, 3).tolist()
    return red, green, blue
