"""A data set drawn on the spot: coloured shapes on cluttered backgrounds, in the layout of COCO 2017.

Every image is a function of (seed, split, index), so that more images never change the first ones.
Geometry is in pixels of the final image unless it says share, which is of the image's side.
With masks, the background is stuff: sky over grass and sand. Without, nothing is drawn or computed for them.
"""

from __future__ import annotations

import colorsys
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from detrkit.classes import ClassMap
from detrkit.data.formats.panoptic_write import panoptic_categories
from detrkit.errors import UsageError
from detrkit.files import write_text
from detrkit.masks import PanopticSegments, encode_mask, segments_info

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
STUFF = ("sky", "grass", "sand")
STUFF_HUES = (0.58, 0.28, 0.10)
STUFF_HUE_SPREAD = 0.03

_SPLITS = ("train", "val")


class Scene(NamedTuple):
    """One drawn image.

    Args:
        pixels: RGB, uint8 ``[size, size, 3]``.
        objects: Class id and box (x, y, width, height) of each object, whatever covers it.
        shown: Number of the object that each pixel shows, from 1 in the order of ``objects``; 0 for none; uint8.
        stuff: Place in :data:`STUFF` of what lies behind each pixel, uint8; None where nothing but clutter does.
    """

    pixels: np.ndarray
    objects: list[tuple[int, list[int]]]
    shown: np.ndarray
    stuff: np.ndarray | None


def write_synthetic(
    root: str | Path,
    train_images: int = 2000,
    val_images: int = 500,
    size: int = 128,
    seed: int = 0,
    num_classes: int = len(SHAPES),
    masks: bool = False,
) -> Path:
    """Write the data set: ``train2017/``, ``val2017/`` and ``annotations/``.

    With masks, the objects of ``annotations/instances_*.json`` have the pixels that are seen of them, as RLE, and
    boxes and areas of these; ``annotations/panoptic_*.json`` and its PNG files have the stuff, too.

    Args:
        root: Folder to write into; made if missing, and files of the same names are replaced.
        train_images: Number of images to train on.
        val_images: Number of images to evaluate on.
        size: Side of the square images.
        seed: Seed of everything drawn.
        num_classes: Number of :data:`SHAPES` to use.
        masks: Draw stuff behind the objects, and write masks and panoptic files.

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
    names = SHAPES[:num_classes] + (STUFF if masks else ())
    classes = ClassMap(names, tuple(range(1, len(names) + 1)), stuff=tuple(range(num_classes, len(names))))
    categories = panoptic_categories(classes)
    for split, count in zip(_SPLITS, (train_images, val_images), strict=True):
        folder = root / f"{split}2017"
        folder.mkdir(parents=True, exist_ok=True)
        things = [{"id": entry["id"], "name": entry["name"]} for entry in categories if entry["isthing"]]
        content: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": [], "categories": things}
        pictures: list[dict[str, Any]] = []
        # each image has a random state of its own
        for index in range(count):
            random = np.random.Generator(np.random.PCG64((seed, _SPLITS.index(split), index)))
            scene = draw_scene(random, size, num_classes, stuff=masks)
            name = f"{index + 1:06d}.jpg"
            Image.fromarray(scene.pixels).save(folder / name, quality=JPEG_QUALITY, subsampling=0)
            content["images"].append({"id": index + 1, "file_name": name, "height": size, "width": size})
            objects = [
                {"category_id": class_id + 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
                for class_id, box in scene.objects
            ]
            if masks:
                segments = _segments_of(scene, num_classes)
                picture = root / "annotations" / f"panoptic_{split}2017" / f"{index + 1:06d}.png"
                picture.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(segments.colors()).save(picture)
                infos = segments_info(segments, classes.category_ids)
                pictures.append({"image_id": index + 1, "file_name": picture.name, "segments_info": infos})
                objects = [
                    _masked(info, segments.ids == number)
                    for number, info in enumerate(infos, start=1)
                    if info["category_id"] <= num_classes
                ]
            for entry in objects:
                number = len(content["annotations"]) + 1
                content["annotations"].append({"id": number, "image_id": index + 1, **entry})
        path = root / "annotations" / f"instances_{split}2017.json"
        write_text(path, json.dumps(content), own_folder=True)
        if masks:
            content |= {"annotations": pictures, "categories": categories}
            write_text(path.with_name(f"panoptic_{split}2017.json"), json.dumps(content), own_folder=True)
    return root


def draw_scene(
    random: np.random.Generator,
    size: int,
    num_classes: int = len(SHAPES),
    max_objects: int = MAX_OBJECTS,
    *,
    stuff: bool = False,
) -> Scene:
    """Draw one image, its objects and what each pixel shows; on stuff if asked for."""
    canvas, behind = _draw_stuff(random, size) if stuff else (_draw_background(random, size), None)
    shown = np.zeros((size, size), dtype=np.uint8)
    objects: list[tuple[int, list[int]]] = []
    for _ in range(int(random.integers(0, max_objects + 1))):
        box = _place(random, size, [box for _, box in objects])
        if box is not None:
            class_id = int(random.integers(num_classes))
            coverage = _draw_object(random, canvas, SHAPES[class_id], box, class_id / num_classes)
            objects.append((class_id, box))
            x, y, width, height = box
            shown[y : y + height, x : x + width][coverage >= 0.5] = len(objects)
    return Scene(np.rint(canvas.clip(0, 1) * 255).astype(np.uint8), objects, shown, behind)


def _segments_of(scene: Scene, num_classes: int) -> PanopticSegments:
    """Return the panoptic picture of a scene: its objects in their order, then the stuff that is seen."""
    assert scene.stuff is not None
    whole = np.where(scene.shown > 0, scene.shown, len(scene.objects) + 1 + scene.stuff.astype(np.int64))
    present, ids, areas = np.unique(whole, return_inverse=True, return_counts=True)
    of_all = np.array(
        [class_id for class_id, _ in scene.objects] + [num_classes + kind for kind in range(len(STUFF))]
    )
    numbers = (ids.reshape(whole.shape) + 1).astype(np.int32)
    return PanopticSegments(numbers, of_all[present - 1], np.ones(len(present)), areas.astype(np.int64))


def _masked(info: dict[str, Any], mask: np.ndarray) -> dict[str, Any]:
    """Return a segment as COCO has an object with a mask."""
    rest = {key: info[key] for key in ("category_id", "bbox", "area", "iscrowd")}
    return {**rest, "segmentation": encode_mask(mask)}


def _place(random: np.random.Generator, size: int, others: list[list[int]]) -> list[int] | None:
    """Choose a box (x, y, width, height) that hides little of the others, or None if there is no room."""
    least, greatest = (share * size for share in OBJECT_SIDE_SHARE)
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


def _draw_object(
    random: np.random.Generator, canvas: np.ndarray, shape: str, box: list[int], hue: float
) -> np.ndarray:
    """Paint a shape with soft edges and a slight shading, its outline touching all sides of the box.

    Returns:
        Its coverage of the box, 0 to 1, ``[height, width]``.
    """
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
    return mask[:, :, 0]


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


def _draw_stuff(random: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw sky over grass and sand, with the same clutter; float32 0 to 1, and the kind of each pixel.

    Where they meet is drawn by chance, so that a picture may show one of them only.
    """
    across = np.linspace(0, 1, size, dtype=np.float32)
    x, y = across[None, :], across[:, None]
    # where each kind is
    horizon = random.uniform(-0.15, 1.15) + random.uniform(-0.3, 0.3) * (x - 0.5)
    shore = random.uniform(-0.5, 1.5) + random.uniform(-0.5, 0.5) * (y - 0.5)
    ground = (x < shore) ^ bool(random.integers(2))
    kinds = np.where(y < horizon, 0, np.where(ground, 1, 2)).astype(np.uint8)
    # texture: clouds, upright blades, ripples
    blades = np.repeat(random.standard_normal((size // 4 + 1, size), dtype=np.float32), 4, axis=0)[:size]
    angle, frequency = random.uniform(-0.4, 0.4), random.uniform(6, 12) * 2 * math.pi
    ripples = np.sin(frequency * (y * math.cos(angle) + x * math.sin(angle))).astype(np.float32)
    textures = (0.04 * _soft_noise(random, size), 0.07 * blades[:, :, None], 0.07 * ripples[:, :, None])
    canvas = np.zeros((size, size, 3), dtype=np.float32)
    for kind, (hue, texture) in enumerate(zip(STUFF_HUES, textures, strict=True)):
        varied = (hue + random.normal(0, STUFF_HUE_SPREAD)) % 1.0
        color = np.array(
            colorsys.hsv_to_rgb(varied, random.uniform(0.35, 0.7), random.uniform(0.5, 0.9)), np.float32
        )
        shading = (y[:, :, None] - 0.5) * np.float32(random.uniform(-0.2, 0.2))
        canvas = np.where((kinds == kind)[:, :, None], color + shading + texture, canvas)
    return _draw_clutter(random, np.clip(canvas, 0, 1)), kinds


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
