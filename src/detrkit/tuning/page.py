"""A study as a page and a picture: what mattered, how each parameter did, how trials went."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from detrkit.files import atomic_bytes
from detrkit.tuning.results import StudyResult, TrialResult
from detrkit.tuning.settings import Settings
from detrkit.tuning.work import shown_value
from detrkit.visual.page import Block, Card, Cards, Section, Text, write_page
from detrkit.visual.plots import COLORS, Plot, Plots, bars, svg_plot
from detrkit.visual.table import Column, Table

if TYPE_CHECKING:
    import optuna

Draw = Callable[[Axes], None]

FEW_TRIALS = 12
"""Below, importances and slopes are mostly chance."""
_GREY = "#868e96"
_BEST_CURVES = 3
_SIDEWAYS = (0, 1, -1, 2, -2, 3, -3, 4, -4)


@dataclasses.dataclass(frozen=True)
class _Drawing:
    title: str
    draw: Draw
    height: float = 3.2


def write_study_page(path: Path, study: optuna.Study, settings: Settings, result: StudyResult) -> Path:
    """Write the page, and a picture of its main plots beside it."""
    config, trials = settings.config, result.trials
    drawings = [_history(trials), _curves(result)]
    sections = [Section("Result", _summary(result))]
    if len(result.ranked) > 1:
        sections.append(Section("How the search went", [Plots([_plot(drawing) for drawing in drawings])]))
        sections.append(Section("What mattered", _importance_blocks(study, result)))
        slices = [_plot(_slice(part.name, part.log, trials)) for part in settings.space.dimensions]
        note = Text(
            "Each point is a complete trial (dark: later) or a pruned one (grey ring); the star is the best."
        )
        sections.append(Section("Each parameter", [note, Plots(slices)]))
        _write_picture(path.with_suffix(".png"), drawings)
    sections.append(Section("All trials", [_table(trials)]))
    subtitle = f"{config.model.preset} on {config.data.root or config.data.train_annotations}"
    return write_page(path, "Search for settings", subtitle, sections)


def importances(study: optuna.Study) -> dict[str, dict[str, float]]:
    """Share of each parameter in how much the AP differs, by method; empty where there is nothing to compare.

    fANOVA (Hutter et al., ICML 2014) fits a random forest and needs some trials; PED-ANOVA (Watanabe et al.,
    arXiv:2304.10255) compares where the better trials lie with where all do.
    """
    import optuna

    complete = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
    values = [trial.value for trial in complete if trial.value is not None]
    if len(values) < 4 or max(values) - min(values) < 1e-9:
        return {}
    methods = {
        "fANOVA": optuna.importance.FanovaImportanceEvaluator(seed=0),
        "PED-ANOVA": optuna.importance.PedAnovaImportanceEvaluator(),
    }
    found = {}
    for name, evaluator in methods.items():
        shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
        found[name] = {key: float(share) for key, share in shares.items() if math.isfinite(share)}
    return found


def _summary(result: StudyResult) -> list[Block]:
    best = result.best
    states = [trial.state for trial in result.trials]
    finished = sum(state in ("complete", "pruned", "fail") for state in states)
    hours = sum(trial.seconds for trial in result.trials) / 3600
    cards = [
        Card(
            "Trials",
            f"{finished} of {result.total}",
            f"{states.count('pruned')} pruned, {states.count('fail')} failed",
        ),
        Card(
            "Training time", f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min", "of all trials together"
        ),
    ]
    if best is None:
        return [Cards(cards), Text("No trial is complete yet.", "warning")]
    cards.insert(0, Card("Best AP", f"{best.best_ap:.3f}", f"trial {best.number}"))
    first = next((trial for trial in result.ranked if trial.number == 0), None)
    if first is not None and first.best_ap is not None and best.best_ap is not None:
        gain = best.best_ap - first.best_ap
        cards.insert(1, Card("Config's own values", f"{first.best_ap:.3f}", f"the best has {gain:+.3f}"))
    values = [[name, shown_value(value)] for name, value in best.parameters.items()]
    return [
        Cards(cards),
        Table([Column("parameter"), Column("value")], values, f"Parameters of trial {best.number}"),
        Text(
            "The best of many noisy trials looks better than it is. Train it and the config's own values again "
            "with other seeds (train.seed) before you believe a small gain."
        ),
    ]


def _importance_blocks(study: optuna.Study, result: StudyResult) -> list[Block]:
    found = importances(study)
    if not found:
        return [Text("Too few complete trials, or all alike: nothing can be said of single parameters.")]
    blocks: list[Block] = []
    count = len(result.ranked)
    if count < FEW_TRIALS:
        blocks.append(Text(f"Only {count} complete trials: this ranking is mostly chance.", "warning"))
    plots = [
        bars(f"Importance by {name}", shares, "share of the variation of AP") for name, shares in found.items()
    ]
    return [*blocks, Plots(plots)]


def _history(trials: Sequence[TrialResult]) -> _Drawing:
    def draw(axes: Axes) -> None:
        for state, marker, color in (("complete", "o", COLORS[0]), ("pruned", "o", _GREY)):
            points = [trial for trial in trials if trial.state == state and trial.best_ap is not None]
            axes.plot(
                [trial.number for trial in points],
                [trial.best_ap or 0.0 for trial in points],
                marker,
                ms=5,
                color=color,
                mfc=color if state == "complete" else "none",
                label=state,
            )
        complete = [trial for trial in trials if trial.state == "complete"]
        best = np.maximum.accumulate([trial.best_ap or 0.0 for trial in complete])
        axes.step([trial.number for trial in complete], best, where="post", color=COLORS[1], label="best so far")
        _whole_numbers(axes)
        axes.set_xlabel("trial")
        axes.set_ylabel("best AP")
        axes.legend(fontsize=8)

    return _Drawing("AP of each trial", draw)


def _curves(result: StudyResult) -> _Drawing:
    best = {trial.number: place for place, trial in enumerate(result.ranked[:_BEST_CURVES])}

    def draw(axes: Axes) -> None:
        for trial in sorted(result.trials, key=lambda trial: trial.number in best):
            if not trial.curve:
                continue
            style: dict[str, Any] = {"color": _GREY, "lw": 1, "alpha": 0.6}
            if trial.number in best:
                style = {"color": COLORS[best[trial.number]], "lw": 1.8, "label": f"trial {trial.number}"}
            ends = "x" if trial.state == "pruned" else "."
            epochs = list(trial.curve)
            axes.plot(epochs, list(trial.curve.values()), marker=ends, markevery=[len(epochs) - 1], ms=5, **style)
        _whole_numbers(axes)
        axes.set_xlabel("epoch (x: pruned)")
        axes.set_ylabel("AP")
        if best:
            axes.legend(fontsize=8)

    return _Drawing("AP by epoch", draw)


def _slice(name: str, log: bool, trials: Sequence[TrialResult]) -> _Drawing:
    points = [trial for trial in trials if trial.best_ap is not None and name in trial.parameters]
    values = [trial.parameters[name] for trial in points]
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    complete = [trial for trial in points if trial.state == "complete"]
    best = max(complete, key=lambda trial: (trial.best_ap or 0.0, -trial.number), default=None)

    def draw(axes: Axes) -> None:
        if numeric:
            places = {trial.number: float(trial.parameters[name]) for trial in points}
        else:
            labels = sorted({shown_value(value) for value in values})
            places = _spread(points, name, labels)
            axes.set_xticks(range(len(labels)), labels)
            axes.set_xlim(-0.5, len(labels) - 0.5)
        for trial in points:
            if trial.state == "complete":
                shade = 0.35 + 0.65 * (trial.number + 1) / len(trials)
                look: dict[str, Any] = {"color": COLORS[0], "alpha": shade}
            else:
                look = {"color": _GREY, "mfc": "none"}
            mark = (
                {"marker": "*", "ms": 13, "color": COLORS[1]}
                if trial is best
                else {"marker": "o", "ms": 5, **look}
            )
            axes.plot([places[trial.number]], [trial.best_ap or 0.0], ls="", **mark)
        if log and numeric:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _place: f"{value:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_ylabel("best AP")

    return _Drawing(name, draw, 2.6)


def _spread(points: Sequence[TrialResult], name: str, labels: Sequence[str]) -> dict[int, float]:
    """Points of the same choice side by side."""
    seen: dict[str, int] = {}
    places = {}
    for trial in points:
        label = shown_value(trial.parameters[name])
        seen[label] = seen.get(label, -1) + 1
        places[trial.number] = labels.index(label) + 0.05 * _SIDEWAYS[seen[label] % len(_SIDEWAYS)]
    return places


def _table(trials: Sequence[TrialResult]) -> Table:
    names = list(dict.fromkeys(name for trial in trials for name in trial.parameters))
    columns = [Column("trial", "count"), Column("state"), Column("best AP", "number", 3, bar=True)]
    columns += [Column("epochs", "count"), Column("seconds", "count"), *(_column(name, trials) for name in names)]
    failed = any(trial.reason for trial in trials)
    rows = [
        [
            trial.number,
            trial.state,
            trial.best_ap,
            trial.epochs,
            trial.seconds,
            *(_cell(trial.parameters, name) for name in names),
            *([trial.reason or ""] if failed else []),
        ]
        for trial in trials
    ]
    return Table([*columns, *([Column("reason")] if failed else [])], rows, "All trials; a click on a head sorts")


def _column(name: str, trials: Sequence[TrialResult]) -> Column:
    """Of a parameter, by the last part of its key; numbers with as many decimals as the least needs."""
    values = [trial.parameters[name] for trial in trials if name in trial.parameters]
    head = "/".join(key.rpartition(".")[2] for key in name.split("/"))
    if not values or not all(isinstance(value, float) for value in values):
        return Column(head)
    least = min((abs(value) for value in values if value), default=1.0)
    return Column(head, "number", min(8, max(2, 2 - math.floor(math.log10(least)))))


def _cell(parameters: Mapping[str, Any], name: str) -> float | str | None:
    if name not in parameters:
        return None
    value = parameters[name]
    return value if isinstance(value, float) else shown_value(value)


def _plot(drawing: _Drawing) -> Plot:
    return svg_plot(drawing.title, drawing.draw, height=drawing.height)


def _whole_numbers(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _write_picture(path: Path, drawings: Sequence[_Drawing]) -> None:
    """The main plots side by side as a PNG, for a chat or a paper."""
    figure = Figure(figsize=(5.6 * len(drawings), 3.6), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    for number, drawing in enumerate(drawings, start=1):
        axes = figure.add_subplot(1, len(drawings), number)
        axes.set_title(drawing.title, loc="left", fontsize=10)
        drawing.draw(axes)
        axes.grid(alpha=0.2)
    with atomic_bytes(path) as file:
        canvas.print_figure(file, format="png", dpi=120)
