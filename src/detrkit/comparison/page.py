"""``compare.html``: several detectors on one page."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from detrkit.comparison.pictures import disagreement_pictures
from detrkit.comparison.result import MEASURES, Comparison, ModelResult, PairwiseComparison
from detrkit.data.split import Split
from detrkit.detectors.cost import NOT_COUNTED
from detrkit.evaluation.bootstrap import LEAST_IMAGES
from detrkit.evaluation.coco import known
from detrkit.evaluation.report.terms import percent
from detrkit.visual.chart import Chart, Series
from detrkit.visual.interactive_charts import Charts
from detrkit.visual.page import Block, Card, Cards, Gallery, Section, Text
from detrkit.visual.table import Column, Table, Value, columns
from detrkit.visual.text import shortened

MOST_PICTURES = 12
"""Of each pair of detectors; with more than three detectors fewer, so that the page stays small."""

SPEED_COLUMNS = ("median ms", "95 % ms", "parameters (M)", "GFLOPs", "memory (MB)")

_HEAD = ("detector", "kind")
_MOST_PICTURES_IN_ALL = 36
_LOG_RATIO = 8.0
_LEAST_SPAN = 2.0  # percent points of AP upwards, so that no difference looks greater than it is


def comparison_sections(comparison: Comparison, split: Split) -> list[Section]:
    """Return the sections of the page.

    Args:
        comparison: What was found.
        split: Its images, for pictures.
    """
    pictures = min(MOST_PICTURES, max(_MOST_PICTURES_IN_ALL // len(comparison.pairs), 3))
    sections = [Section("Who is better", _summary(comparison)), Section("Detectors", _detectors(comparison))]
    for pair in comparison.pairs:
        title = f"{shortened(pair.model.name, 40)} against {shortened(pair.reference.name, 40)}"
        sections.append(Section(f"Classes: {title}", _classes(pair)))
        sections.append(Section(f"Images: {title}", _images(pair, split, pictures)))
    return sections


def _summary(comparison: Comparison) -> list[Block]:
    best = max(comparison.models, key=lambda model: model.metrics["AP"])
    cards = [
        Card("highest AP", percent(best.metrics["AP"]), best.name),
        Card("images", f"{comparison.images:,}", f"{comparison.objects:,} objects"),
        Card("classes", str(len(comparison.class_map)), f"{len(comparison.left_out)} left out"),
    ]
    timed = [model for model in comparison.models if model.latency is not None]
    if timed:
        fastest = min(timed, key=_median)
        cards.append(Card("fastest", f"{_median(fastest):.1f} ms", fastest.name))
    return [
        *(Text(note, "warning") for note in comparison.notes),
        Cards(cards),
        *(Text(f"{verdict}.") for verdict in comparison.verdicts),
        _differences(comparison),
        Text(
            f"The true difference, on endlessly many images of the same kind, lies in the interval with "
            f"{100 * comparison.confidence:g} % confidence, by {comparison.resamples:,} resamples of the images, "
            "the same for both detectors. Where the interval holds 0, other images could turn the order around."
        ),
    ]


def _differences(comparison: Comparison) -> Table:
    rows: list[list[Value]] = []
    for pair in comparison.pairs:
        for measure, difference in pair.measures.items():
            numbers: list[Value] = [None] * 4
            if difference is not None:
                numbers = [difference.value, difference.low, difference.high, difference.probability]
            rows.append([pair.model.name, pair.reference.name, measure, *numbers])
    heads = columns("text", "detector", "against", "measure") + columns("points", "difference", "from", "to")
    return Table(
        [*heads, Column("better in resamples", "percent", digits=0)], rows, "Differences in percent points"
    )


def _detectors(comparison: Comparison) -> list[Block]:
    # the tables
    table = detector_table(comparison)
    accuracy, speed = table.only(*_HEAD, *accuracy_columns(comparison)), table.only(*_HEAD, *SPEED_COLUMNS)
    blocks: list[Block] = [
        dataclasses.replace(accuracy, title="Accuracy in percent, on the same images"),
        dataclasses.replace(speed, title="Speed and cost"),
    ]
    # and what the times mean
    timed = [model for model in comparison.models if model.latency is not None]
    if len(timed) > 1:
        blocks.append(Charts([accuracy_against_latency(timed)]))
    if timed:
        latency = timed[0].latency
        assert latency is not None
        threads = "1 thread" if latency.threads == 1 else f"{latency.threads} threads"
        how = (
            f"Times are from pixels in memory to detections, one image at a time, on {latency.device} with "
            f"{threads}: {latency.runs} runs each on {latency.images} images, the detectors taking turns."
        )
        blocks.append(Text(how))
    counted = f"A multiplication and an addition are two FLOPs; not counted: {NOT_COUNTED}."
    return [*blocks, Text(f"{counted} Memory is what one detection takes at most beyond the weights.")]


_MASK_COLUMNS, _PANOPTIC_COLUMNS = ("mask AP", "mask AP50"), ("PQ", "SQ", "RQ")


def accuracy_columns(comparison: Comparison) -> list[str]:
    """Name the columns of accuracy; AR is named by the detections that count."""
    boxes = [*MEASURES[:-1], f"AR{comparison.models[0].metrics.max_detections}"]
    masks = any(model.masks is not None for model in comparison.models)
    panoptic = any(model.panoptic for model in comparison.models)
    return [*boxes, *_MASK_COLUMNS[: masks * 2], *_PANOPTIC_COLUMNS[: panoptic * 3]]


def detector_table(comparison: Comparison) -> Table:
    """Return the figures of all detectors, accuracy in percent: for the page, the terminal and the files."""
    figures = (*accuracy_columns(comparison), *SPEED_COLUMNS)
    heads = [Column("detector", "name"), Column("kind")]
    heads += [Column(name, "number", bar=name in ("AP", SPEED_COLUMNS[0])) for name in figures]
    rows: list[list[Value]] = []
    for model in comparison.models:
        latency, cost = model.latency, model.cost
        times = [None, None] if latency is None else [latency.total.p50, latency.total.p95]
        costs = [None] * 3 if cost is None else [cost.parameters / 1e6, cost.flops / 1e9, cost.peak_bytes / 1e6]
        every = {name: known(value) for name, value in {**model.metrics.values, **model.panoptic}.items()}
        if model.masks is not None:
            every |= {f"mask {name}": known(value) for name, value in model.masks.values.items()}
        values = [every.get(name) for name in (*MEASURES, *accuracy_columns(comparison)[len(MEASURES) :])]
        accuracy = [None if value is None else 100 * value for value in values]
        rows.append([model.name, model.kind, *accuracy, *times, *costs])
    return Table(heads, rows)


def accuracy_against_latency(timed: Sequence[ModelResult]) -> Chart:
    """Return a chart with a point for each detector, its name beside it."""
    times = np.array([_median(model) for model in timed])
    values = np.array([100 * (known(model.metrics["AP"]) or 0.0) for model in timed])
    chart = latency_chart(Series(times, values), [model.name for model in timed])
    return dataclasses.replace(chart, log_x=bool(times.max() > _LOG_RATIO * times.min()))


def latency_chart(points: Series, names: Sequence[str]) -> Chart:
    """Return a chart of points of AP in percent over median latency in milliseconds."""
    low, high = float(points.y.min()), float(points.y.max())
    span = max(1.4 * (high - low), _LEAST_SPAN)
    bottom = max((low + high - span) / 2, -0.25)
    about = ("AP against latency", "median latency of one image (ms)", "AP (%)")
    return Chart(*about, points=points, point_names=names, y_range=(bottom, bottom + span))


def _classes(pair: PairwiseComparison) -> list[Block]:
    entries = pair.classes
    certain = [entry for entry in entries if entry.beyond_chance]
    sure = [entry for entry in entries if entry.difference is not None]
    chance = (1 - pair.differences.confidence) * len(sure)
    rows: list[list[Value]] = []
    for entry in entries:
        ends = [None, None] if entry.difference is None else [entry.difference.low, entry.difference.high]
        verdict = "" if not entry.beyond_chance else "gain" if (entry.value or 0) > 0 else "loss"
        rows.append([entry.name, entry.objects, entry.first, entry.second, entry.value, *ends, verdict])
    names = [f"AP {shortened(model.name, 24)}" for model in (pair.reference, pair.model)]
    points = columns("points", *names, "difference", "from", "to")
    heads = [Column("class"), Column("objects", "count"), *points, Column("beyond chance")]
    return [
        Text(f"{pair.verdict()}."),
        Table(heads, rows, f"AP by class: what {shortened(pair.model.name, 40)} has more"),
        Text(
            f"The interval leaves out 0 for {len(certain)} of {len(sure)} classes; by chance alone that would "
            f"be about {chance:.0f}, so a single class is a hint rather than a proof. Classes in fewer "
            f"than {LEAST_IMAGES} images have no interval."
        ),
    ]


def _images(pair: PairwiseComparison, split: Split, most: int) -> list[Block]:
    images = pair.images
    better, worse = int((images.gain > 0).sum()), int((images.gain < 0).sum())
    first, second = shortened(pair.reference.name, 40), shortened(pair.model.name, 40)
    scores = [side.threshold for side in (images.first, images.second)]
    one, other = (f"{score:.2f}" if np.isfinite(score) else "none, since nothing is right," for score in scores)
    explanation = (
        f"Each detector at the score where its F1 over all classes is best ({one} for {first}, {other} for "
        f"{second}). Mistakes are objects missed and detections that are false, averaged over COCO's ten IoU "
        "thresholds. "
        "Disagreement counts the objects that only one of them finds, and how far apart their numbers of false "
        "detections are."
    )
    total = float(images.gain.sum())
    counts = (
        f"{second} makes fewer mistakes on {better:,} images and more on {worse:,}; in all {abs(total):,.1f} "
        f"{'fewer' if total >= 0 else 'more'}. images.csv has every image."
    )
    if not len(images.ranked()):
        return [Text(explanation), Text("There is no image on which they disagree.")]
    pictures = disagreement_pictures(pair, split, most)
    legend = f"Left: annotated. Middle: {first}. Right: {second}. What is false at IoU 0.5 says so."
    shown = (
        [Text(legend), Gallery(pictures, wide=True)]
        if pictures
        else [Text("The images are not there to be shown.")]
    )
    return [Text(explanation), Text(counts), *shown]


def _median(model: ModelResult) -> float:
    assert model.latency is not None
    return model.latency.total.p50
