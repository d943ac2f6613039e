"""Failures as sections of a page."""

from __future__ import annotations

import numpy as np

from detrkit.evaluation.failures.causes import Cause
from detrkit.evaluation.failures.entries import KINDS, MISSED
from detrkit.evaluation.failures.find import Failures
from detrkit.evaluation.failures.label_issues import REASONS
from detrkit.visual.gallery import FilterGallery, GalleryItem
from detrkit.visual.page import Block, Column, Plots, Section, Table, Text, Value
from detrkit.visual.plots import bars

MOST_IMAGES = 200
MOST_SUSPECTS = 100

_MOST_PLOTS = 6
_FAIR_F1 = 0.5
_MOST_BYTES, _MOST_BYTES_SUSPECTS = 6_000_000, 2_000_000  # of pictures, so that a report stays under 15 MB
_MEANING = {
    "classification": "right place, wrong class",
    "localization": "right class, box too far off (IoU 0.1 to 0.5)",
    "both": "wrong class, and box too far off",
    "duplicate": "an object that another detection found already",
    "background": "nothing labelled there",
    "missed": "an object that no shown detection finds, not even with a wrong class or place",
}
_SHORT_KINDS = ("classif.", "localiz.", "both", "duplic.", "backgr.", "missed")
_WORST = "The worst of each kind, at most three of one image: false positives by score, missed objects by size."
_LEGEND = "Labels are dashed and green, detections orange; what else lies near is drawn thin."


def failure_sections(failures: Failures) -> list[Section]:
    """Failures with their gallery, what they go with, the worst images, and the labels to check."""
    return [
        Section("Failures", _failure_blocks(failures)),
        Section("What failure goes with", _cause_blocks(failures)),
        Section("Images, worst first", _image_blocks(failures)),
        Section("Labels to check", _suspect_blocks(failures)),
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
        items = [_item(failures, place) for place in range(len(failures.pictures))]
        blocks += [Text(f"{_WORST} {_LEGEND}"), FilterGallery(items, _MOST_BYTES)]
    elif len(failures.table):
        blocks.append(_worst_table(failures))
    return blocks


def _kinds_table(failures: Failures) -> Table:
    table, scores = failures.table, failures.matches.found.scores
    rows: list[list[Value]] = []
    for code, kind in enumerate(KINDS):
        mine = table.kinds == code
        shown = np.array([], dtype=np.float64) if code == MISSED else scores[table.detections[mine]]
        classes = _most_frequent_class(failures, mine, code)
        median = float(np.median(shown)) if len(shown) else None
        rows.append([kind, int(mine.sum()), median, classes, _MEANING[kind]])
    columns = [
        Column("kind"),
        Column("failures", "count", bar=True),
        Column("median score", "number", digits=2),
        Column("most often"),
        Column("what it is"),
    ]
    return Table(columns, rows, "Failures by kind")


def _most_frequent_class(failures: Failures, mine: np.ndarray, code: int) -> str:
    if not mine.any():
        return ""
    table, matches = failures.table, failures.matches
    rows, classes = (
        (table.objects, matches.truth.class_ids) if code == MISSED else (table.detections, matches.found.class_ids)
    )
    counts = np.bincount(classes[rows[mine]])
    class_id = int(counts.argmax())
    return f"{failures.class_names[class_id]} ({counts[class_id]:,})"


def _item(failures: Failures, place: int) -> GalleryItem:
    number, picture = failures.pictures[place]
    failure = failures.entry(number)
    tags = {"kind": failure.kind, "class": failures.class_names[failure.class_id], "size": failure.size}
    numbers = {
        name: value
        for name, value in (("score", failure.score), ("IoU", failure.iou), ("severity", failure.severity))
        if value is not None
    }
    return GalleryItem(picture, tags, numbers)


def _worst_table(failures: Failures) -> Table:
    """In place of pictures."""
    rows: list[list[Value]] = [
        [failure.kind, failures.describe(failure), failure.file_name, failure.score, failure.iou, failure.severity]
        for failure in failures.worst(MOST_SUSPECTS)
    ]
    columns = [
        Column("kind"),
        Column("what"),
        Column("image"),
        Column("score", "number", digits=2),
        Column("IoU", "number", digits=2),
        Column("severity", "number", digits=2),
    ]
    return Table(columns, rows, "The worst failures")


def _cause_blocks(failures: Failures) -> list[Block]:
    own = [cause for cause in failures.causes if cause.explained_by is None]
    pixels = (
        f" Brightness, contrast and sharpness were measured on {failures.pixel_images:,} images."
        if failures.pixel_images
        else " Brightness, contrast and sharpness were not measured."
    )
    method = (
        "What fails is compared by size, shape, place, crowding, class frequency and pixels. Intervals are by "
        "resampling images, and hold for all properties together with 95 % confidence. That a property goes with "
        f"failure does not prove that it is the reason.{pixels}"
    )
    if not failures.causes:
        return [Text("Nothing that was looked at goes with failure beyond chance."), Text(method)]
    plots = Plots([bars(_plot_title(cause), _rates(cause), "% that fail") for cause in own[:_MOST_PLOTS]])
    rows: list[list[Value]] = [
        [
            cause.name + (f" (goes along with {cause.explained_by})" if cause.explained_by else ""),
            cause.bins[cause.worst].label,
            cause.target,
            cause.bins[cause.worst].count,
            cause.bins[cause.worst].rate,
            cause.others,
            cause.ratio,
            f"{cause.low:.1f} to {cause.high:.1f}",
        ]
        for cause in failures.causes
    ]
    columns = [
        Column("property"),
        Column("worst where"),
        Column("what fails"),
        Column("of", "count"),
        Column("fail there", "percent"),
        Column("elsewhere", "percent"),
        Column("times as often", "number", bar=True),
        Column("95 % interval"),
    ]
    lines: list[Block] = [Text(f"{cause.sentence()}.") for cause in own[:3]]
    return [*lines, plots, Table(columns, rows, "Properties that go with failure"), Text(method)]


def _plot_title(cause: Cause) -> str:
    return f"{cause.target.capitalize()} by {cause.name}"


def _rates(cause: Cause) -> dict[str, float]:
    return {f"{entry.label} ({entry.count:,})": 100 * entry.rate for entry in cause.bins}


def _image_blocks(failures: Failures) -> list[Block]:
    rows: list[list[Value]] = [
        [
            image.file_name,
            image.severity,
            image.objects,
            image.right,
            *image.wrong,
            image.f1,
            image.mean_iou,
        ]
        for image in failures.images[:MOST_IMAGES]
    ]
    columns = [
        Column("image"),
        Column("severity", "number", digits=2, bar=True),
        Column("objects", "count"),
        Column("right", "count"),
        *(Column(name, "count") for name in _SHORT_KINDS),
        Column("F1", "number", digits=2),
        Column("mean IoU", "number", digits=2),
    ]
    shown = min(len(failures.images), MOST_IMAGES)
    about = (
        "Severity adds up what goes wrong: a false positive by the square of its score, half of that for a "
        "duplicate; a missed object 0.25 to 1 by its size. images.csv has all images."
    )
    return [Text(about), Table(columns, rows, f"The worst {shown:,} of {len(failures.images):,} images")]


def _suspect_blocks(failures: Failures) -> list[Block]:
    if not failures.suspects:
        return [Text("No label is suspect.")]
    counts = {reason: sum(suspect.reason == reason for suspect in failures.suspects) for reason in REASONS}
    summary = ", ".join(f"{reason} {count:,}" for reason, count in counts.items() if count)
    about = (
        f"{len(failures.suspects):,} labels deserve a second look: {summary}. The model may be wrong as well; the "
        "rank says where to begin. label_errors.csv lists them, label_errors.json has them in COCO's format."
    )
    rows: list[list[Value]] = [
        [
            suspect.reason,
            suspect.rank,
            "" if suspect.class_id is None else failures.class_names[suspect.class_id],
            "" if suspect.proposed_class_id is None else failures.class_names[suspect.proposed_class_id],
            suspect.score,
            suspect.iou,
            suspect.file_name,
        ]
        for suspect in failures.suspects[:MOST_SUSPECTS]
    ]
    columns = [
        Column("reason"),
        Column("rank", "number", digits=2, bar=True),
        Column("labelled"),
        Column("model says"),
        Column("score", "number", digits=2),
        Column("IoU", "number", digits=2),
        Column("image"),
    ]
    blocks: list[Block] = [Text(about)]
    if _f1(failures) < _FAIR_F1:
        blocks.append(Text("The model itself is wrong too often to be a good judge of labels.", "warning"))
    if failures.suspect_pictures:
        items = [_suspect_item(failures, place) for place in range(len(failures.suspect_pictures))]
        blocks += [Text(_LEGEND), FilterGallery(items, _MOST_BYTES_SUSPECTS)]
    shown = min(len(failures.suspects), MOST_SUSPECTS)
    return [*blocks, Table(columns, rows, f"The {shown:,} most suspect labels")]


def _f1(failures: Failures) -> float:
    """Of all images together."""
    objects = sum(image.objects for image in failures.images)
    right = sum(image.right for image in failures.images)
    claims = right + sum(sum(image.wrong[:MISSED]) for image in failures.images)
    return 2 * right / max(objects + claims, 1)


def _suspect_item(failures: Failures, place: int) -> GalleryItem:
    number, picture = failures.suspect_pictures[place]
    suspect = failures.suspects[number]
    class_id = suspect.proposed_class_id if suspect.class_id is None else suspect.class_id
    tags = {"reason": suspect.reason}
    if class_id is not None:
        tags["class"] = failures.class_names[class_id]
    numbers = {
        name: value
        for name, value in (("rank", suspect.rank), ("score", suspect.score), ("IoU", suspect.iou))
        if value is not None
    }
    return GalleryItem(picture, tags, numbers)
