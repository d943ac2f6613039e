"""``summary.md``: an evaluation in a screen of Markdown, for a pull request."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from detrkit.errors import counted
from detrkit.evaluation.coco import METRIC_NAMES, UNDEFINED
from detrkit.evaluation.report.terms import ERROR_NAMES, label_of, percent, range_of
from detrkit.evaluation.report.verdict import verdict, warnings
from detrkit.files import atomic_file
from detrkit.visual.text import markdown_name

if TYPE_CHECKING:
    from detrkit.evaluation.analysis import Evaluation

CLASSES_SHOWN = 5
"""Best, and as many worst."""


def summarize(evaluation: Evaluation, report: str = "report.html") -> str:
    """The summary.

    Args:
        evaluation: The result.
        report: Where the whole report lies, relative to the summary.
    """
    origin, metrics = evaluation.origin, evaluation.metrics
    what = " on ".join(markdown_name(name) for name in (origin.model, origin.data) if name)
    lines = [
        f"## {_headline(evaluation)}",
        "",
        f"{what + ', ' if what else ''}{counted(metrics.images, 'image')}, {counted(metrics.objects, 'object')}, "
        f"{counted(metrics.detections, 'detection')}.",
        "",
        *(f"> **Note:** {line}\n" for line in warnings(evaluation, markdown_name)),
        *(f"- {line}" for line in verdict(evaluation, markdown_name)),
        "",
        *_table(["", *(label_of(name, metrics) for name in METRIC_NAMES)], _numbers(evaluation)),
        *_classes(evaluation),
        *_errors(evaluation),
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


def _headline(evaluation: Evaluation) -> str:
    known = None if evaluation.intervals is None else evaluation.intervals.values.get("AP")
    return f"AP {percent(evaluation['AP'])}" + (f" ({range_of(known)})" if known is not None else "")


def _numbers(evaluation: Evaluation) -> list[list[str]]:
    rows = [["%", *(percent(evaluation[name]) for name in METRIC_NAMES)]]
    if evaluation.intervals is not None:
        known = evaluation.intervals.values
        head = f"{100 * evaluation.intervals.confidence:g} % interval"
        rows.append([head, *(range_of(known[name]) if name in known else "" for name in METRIC_NAMES)])
    return rows


def _classes(evaluation: Evaluation) -> list[str]:
    """The best and the worst classes."""
    order = [i for i, entry in enumerate(evaluation.per_class) if entry.AP != UNDEFINED]
    order.sort(key=lambda i: -evaluation.per_class[i].AP)
    if len(order) > 2 * CLASSES_SHOWN:
        title = f"The {CLASSES_SHOWN} best and the {CLASSES_SHOWN} worst of {len(order)} classes:"
        order = order[:CLASSES_SHOWN] + order[-CLASSES_SHOWN:]
    else:
        title = "Classes:"
    if not order:
        return []
    rows = []
    for class_id in order:
        entry = evaluation.per_class[class_id]
        intervals = None if evaluation.intervals is None else evaluation.intervals.per_class[class_id]
        sure = "" if intervals is None or "AP" not in intervals else range_of(intervals["AP"])
        rows.append(
            [markdown_name(entry.name), f"{entry.objects:,}", percent(entry.AP), sure, percent(entry.AP50)]
        )
    return [title, "", *_table(["class", "objects", "AP", "interval", "AP50"], rows)]


def _errors(evaluation: Evaluation) -> list[str]:
    errors = evaluation.errors
    if errors is None or errors.ap50 == UNDEFINED:
        return []
    counts = errors.counts_above(evaluation.score)
    rows = [
        [name, f"{100 * errors.cost[name]:.1f}", f"{counts[name]:,}", meaning]
        for name, meaning in sorted(ERROR_NAMES.items(), key=lambda item: -errors.cost[item[0]])
    ]
    head = ["kind of error", "costs AP50", f"count at score {evaluation.score:.2f}", "what it is"]
    return ["Errors, dearest first:", "", *_table(head, rows)]


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    last_is_text = any(len(row[-1].split()) > 3 for row in rows)
    text = {0, len(head) - 1} if last_is_text else {0}
    ruled = [head, ["---" if place in text else "---:" for place in range(len(head))], *rows]
    return [*(f"| {' | '.join(row)} |" for row in ruled), ""]
