"""``report.html``: an evaluation as one page that needs nothing else; and all files of an evaluation."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from detrkit.evaluation.coco import UNDEFINED, CocoMetrics
from detrkit.evaluation.evaluator import CocoEvaluator
from detrkit.evaluation.failures import failure_sections, write_failures
from detrkit.evaluation.matching import IOU_THRESHOLDS
from detrkit.evaluation.report import tables
from detrkit.evaluation.report.masks import mask_sections
from detrkit.evaluation.report.metrics_file import write_metrics_json
from detrkit.evaluation.report.summary import write_summary
from detrkit.evaluation.report.terms import percent, range_of
from detrkit.evaluation.report.verdict import operating_point, verdict, warnings
from detrkit.visual.chart import Chart, Line, Series, make_bars, make_lines
from detrkit.visual.interactive_charts import Cell, CellGrid, Charts
from detrkit.visual.page import Block, Card, Cards, Section, Text, write_page
from detrkit.visual.text import shortened

if TYPE_CHECKING:
    from detrkit.evaluation.analysis import Evaluation
    from detrkit.evaluation.calibration import Calibration
    from detrkit.evaluation.confusion import Confusion
    from detrkit.evaluation.overlaps import Overlaps
    from detrkit.evaluation.score_curves import ScoreCurves

MOST_CLASSES_CONFUSED = 30
"""Rows of a matrix that can still be read."""
MOST_CLASSES_DRAWN = 8
"""Lines of a chart, each with a colour of its own."""

_DRAWN_IOUS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.9)
_SHARES = (0.0, 1.02)


FILES = (
    *("metrics.json", "detections.json", "precision_recall.png", "summary.md", "report.html"),
    *("label_errors.json", "images.csv", "failures.csv", "label_errors.csv"),
)
"""Names of what :func:`write_evaluation` writes; the last four only where failures were looked for."""


def write_evaluation(folder: str | Path, evaluation: Evaluation, evaluator: CocoEvaluator) -> list[Path]:
    """Write everything there is to an existing folder, and return the files, the report first.

    Args:
        folder: folder of the files.
        evaluation: result.
        evaluator: evaluator whose detections it was made from.
    """
    folder = Path(folder)
    numbers, detections = folder / "metrics.json", folder / "detections.json"
    write_metrics_json(numbers, evaluation)
    evaluator.write_results_json(detections)
    files = [numbers, detections, plot_precision_recall(evaluation.metrics, folder / "precision_recall.png")]
    if evaluation.failures is not None:
        files += write_failures(evaluation.failures, folder)
    files.append(write_summary(folder / "summary.md", evaluation))
    return [write_report(folder / "report.html", evaluation), *files]


def write_report(path: str | Path, evaluation: Evaluation) -> Path:
    """Write the page."""
    origin = evaluation.origin
    title = f"Evaluation of {origin.model}" if origin.model else "Evaluation"
    created = str(evaluation.provenance["created"])
    subtitle = " · ".join(part for part in (origin.data, origin.split, created) if part)
    return write_page(path, title, subtitle, report_sections(evaluation))


def report_sections(evaluation: Evaluation) -> list[Section]:
    """Return all sections of the report, in order; what was not asked for has none."""
    metrics = evaluation.metrics
    numbers = [tables.metrics_table(metrics, evaluation.intervals), tables.size_table(evaluation)]
    sections = [Section("In short", _summary(evaluation)), Section("Numbers", numbers)]
    sections.append(Section("Classes", [tables.class_table(evaluation)]))
    sections += mask_sections(evaluation)
    if evaluation.errors is not None:
        sections.append(Section("Errors", _errors(evaluation)))
    if evaluation.failures is not None:
        sections += failure_sections(evaluation.failures)
    sections.append(Section("Curves", _curves(metrics, evaluation.curves)))
    if evaluation.errors is not None:
        sections += [
            Section("Confusion", _confusion(evaluation)),
            Section("Boxes", _overlaps(evaluation.overlaps)),
            Section("Calibration", _calibration(evaluation.calibration)),
        ]
    if evaluation.latency is not None:
        latency = evaluation.latency
        found = (
            f"Milliseconds for {latency.batch_size} at once, on {latency.device} with {latency.threads} threads: "
            f"{latency.images} images from the data set, {latency.runs} runs after {latency.warm_up} to warm up. "
            f"{latency.images_per_s:.1f} images a second. Percentiles of the stages do not add up to those of the "
            "total."
        )
        sections.append(Section("Latency", [Text(found), tables.latency_table(latency)]))
    text = (
        "All numbers come from one evaluator, equal to pycocotools to the last digit, with no score threshold; a "
        "detection in a crowd region is neither right nor wrong."
    )
    return [*sections, Section("How it was measured", [Text(text), tables.origin_table(evaluation)])]


def _summary(evaluation: Evaluation) -> list[Block]:
    """Return the result in sentences and key figures."""
    metrics, intervals = evaluation.metrics, evaluation.intervals
    cards = []
    for name in ("AP", "AP50", "AP75"):
        known = None if intervals is None else intervals.values.get(name)
        note = "" if known is None or intervals is None else f"{range_of(known)}, {100 * intervals.confidence:g} %"
        cards.append(Card(name, percent(metrics[name]), note))
    if evaluation.masks is not None:
        known = None if evaluation.mask_intervals is None else evaluation.mask_intervals.values.get("AP")
        cards.append(Card("mask AP", percent(evaluation.masks["AP"]), range_of(known) if known else ""))
    if evaluation.panoptic is not None:
        own, values = evaluation.panoptic.interval, evaluation.panoptic.metrics.values
        cards.append(Card("PQ", percent(values["PQ"]), range_of(own) if own else ""))
    point = operating_point(evaluation)
    if point is not None:
        score, precision, recall, f1 = point
        cards.append(Card("best F1", f"{f1:.3f}", f"at a score of {score:.2f}"))
        cards.append(Card("precision there", f"{100 * precision:.1f} %"))
        cards.append(Card("recall there", f"{100 * recall:.1f} %"))
    if evaluation.overlaps is not None and evaluation.overlaps.mean != UNDEFINED:
        cards.append(Card("mean IoU", f"{evaluation.overlaps.mean:.3f}", "of boxes that found their object"))
    if evaluation.calibration is not None and evaluation.calibration.ece != UNDEFINED:
        cards.append(Card("calibration error", f"{evaluation.calibration.ece:.3f}", "ECE, 0 is best"))
    if evaluation.latency is not None:
        cards.append(Card("latency", f"{evaluation.latency.total.p50:.1f} ms", evaluation.latency.device))
    counts = {"images": metrics.images, "objects": metrics.objects, "detections": metrics.detections}
    cards += [Card(name, f"{count:,}") for name, count in counts.items()]
    notes = [Text(line, "warning") for line in warnings(evaluation)]
    return [*notes, *map(Text, verdict(evaluation)), Cards(cards)]


def _errors(evaluation: Evaluation) -> list[Block]:
    """Return what each kind of error costs."""
    if evaluation.errors is None or evaluation.errors.ap50 == UNDEFINED:
        return [Text("There are no objects, so no error costs anything.")]
    text = (
        "What AP50 would gain, in points, if all errors of one kind were mended and nothing else (TIDE, "
        "arXiv:2008.08115). Costs do not add up, since one error can hide another."
    )
    return [Text(text), tables.errors_table(evaluation.errors, evaluation.score)]


def _curves(metrics: CocoMetrics, curves: ScoreCurves | None) -> list[Block]:
    """Return precision over recall, and precision, recall and F1 over the score threshold."""
    chosen = _commonest(metrics)
    if not chosen:
        return [Text("There are no objects, so there are no curves.")]
    charts = precision_recall_charts(metrics)
    if curves is not None:
        together = [(name, getattr(curves, name.lower())[0]) for name in ("Precision", "Recall", "F1")]
        single = [(metrics.per_class[class_id].name, curves.f1[class_id + 1]) for class_id in chosen]
        for what, known in (("Precision, recall and F1", together), ("F1", single)):
            title = f"{what} over the score threshold{f', {_kept(metrics)}' if known is single else ''}"
            lines = {name: Series(curves.thresholds[y > UNDEFINED], y[y > UNDEFINED]) for name, y in known}
            charts.append(Chart(title, "score threshold", lines=make_lines(lines), legend=True))
    note = "Move over a chart, or focus it and press arrow keys, to read values; press a name to hide its line."
    return [Text(note), Charts(charts)]


def precision_recall_charts(metrics: CocoMetrics) -> list[Chart]:
    """Return precision over recall: the mean over classes at several IoUs, and single classes at IoU 0.50.

    They show what AP is the area of: COCO's interpolated precision at 101 recalls.
    """
    precision = np.where(metrics.precision > UNDEFINED, metrics.precision, 0)
    recall = np.linspace(0, 1, precision.shape[1])
    with_objects = [class_id for class_id, entry in enumerate(metrics.per_class) if entry.objects]
    mean = precision[:, :, with_objects].mean(axis=2) if with_objects else precision.mean(axis=2)
    rows = [int(np.abs(IOU_THRESHOLDS - iou).argmin()) for iou in _DRAWN_IOUS]
    by_iou = {f"IoU {IOU_THRESHOLDS[row]:.2f}": mean[row] for row in rows}
    by_iou[f"IoU 0.50 to 0.95, AP {percent(metrics['AP'])}"] = mean.mean(axis=0)
    by_class = []
    for number, class_id in enumerate(_commonest(metrics)):
        entry = metrics.per_class[class_id]
        name = f"{shortened(entry.name)} {percent(entry.AP50)}"
        by_class.append(Line(name, number, Series(recall, precision[0, :, class_id])))
    by_iou_lines = make_lines({name: Series(recall, y) for name, y in by_iou.items()})
    drawn = {"mean of all classes": by_iou_lines, f"{_kept(metrics)}, IoU 0.50": by_class}
    return [
        Chart(f"Precision over recall, {of}", "recall", lines=lines, y_range=_SHARES, legend=True)
        for of, lines in drawn.items()
    ]


def plot_precision_recall(metrics: CocoMetrics, path: str | Path) -> Path:
    """Draw :func:`precision_recall_charts` into a PNG."""
    from detrkit.visual.picture import draw_charts

    return draw_charts(precision_recall_charts(metrics), path)


def _commonest(metrics: CocoMetrics) -> list[int]:
    """Return class ids of those with most objects."""
    order = sorted(range(len(metrics.per_class)), key=lambda class_id: -metrics.per_class[class_id].objects)
    return [class_id for class_id in order if metrics.per_class[class_id].objects][:MOST_CLASSES_DRAWN]


def _kept(metrics: CocoMetrics) -> str:
    """Return which classes :func:`_commonest` chooses."""
    count = sum(entry.objects > 0 for entry in metrics.per_class)
    return "each class" if count <= MOST_CLASSES_DRAWN else f"{MOST_CLASSES_DRAWN} commonest of {count} classes"


def _confusion(evaluation: Evaluation) -> list[Block]:
    """Return which class is taken for which."""
    confusion, names = evaluation.confusion, evaluation.class_names
    if confusion is None:
        return [Text("It was not asked which class is taken for which.")]
    chosen = _most_confused_classes(confusion)
    labels = [*(names[class_id] for class_id in chosen), "background"]
    places = [*chosen, len(names)]
    totals = confusion.matrix.sum(axis=1)
    cells: list[list[Cell]] = []
    for i, row in enumerate(places):
        cells.append([])
        for j, column in enumerate(places):
            count = int(confusion.matrix[row, column])
            share = count / max(int(totals[row]), 1)
            taken = f"{shortened(labels[i], 40)} detected as {shortened(labels[j], 40)}"
            tip = f"{taken}\n{count:,} times, {100 * share:.1f} % of the row"
            cells[i].append(Cell(share, f"{count:,}" if count else "", tip, "hit" if i == j else "other"))
    text = (
        f"Detections with a score of {confusion.score:.2f} or more; each takes the free object that it overlaps "
        f"most, by {confusion.iou:g} or more, whatever its class. Colour: share of the row. Last row: detections "
        "where nothing is annotated; last column: objects that were missed."
    )
    blocks: list[Block] = [Text(text)]
    if len(chosen) < len(names):
        blocks.append(Text(f"The {len(chosen)} most confused of {len(names)} classes are shown."))
    blocks.append(CellGrid("Confusion matrix.", labels, labels, cells, "annotated class", "detected class"))
    table = tables.confusions_table(evaluation)
    return [*blocks, table] if table.rows else blocks


def _most_confused_classes(confusion: Confusion) -> list[int]:
    """Return class ids, in their own order; of many, those with the most confusions with another class."""
    matrix = confusion.matrix[:-1, :-1]
    if len(matrix) <= MOST_CLASSES_CONFUSED:
        return list(range(len(matrix)))
    wrong = matrix.sum(axis=0) + matrix.sum(axis=1) - 2 * matrix.diagonal()
    order = np.lexsort((-confusion.matrix.sum(axis=1)[:-1], -wrong))
    return sorted(order[:MOST_CLASSES_CONFUSED].tolist())


def _overlaps(found: Overlaps | None) -> list[Block]:
    """Return how well boxes fit."""
    if found is None or found.mean == UNDEFINED:
        return [Text("No detection found an object, so no boxes can be compared.")]
    bars = make_bars(found.edges, found.histogram, "IoU {:.3f} to {:.3f}\n{:,} boxes")
    text = f"Boxes that found their object overlap it by {found.mean:.3f} on average."
    chart = Chart("IoU of detections with the objects they found", "IoU", "boxes", bars=bars)
    return [Text(text), Charts([chart])]


def _calibration(found: Calibration | None) -> list[Block]:
    """Return how far scores mean what they say."""
    if found is None or found.ece == UNDEFINED:
        return [Text("There are no scores from 0 to 1 to compare with what came of them.")]
    bars = []
    heights = np.where(found.counts > 0, found.accuracy, 0.0)
    for bar, count, score in zip(
        make_bars(found.edges, heights, "score {:.2f} to {:.2f}"), found.counts, found.confidence, strict=True
    ):
        right = f", mean {score:.3f}\nright: {100 * bar.value:.1f} % of {count:,}" if count else "\nno detections"
        bars.append(dataclasses.replace(bar, tip=bar.tip + right))
    text = (
        "Each bar is the share of detections of about that score that are right (IoU 0.50, duplicates are wrong). "
        "Bars under the broken line: scores promise too much; above: too little. Expected calibration error "
        f"{found.ece:.3f}, largest gap of a bin {found.mce:.3f}; the many detections of low score weigh most in "
        "the first."
    )
    chart = Chart("Right detections by score", "score", "share", bars=bars, diagonal=True, y_range=(0.0, 1.0))
    return [Text(text), Charts([chart])]
