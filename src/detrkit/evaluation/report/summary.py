"""``summary.md``: an evaluation in a screen of Markdown, for a pull request."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from detrkit.errors import counted
from detrkit.evaluation.coco import UNDEFINED
from detrkit.evaluation.report.masks import mask_tables
from detrkit.evaluation.report.tables import class_table, errors_table, metrics_table
from detrkit.evaluation.report.terms import percent, range_of
from detrkit.evaluation.report.verdict import verdict, warnings
from detrkit.files import atomic_file
from detrkit.visual.table import Table
from detrkit.visual.text import markdown_name

if TYPE_CHECKING:
    from detrkit.evaluation.analysis import Evaluation

CLASSES_SHOWN = 10
"""Half of them the best, half the worst."""


def summarize(evaluation: Evaluation, report: str = "report.html") -> str:
    """Return the summary.

    Args:
        evaluation: result.
        report: path of the whole report, relative to the summary.
    """
    origin, metrics = evaluation.origin, evaluation.metrics
    known = None if evaluation.intervals is None else evaluation.intervals.values.get("AP")
    what = " on ".join(markdown_name(name) for name in (origin.model, origin.data) if name)
    counts = ((metrics.images, "image"), (metrics.objects, "object"), (metrics.detections, "detection"))
    lines = [
        f"## AP {percent(evaluation['AP'])}" + (f" ({range_of(known)})" if known is not None else ""),
        "",
        f"{what + ', ' if what else ''}{', '.join(counted(*entry) for entry in counts)}.",
        "",
        *(f"> **Note:** {line}\n" for line in warnings(evaluation, markdown_name)),
        *(f"- {line}" for line in verdict(evaluation, markdown_name)),
        "",
        *(table.markdown() for table in _tables(evaluation)),
    ]
    if evaluation.latency is not None:
        total = evaluation.latency.total
        lines += [
            f"Latency on {evaluation.latency.device}: {total.p50:.1f} ms median, {total.p95:.1f} ms 95 %.",
            "",
        ]
    versions = f"detrkit {evaluation.provenance['detrkit']}, hotcoco {evaluation.provenance['hotcoco']}"
    lines.append(f"Full report: [{report}]({report}). {versions}, {evaluation.provenance['created']}.")
    return "\n".join(lines) + "\n"


def write_summary(path: str | Path, evaluation: Evaluation) -> Path:
    """Write :func:`summarize` to a file."""
    with atomic_file(Path(path)) as file:
        file.write(summarize(evaluation))
    return Path(path)


def _tables(evaluation: Evaluation) -> list[Table]:
    """Return the twelve numbers; the best and the worst classes; the errors."""
    tables = [metrics_table(evaluation.metrics, evaluation.intervals), *mask_tables(evaluation)]
    classes = class_table(evaluation).only("class", "AP", "objects", "from", "to", "AP50", "mask AP", "PQ")
    ap = [column.name for column in classes.columns].index("AP")
    rows = [row for row in classes.rows if row[ap] is not None]
    if rows:
        tables.append(dataclasses.replace(classes, rows=rows).ends(CLASSES_SHOWN))
    if evaluation.errors is not None and evaluation.errors.ap50 != UNDEFINED:
        tables.append(errors_table(evaluation.errors, evaluation.score))
    return tables
