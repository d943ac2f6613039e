"""Draws the pictures of augmentation.md, from generated images: ``python docs/make_pictures.py [FOLDER]``."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torchvision import tv_tensors

from detrkit.config import RECIPES, TransformConfig
from detrkit.curation.synthetic import draw_scene
from detrkit.data.coco import Sample, SampleKey
from detrkit.data.compose import ComposedTransform
from detrkit.data.transforms import train_transform
from detrkit.types import Target

SIDE = 144
COLUMNS = 5
GAP = 6
SMALL = {
    "scales": (104, 116, 128, 144),
    "max_size": 220,
    "crop_scales": (104, 130, 156),
    "crop_range": (80, 130),
    "eval_size": SIDE,
}
"""Sizes in proportion to images of 144 pixels."""

OPTIONS = {
    "flip": {"flip": 1.0, "vertical_flip": 0.5},
    "crop": {"crop": 1.0, "multi_scale": True},
    "scale_jitter": {"scale_jitter": (0.5, 2.0)},
    "zoom_out": {"zoom_out": 1.0, "zoom_out_factor": 3.0},
    "iou_crop": {"iou_crop": 1.0},
    "photometric": {"photometric": 0.8, "channel_shuffle": 0.3},
    "mosaic": {"mosaic": 1.0},
    "mixup": {"mixup": 1.0},
}
"""What each picture shows, everything else being off."""

OFF = {"multi_scale": False, "flip": 0.0, "crop": 0.0}


class Scenes:
    """Generated images, readable as a data set is."""

    on_bad_image = "error"

    def __init__(self, count: int):
        self.samples = [_scene(seed) for seed in range(count)]

    def __len__(self) -> int:
        return len(self.samples)

    def read_sample(self, row: int) -> Sample:
        """An image and its target."""
        return self.samples[row]


def main(folder: Path) -> None:
    """Write one picture for each option and each recipe: the image as it is, then four samples."""
    folder.mkdir(parents=True, exist_ok=True)
    configs = {name: TransformConfig(**{**OFF, **SMALL, **changes}) for name, changes in OPTIONS.items()}
    configs |= {f"recipe-{name}": TransformConfig(recipe=name, **SMALL) for name in RECIPES}
    scenes = Scenes(12)
    for name, config in configs.items():
        transform = train_transform(config)
        tiles = [_draw(*scenes.read_sample(0))]
        for seed in range(COLUMNS - 1):
            torch.manual_seed(seed)
            sample = scenes.read_sample(0)
            if isinstance(transform, ComposedTransform):
                tiles.append(_draw(*transform.compose(scenes, SampleKey(0, 0), sample)))
            else:
                tiles.append(_draw(*transform(*sample)))  # type: ignore[arg-type]
        _save(tiles, folder / f"{name}.png")


def _scene(seed: int) -> Sample:
    """One image with three objects or more."""
    random = np.random.Generator(np.random.PCG64((7, seed)))
    objects: list[tuple[int, list[int]]] = []
    while len(objects) < 3:
        pixels, objects, *_ = draw_scene(random, SIDE)
    corners = torch.tensor([[x, y, x + width, y + height] for _, (x, y, width, height) in objects])
    target = Target(
        boxes=tv_tensors.BoundingBoxes(corners.float(), format="XYXY", canvas_size=(SIDE, SIDE)),
        labels=torch.tensor([class_id for class_id, _ in objects]),
        area=torch.ones(len(objects)),
        iscrowd=torch.zeros(len(objects), dtype=torch.bool),
        image_id=seed,
        orig_size_hw=(SIDE, SIDE),
    )
    return tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1)), target


def _draw(image: torch.Tensor, target: Target) -> Image.Image:
    """The image with its boxes, at the size it has."""
    picture = Image.fromarray(image.permute(1, 2, 0).numpy().copy())
    draw = ImageDraw.Draw(picture)
    for x1, y1, x2, y2 in target["boxes"].tolist():
        draw.rectangle((x1 - 1, y1 - 1, x2, y2), outline=(0, 0, 0))
        draw.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=(255, 255, 0))
    return picture


def _save(tiles: list[Image.Image], path: Path) -> None:
    """All tiles beside each other, each within a square; 128 colours keep the file small."""
    canvas = Image.new("RGB", (COLUMNS * (SIDE + GAP) - GAP, SIDE), (255, 255, 255))
    for column, tile in enumerate(tiles):
        tile.thumbnail((SIDE, SIDE))
        canvas.paste(tile, (column * (SIDE + GAP), 0))
    canvas.quantize(128).save(path, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "images" / "augment")
