"""The curves of one or several runs in one file: a picture, or a page that answers to the pointer."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detrkit.errors import DataError, UsageError
from detrkit.files import to_plain
from detrkit.visual.chart import Chart
from detrkit.visual.curves import build_charts
from detrkit.visual.history import Across, History, differences, read_histories
from detrkit.visual.interactive_charts import Charts, Legend
from detrkit.visual.page import Block, Card, Cards, Section, Text, write_page
from detrkit.visual.table import Column, Table, columns
from detrkit.visual.text import shortened

_MOST_NAMED = 3
"""Differences that a legend names beside a run."""


@dataclasses.dataclass(frozen=True)
class RunSummary:
    """How far a run has come.

    Args:
        name: name in the plot.
        folder: run folder.
        steps: step of the last line of its log.
        epochs: epochs completed.
        loss: last value; None before the first line.
        best_ap: highest AP, 0 to 1; None before the first evaluation.
        best_epoch: epoch of the highest AP.
        metrics: names of all that is recorded.
    """

    name: str
    folder: str
    steps: int
    epochs: int
    loss: float | None
    best_ap: float | None
    best_epoch: int | None
    metrics: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Overview:
    """A file of curves and what is in it.

    Args:
        path: file.
        runs: one for each run, in the given order.
        differences: config keys in which the runs differ, with the value of each run.
    """

    path: Path
    runs: tuple[RunSummary, ...]
    differences: Mapping[str, Sequence[str]]

    def to_dict(self) -> dict[str, Any]:
        """Return it ready for JSON."""
        found: dict[str, Any] = to_plain(self)
        return found


def plot_runs(
    folders: Sequence[str | Path],
    out: str | Path,
    *,
    metrics: Sequence[str] = (),
    across: Across = "step",
    smooth: float = 0.6,
) -> Overview:
    """Draw the curves of runs, finished or not.

    Args:
        folders: run folders.
        out: a ``.png`` or ``.html`` file.
        metrics: names as in metrics.jsonl; all if none is given.
        across: over steps, epochs or hours of training.
        smooth: weight of the past in what is measured at every step, 0 to 1.

    Raises:
        UsageError: A folder is no run, no run has a metric of that name, or the file is of another kind.
        DataError: A log cannot be read, or no run has recorded anything yet.
    """
    out = Path(out)
    if out.suffix.lower() not in (".png", ".html"):
        raise UsageError(f"{out} cannot be written: expected a file that ends in .png or .html")
    histories = read_histories(folders)
    is_picture = out.suffix.lower() == ".png"
    charts = build_charts(histories, metrics=metrics, across=across, smooth=smooth, brief=is_picture)
    if not charts:
        raise DataError(f"nothing is recorded yet in {', '.join(str(history.folder) for history in histories)}")
    found = differences(histories)
    runs = tuple(map(_summary, histories))
    if is_picture:
        from detrkit.visual.picture import draw_charts

        legend = _legend(histories, found) if len(histories) > 1 else None
        draw_charts(charts, out, title=histories[0].name, legend=legend)
    else:
        _write_page(out, charts, runs, found)
    return Overview(out, runs, found)


def _summary(history: History) -> RunSummary:
    loss, ap = history.series("loss"), history.series("AP")
    ends = [int(record["epoch"]) for record in history.records if record.get("kind") == "epoch"]
    steps = [int(record["step"]) for record in history.records if isinstance(record.get("step"), int)]
    best = int(ap.y.argmax()) if len(ap) else None
    epochs = history.series("AP", "epoch").x
    return RunSummary(
        name=history.name,
        folder=str(history.folder),
        steps=max(steps, default=0),
        epochs=max(ends, default=0),
        loss=float(loss.y[-1]) if len(loss) else None,
        best_ap=None if best is None else float(ap.y[best]),
        best_epoch=None if best is None else round(float(epochs[best])),
        metrics=(*history.metrics("step"), *history.metrics("eval")),
    )


def _legend(histories: Sequence[History], found: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return what a legend says of each run: its name, and the first few differences."""
    telling = [key for key in found if not key.startswith("data.")][:_MOST_NAMED]
    legend = {}
    for number, history in enumerate(histories):
        parts = [f"{key.rpartition('.')[2]} {shortened(found[key][number], 20)}" for key in telling]
        legend[history.name] = f"{history.name}   {', '.join(parts)}" if parts else history.name
    return legend


def _write_page(
    out: Path, charts: Sequence[Chart], runs: Sequence[RunSummary], found: Mapping[str, Sequence[str]]
) -> None:
    several = len(runs) > 1
    sections = [Section("Runs", _several(runs, found)) if several else Section("Run", [_one(runs[0])])]
    legend: list[Block] = [Legend([run.name for run in runs])] if several else []
    for title, members in itertools.groupby(charts, key=lambda chart: chart.group):
        sections.append(Section(title, [*legend, Charts(list(members))]))
    name = ", ".join(run.name for run in runs) if len(runs) < 4 else f"{len(runs)} runs"
    folders = ", ".join(run.folder for run in runs[:4]) + (", ..." if len(runs) > 4 else "")
    write_page(out, f"Training of {name}", folders, sections)


def _one(run: RunSummary) -> Block:
    """Return a run in numbers."""
    cards = [Card("steps", f"{run.steps:,}"), Card("epochs done", f"{run.epochs:,}")]
    if run.loss is not None:
        cards.append(Card("loss", f"{run.loss:.4g}", "last line"))
    if run.best_ap is not None:
        cards.append(Card("best AP", f"{100 * run.best_ap:.1f}", f"epoch {run.best_epoch}"))
    return Cards(cards)


def _several(runs: Sequence[RunSummary], found: Mapping[str, Sequence[str]]) -> list[Block]:
    """Return runs in numbers, and what differs between them."""
    heads = [Column("run", "name"), *columns("count", "steps", "epochs"), Column("loss", "number", 3)]
    heads += [Column("best AP", "percent", bar=True), Column("in epoch", "count")]
    rows = [(run.name, run.steps, run.epochs, run.loss, run.best_ap, run.best_epoch) for run in runs]
    table = Table(heads, rows, "How far the runs have come")
    if not found:
        return [table, Text("Their configs do not differ.")]
    heads = columns("text", "config", *(run.name for run in runs))
    return [table, Table(heads, [(key, *values) for key, values in found.items()], "What differs between them")]
