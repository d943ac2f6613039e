"""The findings as one HTML page, with the pictures concerned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from detrkit.curation.check.run import Checked
from detrkit.curation.check.source import SplitData
from detrkit.data.faults import Finding, Location, Severity
from detrkit.errors import ImageError
from detrkit.ops.images import decode_image
from detrkit.visual.drawing import draw_objects
from detrkit.visual.page import Block, Card, Cards, Gallery, Picture, Section, Text, write_page
from detrkit.visual.table import Column, Table, Value

PICTURES_PER_KIND = 8
MOST_BYTES = 10_000_000
"""Of all pictures together; with base64 the page stays below 15 MB."""
LONGEST = 640
MARGIN = 0.5
"""Boxes may leave the image; so much of its size is added around it where they do."""
FAULTY, READ_AS = 0, 7
"""Colours of the palette: red, and green."""


def write_check_page(path: Path, checked: Checked) -> Path:
    """Write the page; pictures are drawn until it is large enough, those of the worst findings first."""
    sections = [Section("Overview", _overview(checked))]
    left = MOST_BYTES
    for finding in checked.result.findings:
        fix = finding.fault.fix
        blocks: list[Block] = [
            Text(f"{finding.severity.capitalize()}. {finding.fault.advice}"),
            Text(f"--fix: {fix}." if fix else "A person has to decide; --fix leaves it."),
            Table([Column("Example")], [[example] for example in finding.examples], f"First of {finding.count:,}"),
        ]
        pictures: list[Picture] = []
        for picture in _pictures(finding, checked.splits):
            if len(pictures) < PICTURES_PER_KIND and picture is not None and len(picture.jpeg) <= left:
                left -= len(picture.jpeg)
                pictures.append(picture)
            if len(pictures) == PICTURES_PER_KIND:
                break
        if pictures:
            blocks.append(Gallery(pictures))
        sections.append(Section(f"{finding.fault.title} ({finding.count:,})", blocks))
    title = f"{checked.result.data.resolve().name}: data check"
    return write_page(path, title, "Faulty boxes are red; green is how --fix writes them.", sections)


def _overview(checked: Checked) -> list[Block]:
    result = checked.result
    meaning = {Severity.ERROR: "make training fail or learn the wrong thing", Severity.WARNING: "probably faults"}
    cards = [
        Card(f"{severity}s", str(len(result.of(severity))), meaning.get(severity, "worth knowing"))
        for severity in Severity
    ]
    blocks: list[Block] = [Cards([*cards, Card("images opened", f"{result.images_checked:,}")]), result.table()]
    if result.splits:
        columns = [Column("Split"), Column("Layout"), Column("Why")]
        columns += [Column(name, "count") for name in ("Images", "Annotations", "Classes")]
        rows: list[list[Value]] = [
            [split.name, split.layout, split.reason, split.image_count, split.annotation_count, split.class_count]
            for split in result.splits
        ]
        blocks.append(Table(columns, rows, "What was checked"))
    return [*blocks, *(Text(f"Not checked: {words}.") for words in result.skipped)]


def _pictures(finding: Finding, splits: Sequence[SplitData]) -> Iterator[Picture | None]:
    """Draw the images of a finding one after the other, pairs side by side; None for what cannot be decoded."""
    by_name = {split.name: split for split in splits}
    if finding.groups:
        return (_side_by_side(group[:2], by_name) for group in finding.groups)
    # annotation rows of each image
    rows: dict[Location, list[int]] = {}
    for place in finding.locations:
        image = Location(place.split, place.image)
        if place.image >= 0 and (image in rows or len(rows) < 4 * PICTURES_PER_KIND):
            rows.setdefault(image, []).extend([place.annotation] * (place.annotation >= 0))
    return (_drawn(by_name, image, annotations) for image, annotations in rows.items())


def _side_by_side(pair: Sequence[Location], splits: dict[str, SplitData]) -> Picture | None:
    images = [image for place in pair if (image := _image(splits, place)) is not None]
    if len(images) < len(pair):
        return None
    height = min(image.shape[0] for image in images)
    widths = [max(1, round(image.shape[1] * height / image.shape[0])) for image in images]
    scaled = [
        np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
        for image, width in zip(images, widths, strict=True)
    ]
    return Picture.of(np.concatenate(scaled, axis=1), " = ".join(_name(splits, place) for place in pair), LONGEST)


def _drawn(splits: dict[str, SplitData], place: Location, rows: Sequence[int]) -> Picture | None:
    """Draw an image with its faulty boxes as written, and as they should be read."""
    image = _image(splits, place)
    if image is None:
        return None
    written, repaired = (
        boxes[np.array(rows, dtype=np.int64)]
        for boxes in (splits[place.split].table.boxes_xywh, splits[place.split].repaired_xywh)
    )
    # boxes as they are written, then those that are read otherwise
    is_written = np.isfinite(written).all(axis=1)
    is_other = np.isfinite(repaired).all(axis=1) & (np.abs(repaired - written).max(axis=1, initial=0) > 1)
    xywh = np.concatenate([written[is_written], repaired[is_other]])
    colors = np.repeat([FAULTY, READ_AS], [is_written.sum(), is_other.sum()])
    if not len(xywh):
        return Picture.of(image, _name(splits, place), LONGEST)
    corners = np.sort(np.stack([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1), axis=1)  # [n, 2, 2]
    # a margin around the image for boxes that leave it
    size = np.array(image.shape[1::-1])
    before = np.clip(-corners[:, 0].min(axis=0), 0, MARGIN * size).astype(int)
    after = np.clip(corners[:, 1].max(axis=0) - size, 0, MARGIN * size).astype(int)
    (left, top), (right, bottom) = before.tolist(), after.tolist()
    canvas = np.pad(image, ((top, bottom), (left, right), (0, 0)), constant_values=128)
    boxes = np.clip(corners + before, 0, canvas.shape[1::-1]).reshape(-1, 4)
    return Picture.of(draw_objects(canvas, boxes, colors), _name(splits, place), LONGEST)


def _name(splits: dict[str, SplitData], place: Location) -> str:
    return f"{place.split}: {splits[place.split].table.file_names[place.image]}"


def _image(splits: dict[str, SplitData], place: Location) -> np.ndarray | None:
    """Decode an image, None if that cannot be done; uint8 ``[H, W, 3]``."""
    split = splits.get(place.split)
    path = None if split is None or place.image < 0 else split.path(place.image)
    if path is None:
        return None
    try:
        return np.ascontiguousarray(decode_image(path).permute(1, 2, 0).numpy())
    except ImageError:
        return None
