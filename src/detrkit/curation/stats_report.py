"""The numbers of a data set for people: tables for the terminal, and a page with plots."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
from rich import box
from rich.table import Table as TerminalTable
from rich.text import Text as TerminalText

from detrkit.curation.input_sizes import LIMITS, InputStats
from detrkit.curation.stats import DatasetStats, Distribution, Measures, SplitStats, measure
from detrkit.data.index import CocoIndex
from detrkit.visual import plots
from detrkit.visual.page import Block, Card, Cards, Column, Plots, Section, Table, Text, Value, write_page
from detrkit.visual.text import printable, shortened

MOST_CLASSES_PRINTED = 24


def overview_table(stats: DatasetStats) -> TerminalTable:
    """The counts of every split."""
    table = TerminalTable(box=box.SIMPLE_HEAD)
    table.add_column("")
    for name in stats.splits:
        table.add_column(printable(name), justify="right")
    for label, write in _COUNTS.items():
        table.add_row(label, *(write(split) for split in stats.splits.values()))
    return table


def spreads_table(stats: DatasetStats) -> TerminalTable:
    """How sizes, shapes and objects per image are spread, of all splits together."""
    table = TerminalTable(box=box.SIMPLE_HEAD)
    table.add_column("of all splits" if len(stats.splits) > 1 else "")
    for name in ("5 %", "median", "95 %", "mean", "most"):
        table.add_column(name, justify="right")
    overall = list(stats.splits.values())[-1]
    for label, (take, form, factor) in _SPREADS.items():
        values = take(overall)
        columns = (values.p5, values.median, values.p95, values.mean, values.greatest)
        table.add_row(label, *(format(value * factor, form) for value in columns))
    return table


def classes_table(stats: DatasetStats) -> TerminalTable:
    """Objects of each class in each split, most frequent first; of many classes, both ends."""
    table = TerminalTable(box=box.SIMPLE_HEAD, caption_justify="left")
    table.add_column("class")
    for name in (*stats.splits, "images", "median side, px"):
        table.add_column(printable(name), justify="right")
    rows = _class_rows(stats)
    half = MOST_CLASSES_PRINTED // 2
    left_out = range(half, len(rows) - half) if len(rows) > MOST_CLASSES_PRINTED else range(0)
    if left_out:
        table.caption = f"the {half} most frequent and the {half} rarest"
    for number, row in enumerate(rows):
        if number not in left_out:
            counts = (f"{count:,}" for count in row.objects)
            table.add_row(TerminalText(shortened(row.name)), *counts, f"{row.images:,}", f"{row.median_side:.0f}")
        elif number == left_out.start:
            table.add_row(*["..."] * len(table.columns))
    return table


def inputs_table(stats: DatasetStats) -> TerminalTable:
    """What reaches the model in training and evaluation."""
    table = TerminalTable(box=box.SIMPLE_HEAD)
    table.add_column("at the model's input")
    for name in stats.inputs:
        table.add_column(name, justify="right")
    for label, write in _INPUT_ROWS.items():
        table.add_row(label, *(write(entry) for entry in stats.inputs.values()))
    return table


def input_methods(stats: DatasetStats) -> list[str]:
    """How what reaches the model was found, one line each."""
    return [f"{name}: {entry.method}" for name, entry in stats.inputs.items()]


def write_stats_page(path: str | Path, title: str, splits: Mapping[str, CocoIndex], stats: DatasetStats) -> Path:
    """Write everything as one HTML page.

    Args:
        path: The file.
        title: Of the page, such as the data set's name.
        splits: What the numbers were computed from.
        stats: The numbers.
    """
    measures = {name: measure([index]) for name, index in splits.items()}
    together = measure(list(splits.values()))
    overall = list(stats.splits.values())[-1]
    warnings = [Text(line, "warning") for line in stats.advice]
    sections = [
        Section("Overview", [*warnings, _cards(overall), _overview(stats)]),
        Section("Classes", [Plots([_class_plot(stats)]), _classes(stats)]),
        Section("Boxes", [Plots(_box_plots(measures, together, overall))]),
        Section("Images", [Plots(_image_plots(measures, together)), _image_sizes(overall)]),
    ]
    if stats.inputs:
        sections.append(Section("At the model's input", _inputs(stats)))
    found = f"{overall.images:,} images, {overall.objects:,} objects of {len(overall.classes)} classes"
    return write_page(path, title, found, sections)


def _with_share(part: int, whole: int) -> str:
    return f"{part:,} ({100 * part / whole:.1f} %)" if whole else f"{part:,}"


def _spread(values: Distribution, form: str, factor: float) -> str:
    return " · ".join(format(value * factor, form) for value in (values.p5, values.median, values.p95))


def _imbalance(split: SplitStats) -> str:
    return f"{split.imbalance:,.{0 if split.imbalance >= 10 else 1}f} to 1" if split.imbalance else "-"


def _share_below(limit: int, entry: InputStats) -> str:
    return f"{100 * entry.share_below(limit):.1f} %"


def _median_short_side(entry: InputStats) -> str:
    return f"{np.median(entry.short_sides):.0f}" if len(entry.short_sides) else "-"


_COUNTS: Mapping[str, Callable[[SplitStats], str]] = {
    "images": lambda split: f"{split.images:,}",
    "  without objects": lambda split: _with_share(split.empty_images, split.images),
    "objects": lambda split: f"{split.objects:,}",
    "  small, under 32² px": lambda split: _with_share(split.small, split.objects),
    "  medium, 32² to 96²": lambda split: _with_share(split.medium, split.objects),
    "  large, from 96²": lambda split: _with_share(split.large, split.objects),
    "crowd regions": lambda split: f"{split.crowds:,}",
    "classes with objects": lambda split: f"{sum(e.objects > 0 for e in split.classes)} of {len(split.classes)}",
    "  frequent to rare": _imbalance,
}
_SPREADS: Mapping[str, tuple[Callable[[SplitStats], Distribution], str, float]] = {
    "objects in an image": (lambda split: split.objects_per_image, ".4g", 1),
    "box size, % of image": (lambda split: split.relative_size, ".1f", 100),
    "box width / height": (lambda split: split.aspect, ".2f", 1),
    "image width, px": (lambda split: split.image_width, ".0f", 1),
    "image height, px": (lambda split: split.image_height, ".0f", 1),
    "image width / height": (lambda split: split.image_aspect, ".2f", 1),
}
_INPUT_ROWS: Mapping[str, Callable[[InputStats], str]] = {
    "objects followed": lambda entry: f"{entry.objects:,}",
    "  lost by cropping": lambda entry: _with_share(entry.lost, entry.objects),
    "  small ones lost": lambda entry: _with_share(entry.small_lost, entry.small_objects),
    "  cut to less than half": lambda entry: _with_share(entry.cut, entry.objects),
    "median short side, px": _median_short_side,
    **{f"short side under {limit} px": partial(_share_below, limit) for limit in LIMITS},
}


@dataclasses.dataclass(frozen=True)
class _ClassRow:
    """A class in all splits: objects in each, images and median side of all together."""

    name: str
    category_id: int
    objects: list[int]
    images: int
    median_side: float


def _class_rows(stats: DatasetStats) -> list[_ClassRow]:
    """Most frequent class first."""
    overall = list(stats.splits.values())[-1].classes
    return [
        _ClassRow(
            entry.name,
            entry.category_id,
            [_objects(split, entry.name, position) for split in stats.splits.values()],
            entry.images,
            entry.median_side,
        )
        for position, entry in sorted(enumerate(overall), key=lambda item: -item[1].objects)
    ]


def _objects(split: SplitStats, name: str, position: int) -> int:
    """Objects of a class in a split, whose classes may be others or in another order."""
    if position < len(split.classes) and split.classes[position].name == name:
        return split.classes[position].objects
    return sum(entry.objects for entry in split.classes if entry.name == name)


def _cards(overall: SplitStats) -> Block:
    objects, sizes = overall.objects_per_image, (overall.image_width.median, overall.image_height.median)
    small = 100 * overall.small / max(overall.objects, 1)
    return Cards(
        [
            Card("images", f"{overall.images:,}", f"{overall.empty_images:,} without objects"),
            Card("objects", f"{overall.objects:,}", f"and {overall.crowds:,} crowd regions"),
            Card("classes", f"{len(overall.classes):,}", f"{overall.imbalance:,.0f} to 1 in frequency"),
            Card("small objects", f"{small:.0f} %", "under 32 x 32 pixels"),
            Card("objects an image", f"{objects.median:g}", f"median; most {objects.greatest:.0f}"),
            Card("image size", f"{sizes[0]:.0f} x {sizes[1]:.0f}", "median width and height"),
        ]
    )


def _overview(stats: DatasetStats) -> Block:
    columns = [Column("what"), *(Column(name, "number") for name in stats.splits)]
    splits = stats.splits.values()
    rows: list[list[Value]] = [
        [label.strip(), *(write(split) for split in splits)] for label, write in _COUNTS.items()
    ]
    rows += [
        [label, *(_spread(take(split), form, factor) for split in splits)]
        for label, (take, form, factor) in _SPREADS.items()
    ]
    return Table(columns, rows, "Splits; of what is spread: 5th percentile, median, 95th")


def _classes(stats: DatasetStats) -> Block:
    columns = [
        Column("class"),
        Column("id", "count"),
        *(Column(name, "count", bar=True) for name in stats.splits),
        Column("images", "count"),
        Column("median side, px", "number", 0),
    ]
    rows: list[list[Value]] = [
        [row.name, row.category_id, *row.objects, row.images, row.median_side] for row in _class_rows(stats)
    ]
    return Table(columns, rows, "Objects of each class")


def _class_plot(stats: DatasetStats) -> plots.Plot:
    counts: dict[str, float] = {}
    for row in _class_rows(stats):
        name = row.name if row.name not in counts else f"{row.name} ({row.category_id})"
        counts[name] = row.objects[-1]
    is_skewed = bool(counts) and max(counts.values()) > 50 * max(1.0, float(np.median(list(counts.values()))))
    title = "Objects of each class" + (", logarithmic" if is_skewed else "")
    return plots.bars(title, counts, "objects", log=is_skewed)


def _box_plots(measures: Mapping[str, Measures], together: Measures, overall: SplitStats) -> list[plots.Plot]:
    sizes = {name: np.sqrt(entry.area) for name, entry in measures.items()}
    relative = {name: 100 * entry.relative_sizes for name, entry in measures.items()}
    aspects = {name: entry.aspects for name, entry in measures.items()}
    counts = {name: entry.objects_per_image.astype(np.float64) for name, entry in measures.items()}
    most = int(together.objects_per_image.max(initial=0))
    width, height = together.sides.T
    image_aspect = float(np.median(together.sizes_hw[:, 1] / together.sizes_hw[:, 0]))
    limits = {"small": 32.0, "large": 96.0}
    return [
        plots.histogram(
            "Size, square root of the area", sizes, np.geomspace(2, 1024, 46), "pixels", True, marks=limits
        ),
        plots.histogram("Size relative to the image", relative, np.linspace(0, 100, 41), "% of the image's side"),
        plots.histogram("Aspect ratio", aspects, np.geomspace(0.1, 10, 41), "width / height", True),
        plots.histogram(
            "Objects in an image", counts, np.arange(0, most + 2, max(1, most // 50)) - 0.5, "objects"
        ),
        plots.heat_map("Centres of boxes", overall.center_heat, "% of the image", image_aspect),
        plots.scatter("Width and height of boxes", width, height, "width, pixels", "height", log=True),
    ]


def _image_plots(measures: Mapping[str, Measures], together: Measures) -> list[plots.Plot]:
    aspects = {name: entry.sizes_hw[:, 1] / entry.sizes_hw[:, 0] for name, entry in measures.items()}
    height, width = together.sizes_hw.T
    return [
        plots.scatter("Width and height of images", width, height, "width, pixels", "height"),
        plots.histogram("Aspect ratio of images", aspects, np.geomspace(0.2, 5, 33), "width / height", True),
    ]


def _image_sizes(overall: SplitStats) -> Block:
    columns = [Column("width x height"), Column("images", "count", bar=True), Column("share", "percent")]
    rows: list[list[Value]] = [
        [f"{width} x {height}", count, count / overall.images] for height, width, count in overall.image_sizes
    ]
    return Table(columns, rows, "Most frequent sizes")


def _inputs(stats: DatasetStats) -> list[Block]:
    columns = [Column("objects"), *(Column(name, "number") for name in stats.inputs)]
    rows: list[list[Value]] = [
        [label.strip(), *(write(entry) for entry in stats.inputs.values())] for label, write in _INPUT_ROWS.items()
    ]
    sides = {name: entry.short_sides for name, entry in stats.inputs.items()}
    marks = {f"{limit} px": float(limit) for limit in LIMITS}
    title = "Short side of objects at the model's input"
    histogram = plots.histogram(title, sides, np.geomspace(1, 1024, 51), "pixels", True, marks=marks)
    return [*map(Text, input_methods(stats)), Plots([histogram]), Table(columns, rows, "What reaches the model")]
