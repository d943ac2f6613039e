"""Sound data sets of uniform objects, drawn: coins on a table, faces with and without masks.

They are hard for statistics of pixels: coins look like each other and fill the image, faces have bodies below them
and differ between classes in their lower half alone. Geometry is in pixels.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

FACES = ("with_mask", "without_mask", "mask_weared_incorrect")
FACE_SHARES = (0.79, 0.18, 0.03)
COINS = {"cent": (150, 90, 60), "dime": (190, 160, 80), "dollar": (170, 172, 175)}
SKINS = ((241, 205, 180), (224, 172, 140), (160, 110, 80), (90, 60, 45))
MASKS = ((235, 238, 240), (120, 170, 210), (30, 32, 36), (200, 140, 160))
SIZE_WH = (400, 300)


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a set is made of.

    Args:
        images: Of the training split; the validation split has half of them.
        objects: Least and greatest number in an image.
        side: Least and greatest side of an object.
        classes: How many of :data:`FACES` or :data:`COINS`.
        faces: Faces, or coins.
        packed: Side by side in rows all over a gray image.
    """

    images: int
    objects: tuple[int, int]
    side: tuple[int, int]
    classes: int
    faces: bool
    packed: bool = False


KINDS = {
    "faces, small and many": Kind(120, (3, 18), (10, 36), 3, True),
    "faces, small and few": Kind(160, (1, 3), (12, 40), 3, True),
    "faces, large and few": Kind(120, (1, 3), (60, 150), 3, True),
    "faces, of all sizes": Kind(200, (1, 12), (10, 150), 3, True),
    "faces, two classes": Kind(80, (1, 8), (16, 90), 2, True),
    "coins, small and many": Kind(60, (20, 60), (16, 24), 1, False),
    "coins, large and many": Kind(60, (8, 16), (64, 80), 1, False),
    "coins, small and few": Kind(120, (1, 4), (18, 28), 1, False),
    "coins, large and few": Kind(60, (1, 4), (90, 140), 1, False),
    "coins of three kinds": Kind(60, (6, 20), (28, 60), 3, False),
    "coins, packed": Kind(40, (60, 70), (36, 39), 1, False, packed=True),
    "coins of two kinds, packed": Kind(40, (60, 70), (36, 39), 2, False, packed=True),
}


def write_set(folder: Path, kind: Kind, seed: int = 0) -> Path:
    """Write a set in the layout of COCO 2017; one that is there is left."""
    if (folder / "annotations" / "instances_val2017.json").exists():
        return folder
    random = np.random.Generator(np.random.PCG64(seed))
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    names = (FACES if kind.faces else tuple(COINS))[: kind.classes]
    for split, count in (("train", kind.images), ("val", kind.images // 2)):
        images, objects = [], []
        (folder / f"{split}2017").mkdir(exist_ok=True)
        for number in range(1, count + 1):
            name = f"{number:04}.jpg"
            picture, drawn = _draw(kind, random)
            picture.save(folder / f"{split}2017" / name, quality=88)
            images.append({"id": number, "file_name": name, "width": SIZE_WH[0], "height": SIZE_WH[1]})
            for box, label in drawn:
                x1, y1, x2, y2 = box
                entry: dict[str, Any] = {"id": len(objects) + 1, "image_id": number, "category_id": label + 1}
                bbox = [x1, y1, x2 - x1, y2 - y1]
                objects.append({**entry, "bbox": bbox, "area": bbox[2] * bbox[3], "iscrowd": 0})
        categories = [{"id": place, "name": name} for place, name in enumerate(names, 1)]
        content = {"images": images, "annotations": objects, "categories": categories}
        path = folder / "annotations" / f"instances_{split}2017.json"
        path.write_text(json.dumps(content), encoding="utf-8")
    return folder


def _draw(kind: Kind, random: np.random.Generator) -> tuple[Image.Image, list[tuple[list[float], int]]]:
    """Draw an image; gives its boxes, as a person draws them, and their classes."""
    width, height = SIZE_WH
    # a table or a street: patches of colour, blurred, with noise
    table = random.normal(random.integers(60, 180, 3), 8, (6, 8, 3))
    small = random.integers(60, 200, (6, 8, 3)) if kind.faces else table
    picture = Image.fromarray(np.clip(small, 0, 255).astype(np.uint8)).resize(SIZE_WH, Image.Resampling.BICUBIC)
    noisy = np.asarray(picture, np.float32) + random.normal(0, 5, (height, width, 1))
    picture = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    if kind.faces:
        for _ in range(int(random.integers(2, 8))):
            x, y, w, h = random.uniform(0, 1, 4) * (width, height, 120, 120)
            draw.rectangle((x, y, x + w + 5, y + h + 5), tuple(random.integers(0, 256, 3).tolist()))
    # objects that do not cover each other
    found: list[tuple[list[float], int]] = []
    free = np.ones((height, width), dtype=bool)
    step = kind.side[1] + 1
    rows = [(x, y) for y in range(2, height - step, step) for x in range(2, width - step, step)]
    corners = random.permutation(rows) if kind.packed else None
    for number in range(int(random.integers(*kind.objects, endpoint=True))):
        side = float(np.exp(random.uniform(*np.log(kind.side))))
        w, h = (side * random.uniform(0.72, 0.9), side) if kind.faces else (side, side)
        for _ in range(20):
            x, y = random.uniform(0, 1, 2) * (width - w - 2, height - h - 2) + 1
            if corners is not None:
                x, y = corners[number % len(corners)]
            place = np.s_[int(y) : int(y + h) + 1, int(x) : int(x + w) + 1]
            if free[place].all():
                break
        else:
            continue
        free[place] = False
        shares = np.array(FACE_SHARES if kind.faces else (0.5, 0.3, 0.2))[: kind.classes]
        label = int(random.choice(kind.classes, p=shares / shares.sum()))
        box = np.array([x, y, x + w, y + h])
        (_face if kind.faces else _coin)(draw, box, label, random)
        drawn = box + random.normal(0, 0.03 * side, 4)
        found.append((np.clip(drawn, 0, [width, height, width, height]).round(1).tolist(), label))
    picture = picture.filter(ImageFilter.GaussianBlur(0.6))
    return picture.convert("L").convert("RGB") if kind.packed else picture, found


def _face(draw: ImageDraw.ImageDraw, box: np.ndarray, label: int, random: np.random.Generator) -> None:
    """Draw a person's head over their shoulders, with a mask that covers, or does not cover, the nose."""
    x1, y1, x2, y2 = box
    w, h = x2 - x1, y2 - y1
    skin = tuple((np.array(SKINS[random.integers(len(SKINS))]) + random.integers(-12, 13)).tolist())
    shirt = tuple(random.integers(0, 256, 3).tolist())
    draw.ellipse((x1 - 0.5 * w, y2 - 0.1 * h, x2 + 0.5 * w, y2 + 1.2 * h), shirt)
    hair = tuple(random.integers(10, 90, 3).tolist())
    draw.ellipse((x1 - 0.06 * w, y1 - 0.12 * h, x2 + 0.06 * w, y1 + 0.7 * h), hair)
    draw.ellipse((x1, y1, x2, y2), skin)
    for eye in (0.3, 0.7):
        cx, cy = x1 + eye * w, y1 + 0.4 * h
        draw.ellipse((cx - 0.08 * w, cy - 0.04 * h, cx + 0.08 * w, cy + 0.04 * h), (30, 25, 25))
    draw.line((x1 + 0.5 * w, y1 + 0.45 * h, x1 + 0.52 * w, y1 + 0.62 * h), tuple(v - 30 for v in skin))
    if label == 1:
        draw.ellipse((x1 + 0.32 * w, y1 + 0.74 * h, x1 + 0.68 * w, y1 + 0.82 * h), (160, 70, 70))
        return
    top = 0.5 if label == 0 else 0.68
    mask = MASKS[random.integers(len(MASKS))]
    draw.chord((x1, y1, x2, y2), *((10, 170) if label == 0 else (35, 145)), mask)
    draw.rectangle((x1 + 0.15 * w, y1 + top * h, x2 - 0.15 * w, y1 + 0.85 * h), mask)


def _coin(draw: ImageDraw.ImageDraw, box: np.ndarray, label: int, random: np.random.Generator) -> None:
    """Draw a coin: a disc with a rim, a highlight and something embossed."""
    x1, y1, x2, y2 = box
    side = x2 - x1
    color = np.array(list(COINS.values())[label]) + random.integers(-15, 16)
    draw.ellipse((x1 + 1, y1 + 2, x2 + 1, y2 + 2), (40, 40, 40))
    draw.ellipse((x1, y1, x2, y2), tuple((color - 40).tolist()))
    rim = 0.06 * side
    draw.ellipse((x1 + rim, y1 + rim, x2 - rim, y2 - rim), tuple(color.tolist()))
    turn = float(random.uniform(0, 360))
    inner = (x1 + 0.2 * side, y1 + 0.2 * side, x2 - 0.2 * side, y2 - 0.2 * side)
    draw.arc(inner, turn, turn + 200, tuple((color + 50).tolist()), max(1, int(0.05 * side)))
    draw.chord(inner, turn + 220, turn + 320, tuple((color - 25).tolist()))
