"""Pages of both studies: corruptions, and several data sets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from detrkit.evaluation.coco import known
from detrkit.robustness.corruptions import CORRUPTIONS, Corruption
from detrkit.robustness.generalization import DataResult, Generalization
from detrkit.robustness.study import Robustness
from detrkit.visual.chart import Chart, Series, make_lines
from detrkit.visual.drawing import beside
from detrkit.visual.interactive_charts import Charts
from detrkit.visual.page import Block, Card, Cards, Gallery, Picture, Section, Text
from detrkit.visual.page import write_page as write
from detrkit.visual.table import Column, Table, Value

_STRIP_WIDTH = 260
_GAP = 6


def write_robustness(path: Path, found: Robustness, sample: Tensor | None) -> None:
    """Write the page of a study of corruptions.

    Args:
        path: File to write.
        found: Result.
        sample: An image of the data set, uint8 ``[3, H, W]``, to show the corruptions on.
    """
    sections = [
        Section("Result", [_robustness_cards(found)]),
        Section("AP against severity", [_severity_charts(found)]),
        Section("Corruptions", [found.table()]),
    ]
    if sample is not None:
        sections.append(Section("What they look like", [_gallery(found, sample)]))
    subtitle = f"{found.model} on {found.data}, {found.images:,} images"
    write(path, "Robustness under common corruptions", subtitle, sections)


def write_generalization(path: Path, found: Generalization) -> None:
    """Write the page of a detector on several data sets."""
    note = (
        "AP over the classes that the model shares with the data. The last column is over all classes of the "
        "data, in which a class that the model does not know counts as never found."
    )
    sections = [
        Section("Result", [Text(note), found.table()]),
        Section("Classes", [block for result in found.results for block in _class_blocks(result)]),
    ]
    write(path, "One detector on several data sets", found.model, sections)


def strip(image: Tensor, name: str, severities: Sequence[int], seed: int = 0, image_id: int = 0) -> np.ndarray:
    """Return an image and its corruptions side by side, made small after they were done: uint8 ``[H, W, 3]``."""
    shown = [image, *(Corruption(name, severity, seed)(image, image_id) for severity in severities)]
    return beside([_small(one) for one in shown], _GAP)


def _small(image: Tensor) -> np.ndarray:
    """Return an image made smaller: the mean of each square of pixels."""
    pixels: np.ndarray = image.permute(1, 2, 0).numpy()
    step = max(pixels.shape[1] // _STRIP_WIDTH, 1)
    return np.asarray(Image.fromarray(pixels).reduce(step))


def _robustness_cards(found: Robustness) -> Cards:
    percent = Column("", "percent").written
    note = f"mean of {len(found.cells)} corruptions, severities {', '.join(map(str, found.severities))}"
    clean, left = Card("clean AP", percent(found.clean["AP"])), "of the clean AP is left"
    return Cards([clean, Card("mPC", percent(found.mpc()), note), Card("rPC", percent(found.rpc()), left)])


def _severity_charts(found: Robustness) -> Charts:
    """Return a chart for each kind of corruption, and one for the kinds."""
    kinds = {kind: [name for name in names if name in found.cells] for kind, names in CORRUPTIONS.items()}
    shown = {"Mean of each kind": {kind: _curve(found, names) for kind, names in kinds.items() if names}}
    for kind, names in kinds.items():
        shown[kind.capitalize()] = {name: _curve(found, [name]) for name in names}
    return Charts(
        [
            Chart(f"{title}: AP, %", "severity", lines=make_lines(curves), legend=True)
            for title, curves in shown.items()
        ]
    )


def _curve(found: Robustness, names: Sequence[str]) -> Series:
    """Return mean AP of some corruptions over severities; severity 0 is the clean image."""
    points = [(0, found.clean["AP"])]
    for severity in found.severities:
        values = [found.cells[name][severity]["AP"] for name in names]
        defined = [value for value in values if value is not None]
        points.append((severity, float(np.mean(defined)) if defined else None))
    known = [(severity, 100 * value) for severity, value in points if value is not None]
    return Series(np.array([x for x, _ in known], dtype=float), np.array([y for _, y in known], dtype=float))


def _gallery(found: Robustness, sample: Tensor) -> Gallery:
    pictures = []
    severities = found.severities if len(found.severities) <= 3 else found.severities[::2]
    told = ", ".join(map(str, severities))
    for name in found.cells:
        drawn = strip(sample, name, severities, found.seed)
        pictures.append(Picture.of(drawn, f"{name}: as it is, severity {told}", longest=1100))
    return Gallery(pictures, wide=True)


def _class_blocks(result: DataResult) -> list[Block]:
    match = result.match
    shared = () if result.shared is None else result.shared.per_class
    ap = {entry.category_id: known(entry.AP) for entry in shared}
    rows: list[list[Value]] = [
        [", ".join(pair.data), ", ".join(pair.model), ap.get(match.classes.category_ids[pair.class_id])]
        for pair in match.pairs
    ]
    rows += [[name, None, None] for name in match.data_only]
    columns = [Column("class of the data"), Column("class of the model"), Column("AP", "percent", bar=True)]
    lines: list[Block] = [Text(f"{result.name}: {line}") for line in match.lines()]
    return [Table(columns, rows, f"Classes of {result.name}"), *lines]
