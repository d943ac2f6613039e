"""Samples of a data set with their annotations drawn in, as annotated and as augmentation makes them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import binary_erosion, distance_transform_edt  # type: ignore[attr-defined]

from detrkit.classes import ClassMap
from detrkit.config import PixelRange, TransformConfig
from detrkit.data.coco import CocoDataset, Sample, SampleKey
from detrkit.data.index import CocoIndex
from detrkit.data.transforms import train_transform
from detrkit.errors import DataError, ImageError, UsageError, counted, listed, nearest
from detrkit.files import make_folder
from detrkit.ops.pixel_range import FULL
from detrkit.types import Target
from detrkit.visual.colors import tint_masks
from detrkit.visual.drawing import beside, draw_objects, save_png
from detrkit.visual.page import Gallery, Picture, Section, Text, write_page

TILE = 640
"""Longer side of each picture in a row, in pixels."""
_GAP = 8


@dataclasses.dataclass(frozen=True)
class PreviewRow:
    """One image: as annotated, then drawn several times from augmentation.

    Args:
        name: File name.
        picture: Pictures side by side, uint8 ``[H, W, 3]``.
        caption: Description of the pictures.
    """

    name: str
    picture: np.ndarray
    caption: str


def preview_rows(
    index: CocoIndex,
    images: Path,
    config: TransformConfig,
    *,
    count: int = 12,
    draws: int = 3,
    seed: int = 0,
    class_name: str | None = None,
    pixel_range: PixelRange = FULL,
    on_error: Callable[[ImageError], None] | None = None,
) -> Iterator[PreviewRow]:
    """Draw images with their boxes, before and after augmentation, in an order that ``seed`` decides.

    Args:
        index: Annotations of a split.
        images: Folder that its file names are relative to.
        config: Augmentation; no draw is like another, as in the epochs of a training.
        count: Number of rows, if there are so many images.
        draws: Number of pictures of augmentation in each row.
        seed: Seed of the choice and of augmentation.
        class_name: Class that the images must hold; any if None.
        pixel_range: Values of 16- and 32-bit images that become black and white.
        on_error: Function told of images that cannot be read; others take their place.

    Raises:
        UsageError: There is no class of that name.
        DataError: No image holds it.
    """
    how: dict[str, Any] = {"on_bad_image": "error", "pixel_range": pixel_range, "masks": True}
    plain = CocoDataset(index, images, None, **how)
    augmented = CocoDataset(index, images, train_transform(config), seed=seed, **how)
    given = 0
    for row in _candidates(index, seed, class_name):
        if given == count:
            return
        try:
            samples = [plain[SampleKey(0, row)], *(augmented[SampleKey(epoch, row)] for epoch in range(draws))]
        except ImageError as error:
            if on_error is not None:
                on_error(error)
            continue
        given += 1
        whole = [sample for sample in samples if sample is not None]
        picture = beside([draw_sample(*sample, index.class_map) for sample in whole], _GAP)
        noun = "segment" if index.class_map.stuff else "object"
        yield PreviewRow(index.file_name(row), picture, _caption(index.file_name(row), whole, noun))


def draw_sample(image: torch.Tensor, target: Target, class_map: ClassMap) -> np.ndarray:
    """Draw an image with its objects, made ``TILE`` pixels long; crowd regions are hatched, stuff has no box.

    Args:
        image: uint8 ``[3, H, W]``.
        target: Objects of the image.
        class_map: Classes whose names are written.
    """
    pixels = np.ascontiguousarray(image.as_subclass(torch.Tensor).permute(1, 2, 0).numpy())
    height, width = pixels.shape[:2]
    factor = TILE / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    small = np.array(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))
    boxes = target["boxes"].as_subclass(torch.Tensor).numpy() * np.array([size[0] / width, size[1] / height] * 2)
    labels, crowd = target["labels"].numpy(), target["iscrowd"].numpy()
    # Large objects first, so that small ones lie on top of them.
    order = np.argsort(-(boxes[:, 2:] - boxes[:, :2]).prod(axis=1), kind="stable")
    is_stuff = np.isin(labels, class_map.stuff)
    if "masks" in target:
        masks = target["masks"].resize(small.shape[:2]).pixels()
        small = tint_masks(small, masks[order], labels[order])
        for mask in masks:  # neighbours of one class have one colour
            small[mask & ~binary_erosion(mask, border_value=1)] = 255
        for number in np.flatnonzero(is_stuff).tolist():  # its name where it is widest
            depth = distance_transform_edt(np.pad(masks[number], 1))[1:-1, 1:-1]
            y, x = np.unravel_index(depth.argmax(), depth.shape)
            boxes[number] = (x, y, x, y)
    texts = [class_map.names[labels[i]] + (" (crowd)" if crowd[i] else "") for i in order]
    return draw_objects(small, boxes[order], labels[order], texts, crowd[order], is_stuff[order])


def write_preview(
    out: str | Path,
    title: str,
    rows: Iterator[PreviewRow],
    notes: str,
    progress: Callable[[int], None] | None = None,
) -> tuple[Path, list[Path]]:
    """Write each row as a PNG file, and all as the page ``preview.html``.

    Args:
        out: Folder; made if missing.
        title: Title of the page.
        rows: Rows of :func:`preview_rows`.
        notes: Sentences on how they were made, for the page.
        progress: Function called with rows done.

    Returns:
        The page and the pictures.
    """
    folder = make_folder(out, "preview.html")
    files, pictures = [], []
    for number, row in enumerate(rows, start=1):
        stem = re.sub(r"[^\w.-]", "_", Path(row.name).stem, flags=re.ASCII)[:60]
        files.append(folder / f"{number:02d}-{stem}.png")
        save_png(files[-1], row.picture)
        pictures.append(Picture.of(row.picture, row.caption, longest=row.picture.shape[1]))
        if progress is not None:
            progress(number)
    how = (
        "On the left each image as annotated, to its right as training sees it. Crowd regions are hatched; masks "
        "are tinted, where there are some, and stuff has its name in its midst."
    )
    sections = [Section("Samples", [Text(how), Text(notes), Gallery(pictures, wide=True)])]
    return write_page(folder / "preview.html", title, f"{len(files)} images", sections), files


def class_id_of(class_map: ClassMap, name: str) -> int:
    """Return the class of a name, however it is capitalised.

    Raises:
        UsageError: There is none; the nearest name is suggested.
    """
    by_name = {known.lower(): class_id for known, class_id in class_map.class_id_by_name().items()}
    found = class_map.class_id_by_name().get(name, by_name.get(name.lower()))
    if found is None:
        known = listed(class_map.names, most=12)
        hint = nearest(name.lower(), by_name)
        raise UsageError(f"no class is called {name!r}; {hint} Classes: {known}")
    return found


def _candidates(index: CocoIndex, seed: int, class_name: str | None) -> list[int]:
    """Return rows of images with objects (of a class) in random order, then of images without any."""
    random = np.random.default_rng(seed)
    counts = np.diff(index.offsets)
    if class_name is None:
        parts = [random.permutation(np.flatnonzero(counts)), random.permutation(np.flatnonzero(counts == 0))]
        return [int(row) for row in np.concatenate(parts)]
    class_id = class_id_of(index.class_map, class_name)
    image_rows = np.repeat(np.arange(len(index)), counts)
    rows = [int(row) for row in random.permutation(np.unique(image_rows[index.labels == class_id]))]
    if not rows:
        raise DataError(f"no image of this split holds the class {class_name!r}; choose another class or --split")
    return rows


def _caption(name: str, samples: list[Sample], noun: str) -> str:
    """Write a caption: ``street.jpg: 640 x 480, 7 objects; 1066 x 800, 6 objects``."""
    parts = [
        f"{image.shape[-1]} x {image.shape[-2]}, {counted(len(target['labels']), noun)}"
        for image, target in samples
    ]
    return f"{name}: {'; '.join(parts)}"
