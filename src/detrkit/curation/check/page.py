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
from detrkit.visual.page import (
    Block,
    Card,
    Cards,
    Column,
    Gallery,
    Picture,
    Section,
    Table,
    Text,
    write_page,
)

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
    result = checked.result
    budget = _Budget()
    sections = [Section("Overview", _overview(checked))]
    for finding in result.findings:
        blocks: list[Block] = [
            Text(f"{finding.severity.value.capitalize()}. {finding.fault.advice}"),
            Text(
                f"--fix: {finding.fault.fix}." if finding.fault.fix else "A person has to decide; --fix leaves it."
            ),
            Table([Column("Example")], [[example] for example in finding.examples], f"First of {finding.count:,}"),
        ]
        pictures = list(_pictures(finding, checked.splits, budget))
        if pictures:
            blocks.append(Gallery(pictures))
        sections.append(Section(f"{finding.fault.title} ({finding.count:,})", blocks))
    title = f"{result.data.resolve().name}: data check"
    return write_page(path, title, "Faulty boxes are red; green is how --fix writes them.", sections)


def _overview(checked: Checked) -> list[Block]:
    result = checked.result
    words = {Severity.ERROR: "make training fail or learn the wrong thing", Severity.WARNING: "probably faults"}
    cards = [
        Card(f"{severity.value}s", str(len(result.of(severity))), words.get(severity, "worth knowing"))
        for severity in Severity
    ]
    cards.append(Card("images opened", f"{result.images_checked:,}"))
    rows: list[list[str | int | float | None]] = [
        [finding.severity.value, finding.fault.title, finding.kind, finding.count, ", ".join(finding.splits)]
        for finding in result.findings
    ]
    columns = [Column("Severity"), Column("Finding"), Column("Name"), Column("Count", "count"), Column("Splits")]
    splits: list[list[str | int | float | None]] = [
        [split.name, split.layout, split.reason, split.image_count, split.annotation_count, split.class_count]
        for split in result.splits
    ]
    split_columns = [Column("Split"), Column("Layout"), Column("Why")]
    split_columns += [Column(name, "count") for name in ("Images", "Annotations", "Classes")]
    blocks: list[Block] = [Cards(cards), Table(columns, rows, "Findings, the worst first")]
    if splits:
        blocks.append(Table(split_columns, splits, "What was checked"))
    blocks += [Text(f"Not checked: {words}.") for words in result.skipped]
    return blocks


class _Budget:
    def __init__(self) -> None:
        self.bytes = MOST_BYTES

    def takes(self, picture: Picture) -> bool:
        """Whether a picture still fits; counts it if so."""
        fits = len(picture.jpeg) <= self.bytes
        self.bytes -= len(picture.jpeg) if fits else 0
        return fits


def _pictures(finding: Finding, splits: Sequence[SplitData], budget: _Budget) -> Iterator[Picture]:
    """The first few images of a finding, pairs side by side."""
    by_name = {split.name: split for split in splits}
    if finding.groups:
        pictures = (_side_by_side(group, by_name) for group in finding.groups)
    else:
        pictures = (_drawn(by_name, place, rows) for place, rows in _by_image(finding).items())
    shown = 0
    for picture in pictures:
        if shown >= PICTURES_PER_KIND:
            return
        if picture is not None and budget.takes(picture):
            shown += 1
            yield picture


def _by_image(finding: Finding) -> dict[Location, list[int]]:
    """Annotation rows of the first images of a finding."""
    rows: dict[Location, list[int]] = {}
    for place in finding.locations:
        key = Location(place.split, place.image)
        if place.image < 0 or (key not in rows and len(rows) >= 4 * PICTURES_PER_KIND):
            continue
        rows.setdefault(key, [])
        if place.annotation >= 0:
            rows[key].append(place.annotation)
    return rows


def _side_by_side(group: Sequence[Location], splits: dict[str, SplitData]) -> Picture | None:
    images, names = [], []
    for place in group[:2]:
        image = _image(splits, place)
        if image is None:
            return None
        images.append(image)
        names.append(f"{place.split}: {splits[place.split].table.file_names[place.image]}")
    height = min(image.shape[0] for image in images)
    scaled = []
    for image in images:
        width = max(1, round(image.shape[1] * height / image.shape[0]))
        scaled.append(np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)))
    return Picture.of(np.concatenate(scaled, axis=1), " = ".join(names), LONGEST)


def _drawn(splits: dict[str, SplitData], place: Location, rows: Sequence[int]) -> Picture | None:
    """An image with its faulty boxes as written, and as they should be read."""
    image = _image(splits, place)
    if image is None:
        return None
    split = splits[place.split]
    caption = f"{place.split}: {split.table.file_names[place.image]}"
    height, width = image.shape[:2]
    listed = split.table.boxes_xywh[np.array(rows, dtype=np.int64)]
    drawn = [(box, FAULTY) for box in listed if np.isfinite(box).all()]
    for row in rows:
        repaired = split.repaired_xywh[row]
        if np.isfinite(repaired).all() and np.abs(repaired - split.table.boxes_xywh[row]).max() > 1:
            drawn.append((repaired, READ_AS))
    if not drawn:
        return Picture.of(image, caption, LONGEST)
    boxes = np.array([[x, y, x + w, y + h] for (x, y, w, h), _ in drawn])
    boxes = np.stack([np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])], axis=1)
    boxes = boxes.reshape(-1, 4)
    left, top = (
        int(min(max(0, -boxes[:, axis].min()), MARGIN * side)) for axis, side in ((0, width), (1, height))
    )
    right, bottom = (
        int(min(max(0, boxes[:, axis + 2].max() - side), MARGIN * side))
        for axis, side in ((0, width), (1, height))
    )
    canvas = np.full((height + top + bottom, width + left + right, 3), 128, dtype=np.uint8)
    canvas[top : top + height, left : left + width] = image
    boxes = np.clip(boxes + np.array([left, top, left, top]), 0, [canvas.shape[1], canvas.shape[0]] * 2)
    colors = np.array([color for _, color in drawn])
    return Picture.of(draw_objects(canvas, boxes, colors), caption, LONGEST)


def _image(splits: dict[str, SplitData], place: Location) -> np.ndarray | None:
    """Pixels of an image, None if it cannot be decoded; uint8 ``[H, W, 3]``."""
    split = splits.get(place.split)
    path = None if split is None or place.image < 0 else split.path(place.image)
    if path is None:
        return None
    try:
        return np.ascontiguousarray(decode_image(path).permute(1, 2, 0).numpy())
    except ImageError:
        return None
