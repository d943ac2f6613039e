"""Failures as sections of a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np

from detrkit.evaluation.failures.causes import Cause
from detrkit.evaluation.failures.entries import KINDS, MISSED
from detrkit.evaluation.failures.find import Failures
from detrkit.evaluation.failures.label_issues import REASONS
from detrkit.evaluation.failures.tables import image_rows, issue_rows
from detrkit.files import read_facts
from detrkit.visual.gallery import FilterGallery, GalleryItem
from detrkit.visual.interactive_charts import BarChart, Charts
from detrkit.visual.page import Block, Picture, Section, Text
from detrkit.visual.table import Column, Table, Value

MOST_IMAGES = 200
MOST_ISSUES = 100

_MOST_PLOTS = 6
_FAIR_F1 = 0.5
_MOST_BYTES, _MOST_BYTES_ISSUES = 6_000_000, 2_000_000  # of pictures, so that a report stays under 15 MB
_MEANING: Mapping[str, str] = read_facts(__file__)
_SHORT_KINDS = ("classif.", "localiz.", "both", "duplic.", "backgr.", "missed")
_WORST = "The worst of each kind, at most three of one image: false positives by score, missed objects by size."
_LEGEND = "Labels are dashed and green, detections orange; what else lies near is drawn thin."


def failure_sections(failures: Failures) -> list[Section]:
    """Return failures with their gallery, what they go with, the worst images, and the labels to check."""
    return [
        Section("Failures", _failure_blocks(failures)),
        Section("What failure goes with", _cause_blocks(failures)),
        Section("Images, worst first", _image_blocks(failures)),
        Section("Labels to check", _issue_blocks(failures)),
    ]


def _failure_blocks(failures: Failures) -> list[Block]:
    head = (
        f"At a score threshold of {failures.score:.2f}, with an IoU of 0.5 or more for a right detection. "
        "failures.csv has them all."
    )
    blocks: list[Block] = [Text(head), _kinds_table(failures)]
    if failures.unreadable:
        blocks.append(Text(f"{failures.unreadable:,} images could not be read and are not shown.", "warning"))
    if failures.pictures:
        items = []
        for number, picture in failures.pictures:
            entry = failures.entry(number)
            tags = {"kind": entry.kind, "class": failures.class_names[entry.class_id], "size": entry.size}
            items.append(_item(picture, tags, score=entry.score, IoU=entry.iou, severity=entry.severity))
        blocks += [Text(f"{_WORST} {_LEGEND}"), FilterGallery(items, _MOST_BYTES)]
    elif len(failures.table):
        rows: list[list[Value]] = [
            [entry.kind, failures.describe(entry), entry.file_name, entry.score, entry.iou, entry.severity]
            for entry in failures.worst(MOST_ISSUES)
        ]
        columns = [*map(Column, ("kind", "what", "image")), *_numbers("score", "IoU", "severity")]
        blocks.append(Table(columns, rows, "The worst failures"))
    return blocks


def _kinds_table(failures: Failures) -> Table:
    table, truth, found = failures.table, failures.matches.truth, failures.matches.found
    rows: list[list[Value]] = []
    for code, kind in enumerate(KINDS):
        mine = table.kinds == code
        detections = table.detections[mine & (table.kinds != MISSED)]
        shown = found.scores[detections]
        classes = truth.class_ids[table.objects[mine]] if code == MISSED else found.class_ids[detections]
        counts = np.bincount(classes) if len(classes) else np.zeros(1, int)
        often = f"{failures.class_names[counts.argmax()]} ({counts.max():,})" if counts.any() else ""
        rows.append([kind, len(classes), float(np.median(shown)) if len(shown) else None, often, _MEANING[kind]])
    numbers = [Column("failures", "count", bar=True), *_numbers("median score")]
    columns = [Column("kind"), *numbers, Column("most often"), Column("what it is")]
    return Table(columns, rows, "Failures by kind")


def _cause_blocks(failures: Failures) -> list[Block]:
    # what was looked at, and how
    own = [cause for cause in failures.causes if cause.explained_by is None]
    number = failures.pixel_images
    measured = f"measured on {number:,} images" if number else "not measured"
    method = (
        "What fails is compared by size, shape, place, crowding, class frequency and pixels. Intervals are by "
        "resampling images, and hold for all properties together with 95 % confidence. That a property goes with "
        f"failure does not prove that it is the reason. Brightness, contrast and sharpness were {measured}."
    )
    if not failures.causes:
        return [Text("Nothing that was looked at goes with failure beyond chance."), Text(method)]
    # a chart of each, and the table of all
    plots = Charts([_cause_plot(cause) for cause in own[:_MOST_PLOTS]])
    rows: list[list[Value]] = []
    for cause in failures.causes:
        name = cause.name + (f" (goes along with {cause.explained_by})" if cause.explained_by else "")
        worst, interval = cause.bins[cause.worst], f"{cause.low:.1f} to {cause.high:.1f}"
        rates = (worst.count, worst.rate, cause.others, cause.ratio)
        rows.append([name, worst.label, cause.target, *rates, interval])
    columns = [
        *map(Column, ("property", "worst where", "what fails")),
        Column("of", "count"),
        *(Column(name, "percent") for name in ("fail there", "elsewhere")),
        Column("times as often", "number", bar=True),
        Column("95 % interval"),
    ]
    lines: list[Block] = [Text(f"{cause.sentence()}.") for cause in own[:3]]
    return [*lines, plots, Table(columns, rows, "Properties that go with failure"), Text(method)]


def _cause_plot(cause: Cause) -> BarChart:
    rates = {f"{entry.label} ({entry.count:,})": 100 * entry.rate for entry in cause.bins}
    return BarChart(f"{cause.target.capitalize()} by {cause.name}", rates, "% that fail")


def _image_blocks(failures: Failures) -> list[Block]:
    # the id is for programs
    rows = [[name, *values] for name, _, *values in image_rows(failures)[:MOST_IMAGES]]
    columns = [
        Column("image"),
        *_numbers("severity", bar=True),
        *(Column(name, "count") for name in ("objects", "right", *_SHORT_KINDS)),
        *_numbers("F1", "mean IoU"),
    ]
    about = (
        "Severity adds up what goes wrong: a false positive by the square of its score, half of that for a "
        "duplicate; a missed object 0.25 to 1 by its size. images.csv has all images."
    )
    return [Text(about), Table(columns, rows, f"The worst {len(rows):,} of {len(failures.images):,} images")]


def _issue_blocks(failures: Failures) -> list[Block]:
    if not failures.label_issues:
        return [Text("No label is suspect.")]
    counts = Counter(issue.reason for issue in failures.label_issues)
    summary = ", ".join(f"{reason} {counts[reason]:,}" for reason in REASONS if counts[reason])
    about = (
        f"{len(failures.label_issues):,} labels deserve a second look: {summary}. The model may be wrong as well; "
        "the rank says where to begin. label_errors.csv lists them, label_errors.json has them in COCO's format."
    )
    blocks: list[Block] = [Text(about)]
    # F1 of all images together says how far the model can be trusted
    objects = sum(image.objects for image in failures.images)
    right = sum(image.right for image in failures.images)
    false = sum(sum(image.wrong[:MISSED]) for image in failures.images)
    if 2 * right / max(objects + right + false, 1) < _FAIR_F1:
        blocks.append(Text("The model itself is wrong too often to be a good judge of labels.", "warning"))
    if failures.issue_pictures:
        items = []
        for place, picture in failures.issue_pictures:
            issue = failures.label_issues[place]
            class_id = issue.proposed_class_id if issue.class_id is None else issue.class_id
            assert class_id is not None
            tags = {"reason": issue.reason, "class": failures.class_names[class_id]}
            items.append(_item(picture, tags, rank=issue.rank, score=issue.score, IoU=issue.iou))
        blocks += [Text(_LEGEND), FilterGallery(items, _MOST_BYTES_ISSUES)]
    rows = [[*row[:2], *row[4:], row[2]] for row in issue_rows(failures)[:MOST_ISSUES]]
    columns = [
        Column("reason"),
        *_numbers("rank", bar=True),
        *map(Column, ("labelled", "model says")),
        *_numbers("score", "IoU"),
        Column("image"),
    ]
    return [*blocks, Table(columns, rows, f"The {len(rows):,} most suspect labels")]


def _numbers(*names: str, bar: bool = False) -> list[Column]:
    return [Column(name, "number", digits=2, bar=bar) for name in names]


def _item(picture: Picture, tags: dict[str, str], **numbers: float | None) -> GalleryItem:
    return GalleryItem(picture, tags, {name: value for name, value in numbers.items() if value is not None})
