"""The numbers of a data set for people: tables for the terminal, and a page with charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from detrkit.curation.input_sizes import LIMITS, InputStats
from detrkit.curation.stats import DatasetStats, Distribution, MaskStats, Measures, SplitStats, StuffStats, measure
from detrkit.data.index import CocoIndex
from detrkit.visual.chart import Chart, histogram, scatter
from detrkit.visual.interactive_charts import BarChart, Charts, HeatMap
from detrkit.visual.page import Block, Card, Cards, Section, Text, write_page
from detrkit.visual.table import Column, Table, Value, columns

MOST_CLASSES_PRINTED = 24


def printed_tables(stats: DatasetStats) -> list[Table]:
    """Return what a terminal has room for: of many classes, both ends."""
    overall = list(stats.splits.values())[-1]
    tables = [overview_table(stats), spreads_table("all splits" if len(stats.splits) > 1 else "", overall)]
    masks = [table.ends(MOST_CLASSES_PRINTED) for table in masks_tables(stats)]
    return [*tables, classes_table(stats).ends(MOST_CLASSES_PRINTED), *masks, inputs_table(stats)]


def overview_table(stats: DatasetStats) -> Table:
    """Return the counts of every split."""
    return _transposed("", {name: _counts(split) for name, split in stats.splits.items()}, "Splits")


def spreads_table(name: str, split: SplitStats) -> Table:
    """Return how sizes, shapes and objects per image are spread."""
    rows = []
    for label, (field, form, factor) in _SPREADS.items():
        values: Distribution = getattr(split, field)
        spread = (values.p5, values.median, values.p95, values.mean, values.greatest)
        rows.append([label, *(format(value * factor, form) for value in spread)])
    heads = ("5 %", "median", "95 %", "mean", "most")
    title = f"How it is spread: {name}" if name else "How it is spread"
    return Table([Column(""), *columns("number", *heads)], rows, title)


def classes_table(stats: DatasetStats) -> Table:
    """Return objects of each class in each split, most frequent first; images and sizes of all splits together."""
    overall = list(stats.splits.values())[-1].classes
    heads = [Column("class", "name"), Column("id", "number"), *columns("count", *stats.splits, bar=True)]
    heads += [Column("images", "count"), Column("median side, px", "number", 0)]
    rows: list[list[Value]] = []
    for place, entry in sorted(enumerate(overall), key=lambda item: -item[1].objects):
        objects = (_objects(split, entry.name, place) for split in stats.splits.values())
        rows.append([entry.name, str(entry.category_id), *objects, entry.images, entry.median_side])
    return Table(heads, rows, "Objects of each class, most frequent first")


def masks_tables(stats: DatasetStats) -> list[Table]:
    """Return what masks fill of their boxes and stuff of the pictures; none where masks were not asked for."""
    if not stats.masks:
        return []
    tables = [_transposed("", {name: _mask_figures(own) for name, own in stats.masks.items()}, "Masks")]
    names = list(dict.fromkeys(stuff.name for own in stats.masks.values() for stuff in own.stuff))
    found = {name: {stuff.name: stuff for stuff in own.stuff} for name, own in stats.masks.items()}
    rows: list[list[Value]] = [
        [name, *(value for own in found.values() for value in _stuff_figures(own.get(name)))] for name in names
    ]
    heads = [Column("stuff", "name")]
    for name in found:
        heads += [Column(name, "count"), Column("pixels", "percent")]
    return (
        [*tables, Table(heads, rows, "Stuff: images that show it, and its share of all pixels")]
        if rows
        else tables
    )


def _stuff_figures(stuff: StuffStats | None) -> tuple[int, float]:
    return (0, 0.0) if stuff is None else (stuff.images, stuff.share)


def _mask_figures(own: MaskStats) -> dict[str, str]:
    """Return the numbers of masks by what they are called."""
    void = {} if own.void_share is None else {"pixels of no segment": f"{100 * own.void_share:.1f} %"}
    return {
        "objects with a mask": _with_share(own.masks, own.masks + own.without),
        "mask, % of its box: 5 %": f"{100 * own.box_share.p5:.0f}",
        "  median": f"{100 * own.box_share.median:.0f}",
        "  95 %": f"{100 * own.box_share.p95:.0f}",
        "annotated area over mask: median": f"{own.area_share.median:.2f}",
        "  most": f"{own.area_share.greatest:.2f}",
        **void,
    }


def inputs_table(stats: DatasetStats) -> Table:
    """Return what reaches the model in training and evaluation."""
    methods = [f"{name}: {entry.method}" for name, entry in stats.inputs.items()]
    found = {name: _input_figures(entry) for name, entry in stats.inputs.items()}
    return _transposed("objects", found, "At the model's input", methods)


def write_stats_page(path: str | Path, title: str, splits: Mapping[str, CocoIndex], stats: DatasetStats) -> Path:
    """Write everything as one HTML page.

    Args:
        path: file.
        title: title of the page, such as the data set's name.
        splits: splits that the numbers were computed from.
        stats: numbers.
    """
    measures = {name: measure([index]) for name, index in splits.items()}
    together = measure(list(splits.values()))
    overall = list(stats.splits.values())[-1]
    warnings = [Text(line, "warning") for line in stats.advice]
    spreads = [spreads_table(name, split) for name, split in stats.splits.items()]
    sections = [
        Section("Overview", [*warnings, _cards(overall), overview_table(stats), *spreads]),
        Section("Classes", [Charts([_class_chart(overall)]), classes_table(stats)]),
        Section("Boxes", [Charts(_box_charts(measures, together, overall))]),
        Section("Images", [Charts(_image_charts(measures, together)), _image_sizes(overall)]),
    ]
    if stats.masks:
        sections.append(Section("Masks", [*masks_tables(stats)]))
    if stats.inputs:
        sections.append(Section("At the model's input", [_input_chart(stats), inputs_table(stats)]))
    found = f"{overall.images:,} images, {overall.objects:,} objects of {len(overall.classes)} classes"
    return write_page(path, title, found, sections)


def _with_share(part: int, whole: int) -> str:
    return f"{part:,} ({100 * part / whole:.1f} %)" if whole else f"{part:,}"


def _transposed(
    head: str, figures: Mapping[str, Mapping[str, str]], title: str, notes: Sequence[str] = ()
) -> Table:
    """Return a table with a column for each name and a row for each of its figures."""
    labels = next(iter(figures.values()), {})
    rows = [[label, *(found[label] for found in figures.values())] for label in labels]
    return Table([Column(head), *columns("number", *figures)], rows, title, notes)


def _counts(split: SplitStats) -> dict[str, str]:
    """Return the counts of a split by what they are called."""
    rarest = f"{split.imbalance:,.{0 if split.imbalance >= 10 else 1}f} to 1" if split.imbalance else "-"
    return {
        "images": f"{split.images:,}",
        "  without objects": _with_share(split.empty_images, split.images),
        "objects": f"{split.objects:,}",
        "  small, under 32² px": _with_share(split.small, split.objects),
        "  medium, 32² to 96²": _with_share(split.medium, split.objects),
        "  large, from 96²": _with_share(split.large, split.objects),
        "crowd regions": f"{split.crowds:,}",
        "classes with objects": f"{sum(e.objects > 0 for e in split.classes)} of {len(split.classes)}",
        "  frequent to rare": rarest,
    }


def _input_figures(entry: InputStats) -> dict[str, str]:
    """Return what became of the objects by what it is called."""
    return {
        "objects followed": f"{entry.objects:,}",
        "  lost by cropping": _with_share(entry.lost, entry.objects),
        "  small ones lost": _with_share(entry.small_lost, entry.small_objects),
        "  cut to less than half": _with_share(entry.cut, entry.objects),
        "median short side, px": f"{np.median(entry.short_sides):.0f}" if len(entry.short_sides) else "-",
        **{f"short side under {limit} px": f"{100 * entry.share_below(limit):.1f} %" for limit in LIMITS},
    }


_SPREADS = {
    "objects in an image": ("objects_per_image", ".4g", 1),
    "box size, % of image": ("relative_size", ".1f", 100),
    "box width / height": ("aspect", ".2f", 1),
    "image width, px": ("image_width", ".0f", 1),
    "image height, px": ("image_height", ".0f", 1),
    "image width / height": ("image_aspect", ".2f", 1),
}


def _objects(split: SplitStats, name: str, position: int) -> int:
    """Return objects of a class in a split, whose classes may be others or in another order."""
    if position < len(split.classes) and split.classes[position].name == name:
        return split.classes[position].objects
    return sum(entry.objects for entry in split.classes if entry.name == name)


def _cards(overall: SplitStats) -> Block:
    objects, sizes = overall.objects_per_image, (overall.image_width.median, overall.image_height.median)
    small = 100 * overall.small / max(overall.objects, 1)
    cards = [
        Card("images", f"{overall.images:,}", f"{overall.empty_images:,} without objects"),
        Card("objects", f"{overall.objects:,}", f"and {overall.crowds:,} crowd regions"),
        Card("classes", f"{len(overall.classes):,}", f"{overall.imbalance:,.0f} to 1 in frequency"),
        Card("small objects", f"{small:.0f} %", "under 32 x 32 pixels"),
        Card("objects an image", f"{objects.median:g}", f"median; most {objects.greatest:.0f}"),
        Card("image size", f"{sizes[0]:.0f} x {sizes[1]:.0f}", "median width and height"),
    ]
    return Cards(cards)


def _class_chart(overall: SplitStats) -> BarChart:
    counts: dict[str, float] = {}
    for entry in sorted(overall.classes, key=lambda entry: -entry.objects):
        counts[entry.name if entry.name not in counts else f"{entry.name} ({entry.category_id})"] = entry.objects
    is_skewed = bool(counts) and max(counts.values()) > 50 * max(1.0, float(np.median(list(counts.values()))))
    title = "Objects of each class" + (", logarithmic" if is_skewed else "")
    return BarChart(title, counts, log=is_skewed, digits=0)


def _box_charts(
    measures: Mapping[str, Measures], together: Measures, overall: SplitStats
) -> list[Chart | HeatMap]:
    sizes = {name: np.sqrt(entry.area) for name, entry in measures.items()}
    relative = {name: 100 * entry.relative_sizes for name, entry in measures.items()}
    aspects = {name: entry.aspects for name, entry in measures.items()}
    counts = {name: entry.objects_per_image.astype(np.float64) for name, entry in measures.items()}
    most = int(together.objects_per_image.max(initial=0))
    count_edges = np.arange(0, most + 2, max(1, most // 50)) - 0.5
    width, height = together.sides.T
    image_aspect = float(np.median(together.sizes_hw[:, 1] / together.sizes_hw[:, 0]))
    limits = {"small": 32.0, "large": 96.0}
    size_edges = np.geomspace(2, 1024, 46)
    return [
        histogram("Size, square root of the area", sizes, size_edges, "pixels", log_x=True, marks=limits),
        histogram("Size relative to the image", relative, np.linspace(0, 100, 41), "% of the image's side"),
        histogram("Aspect ratio", aspects, np.geomspace(0.1, 10, 41), "width / height", log_x=True),
        histogram("Objects in an image", counts, count_edges, "objects"),
        HeatMap("Centres of boxes in the image", overall.center_heat, image_aspect),
        scatter("Width and height of boxes", width, height, "width, pixels", "height", log=True),
    ]


def _image_charts(measures: Mapping[str, Measures], together: Measures) -> list[Chart]:
    aspects = {name: entry.sizes_hw[:, 1] / entry.sizes_hw[:, 0] for name, entry in measures.items()}
    height, width = together.sizes_hw.T
    return [
        scatter("Width and height of images", width, height, "width, pixels", "height"),
        histogram("Aspect ratio of images", aspects, np.geomspace(0.2, 5, 33), "width / height", log_x=True),
    ]


def _image_sizes(overall: SplitStats) -> Table:
    heads = [Column("width x height"), Column("images", "count", bar=True), Column("share", "percent")]
    found = overall.image_sizes
    rows = [(f"{width} x {height}", count, count / overall.images) for height, width, count in found]
    return Table(heads, rows, "Most frequent sizes")


def _input_chart(stats: DatasetStats) -> Charts:
    sides = {name: entry.short_sides for name, entry in stats.inputs.items()}
    marks = {f"{limit} px": float(limit) for limit in LIMITS}
    title = "Short side of objects at the model's input"
    return Charts([histogram(title, sides, np.geomspace(1, 1024, 51), "pixels", log_x=True, marks=marks)])
