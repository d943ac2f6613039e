"""Sections of the report that say why: errors, confusion, calibration; and how it was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from detrkit.evaluation.coco import UNDEFINED
from detrkit.evaluation.report.terms import ERROR_NAMES, MORE_ERROR_NAMES
from detrkit.evaluation.report.verdict import most_confused
from detrkit.visual.interactive_charts import Bar, BarPlot, Cell, CellGrid
from detrkit.visual.page import Block, Column, Section, Table, Text, Value
from detrkit.visual.text import shortened

if TYPE_CHECKING:
    from detrkit.evaluation.analysis import Evaluation
    from detrkit.evaluation.confusion import Confusion
    from detrkit.latency import Latency

MOST_CLASSES_CONFUSED = 30
"""Of a matrix that can still be read."""
_MOST_CONFUSIONS = 30


def error_section(evaluation: Evaluation) -> Section:
    """What each kind of error costs, dearest first."""
    errors = evaluation.errors
    if errors is None or errors.ap50 == UNDEFINED:
        return Section("Errors", [Text("There are no objects, so no error costs anything.")])
    score = evaluation.score
    above = errors.counts_above(score)
    rows: list[list[Value]] = [
        [name, 100 * errors.cost[name], above[name], errors.counts[name], meaning]
        for name, meaning in sorted(ERROR_NAMES.items(), key=lambda item: -errors.cost[item[0]])
    ]
    rows += [
        [name.replace("_", " "), 100 * errors.cost[name], above[name], errors.counts[name], meaning]
        for name, meaning in MORE_ERROR_NAMES.items()
    ]
    columns = [
        Column("kind"),
        Column("costs AP50", "number", bar=True),
        Column(f"count at score {score:.2f}", "count"),
        Column("count at any score", "count"),
        Column("what it is"),
    ]
    text = (
        "What AP50 would gain, in points, if all errors of one kind were mended and nothing else (TIDE, "
        "arXiv:2008.08115). Costs do not add up, since one error can hide another."
    )
    return Section("Errors", [Text(text), Table(columns, rows, "Kinds of error at IoU 0.50, dearest first")])


def confusion_section(evaluation: Evaluation) -> Section:
    """Which class is taken for which."""
    confusion, names = evaluation.confusion, evaluation.class_names
    if confusion is None:
        return Section("Confusion", [Text("It was not asked which class is taken for which.")])
    background = len(names)
    chosen = _most_confused_classes(confusion)
    labels = [*(names[i] for i in chosen), "background"]
    places = np.array([*chosen, background])
    totals = confusion.matrix.sum(axis=1)
    cells = [
        [
            _cell(int(confusion.matrix[row, column]), int(totals[row]), str(labels[i]), str(labels[j]), i == j)
            for j, column in enumerate(places)
        ]
        for i, row in enumerate(places)
    ]
    text = (
        f"Detections with a score of {confusion.score:.2f} or more; each takes the free object that it overlaps "
        f"most, by {confusion.iou:g} or more, whatever its class. Colour: share of the row. Last row: detections "
        "where nothing is annotated; last column: objects that were missed."
    )
    blocks: list[Block] = [Text(text)]
    if len(chosen) < len(names):
        blocks.append(Text(f"The {len(chosen)} most confused of {len(names)} classes are shown."))
    blocks.append(CellGrid("Confusion matrix.", labels, labels, cells, "annotated class", "detected class"))
    rows: list[list[Value]] = [list(entry) for entry in most_confused(evaluation, _MOST_CONFUSIONS)]
    if rows:
        columns = [Column("annotated"), Column("detected as"), Column("times", "count", bar=True)]
        blocks.append(Table(columns, rows, "Most frequent confusions of two classes"))
    return Section("Confusion", blocks)


def _most_confused_classes(confusion: Confusion) -> list[int]:
    """Class ids, in their own order; of many, those with the most confusions with another class."""
    matrix = confusion.matrix[:-1, :-1]
    if len(matrix) <= MOST_CLASSES_CONFUSED:
        return list(range(len(matrix)))
    wrong = matrix.sum(axis=0) + matrix.sum(axis=1) - 2 * matrix.diagonal()
    order = np.lexsort((-confusion.matrix.sum(axis=1)[:-1], -wrong))
    return sorted(order[:MOST_CLASSES_CONFUSED].tolist())


def _cell(count: int, total: int, truth: str, detected: str, right: bool) -> Cell:
    share = count / total if total else 0.0
    names = f"{shortened(truth, 40)} detected as {shortened(detected, 40)}"
    tip = f"{names}\n{count:,} times, {100 * share:.1f} % of the row"
    return Cell(share, f"{count:,}" if count else "", tip, "hit" if right else "other")


def calibration_section(evaluation: Evaluation) -> Section:
    """Whether scores mean what they say."""
    found = evaluation.calibration
    if found is None or found.ece == UNDEFINED:
        return Section("Calibration", [Text("There are no scores from 0 to 1 to compare with what came of them.")])
    accuracy = np.where(found.accuracy > UNDEFINED, found.accuracy, 0)
    bars = [
        Bar(
            float(found.edges[i]),
            float(found.edges[i + 1]),
            float(accuracy[i]),
            f"score {found.edges[i]:.2f} to {found.edges[i + 1]:.2f}, mean {found.confidence[i]:.3f}\n"
            f"right: {100 * accuracy[i]:.1f} % of {found.counts[i]:,}"
            if found.counts[i]
            else f"score {found.edges[i]:.2f} to {found.edges[i + 1]:.2f}\nno detections",
        )
        for i in range(len(found.counts))
    ]
    text = (
        "Each bar is the share of detections of about that score that are right (IoU 0.50, duplicates are wrong). "
        "Bars under the broken line: scores promise too much; above: too little. Expected calibration error "
        f"{found.ece:.3f}, largest gap of a bar {found.mce:.3f}; the many detections of low score weigh most in "
        "the first."
    )
    plot = BarPlot("Right detections by score", bars, "score", "share", top=1.0, diagonal=True)
    return Section("Calibration", [Text(text), plot])


def latency_section(latency: Latency) -> Section:
    """How long a detection takes, by stage."""
    stages = {
        "preprocess": latency.preprocess,
        "model": latency.model,
        "postprocess": latency.postprocess,
        "total": latency.total,
    }
    if latency.decode is not None:
        stages["reading the file (apart)"] = latency.decode
    rows: list[list[Value]] = [
        [name, entry.p50, entry.p90, entry.p95, entry.p99, entry.min, entry.mean] for name, entry in stages.items()
    ]
    heads = ("median", "90 %", "95 %", "99 %", "least", "mean")
    columns = [Column("stage"), *(Column(head, "number", 2) for head in heads)]
    text = (
        f"Milliseconds for {latency.batch_size} at once, on {latency.device} with {latency.threads} threads: "
        f"{latency.images} images from the data set, {latency.runs} runs after {latency.warm_up} to warm up. "
        f"{latency.images_per_s:.1f} images a second. Percentiles of the stages do not add up to those of the "
        "total."
    )
    return Section("Latency", [Text(text), Table(columns, rows, "Time by stage, ms")])


def origin_section(evaluation: Evaluation) -> Section:
    """How it was measured."""
    origin, provenance = evaluation.origin, evaluation.provenance
    rows: list[list[Value]] = [
        ["model", origin.model],
        ["kind of model", origin.kind],
        ["data set", origin.data],
        ["split", origin.split],
        ["detections counted", f"best {evaluation.metrics.max_detections} of each image and class, at any score"],
        ["annotations", provenance.get("annotations")],
        ["their SHA-256", provenance.get("annotations_sha256")],
        ["evaluated", provenance.get("created")],
        ["detrkit", provenance.get("detrkit")],
        ["hotcoco", provenance.get("hotcoco")],
    ]
    rows += [[name, None if value is None else str(value)] for name, value in origin.settings.items()]
    if evaluation.intervals is not None:
        intervals = evaluation.intervals
        rows.append(
            ["intervals", f"{intervals.resamples:,} bootstrap resamples of whole images, seed {intervals.seed}"]
        )
    text = (
        "All numbers come from one evaluator, equal to pycocotools to the last digit, with no score threshold; a "
        "detection in a crowd region is neither right nor wrong."
    )
    known = [row for row in rows if row[1]]
    return Section("How it was measured", [Text(text), Table([Column("what"), Column("value")], known, "Origin")])
