"""What was measured: results.json, table.md, commands.txt and curves.png."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.convergence.budget import Budget
from benchmarks.convergence.data_sets import DATA_SETS
from benchmarks.convergence.peers import PEERS
from benchmarks.convergence.recipes import RECIPES
from detrkit.files import atomic_file
from detrkit.visual.chart import COLORS
from detrkit.visual.picture import STYLE, save_figure

Result = Mapping[str, Any]

DASHES = ("-", "--", ":")
QUARTERS = (0.25, 0.5, 0.75)


def write_report(out: Path, results: Sequence[Result], failed: Mapping[str, str] | None = None) -> None:
    """Write all files of a folder anew.

    Args:
        out: The folder.
        results: As the runs wrote them.
        failed: Why runs failed, by their name.
    """
    with atomic_file(out / "results.json") as file:
        json.dump({"runs": list(results), "failed": dict(failed or {})}, file, indent=1)
    with atomic_file(out / "table.md") as file:
        file.write(page(results, failed))
    with atomic_file(out / "commands.txt") as file:
        file.writelines(f"{result['command']}\n" for result in results)
    if results:
        draw_curves(results, out / "curves.png")


def page(results: Sequence[Result], failed: Mapping[str, str] | None = None) -> str:
    """All tables, as Markdown."""
    lines = ["# Learning from random weights", ""]
    lines += [f"- {line}" for line in _machines(results)]
    lines += ["- minutes are of training alone; evaluations, checkpoints and start come on top"]
    for data in _in_order(results, "data", DATA_SETS):
        own = [result for result in results if result["data"] == data]
        lines += ["", f"## {data}: {DATA_SETS[data].summary}", "", *standings(own), ""]
        sooner = epochs_to_reach(own)
        lines += [*sooner, ""] if sooner else []
        lines += [
            "<details><summary>AP against epochs and minutes</summary>",
            "",
            *curve_table(own),
            "",
            "</details>",
        ]
    if failed:
        lines += ["", "## Failed", "", *(f"- {name}: {reason}" for name, reason in failed.items())]
    return "\n".join(lines) + "\n"


def standings(results: Sequence[Result]) -> list[str]:
    """A row for each competitor of a data set; figures are means over seeds, in brackets those of each seed."""
    rows = [
        "| | M parameters | seeds | epochs | AP | AP50 | best AP | AP at ¼, ½, ¾ | minutes | in all | budget |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, own in _by_competitor(results):
        ap = f"**{_mean(own, 'AP'):.3f}**" + (f" ({_each(own, 'AP')})" if len(own) > 1 else "")
        quarters = ", ".join(
            f"{statistics.fmean(_ap_at(result, share) for result in own):.3f}" for share in QUARTERS
        )
        rows.append(
            f"| {name} | {own[0]['parameters'] / 1e6:.2f} | {', '.join(str(result['seed']) for result in own)} "
            f"| {_spread(result['epochs'] for result in own)} | {ap} | {_mean(own, 'AP50'):.3f} "
            f"| {_mean(own, 'best_AP'):.3f} | {quarters} | {_mean(own, 'training_s') / 60:.2f} "
            f"| {_mean(own, 'total_s') / 60:.2f} | {_budget(own)} |"
        )
    return rows


def epochs_to_reach(results: Sequence[Result]) -> list[str]:
    """For pairs of recipes: when the one has the other's final AP, by seed; nothing if there is no pair."""
    rows = []
    for result in results:
        recipe = RECIPES.get(result["competitor"])
        against = recipe.against if recipe is not None else None
        others = [other for other in results if other["competitor"] == against and other["seed"] == result["seed"]]
        for other in others:
            reached = first_reaching(result, other["AP"])
            when = "not reached | |" if other["AP"] > 0 else "nothing to reach | |"
            if reached is not None and other["AP"] > 0:
                share = reached["epoch"] / other["epochs"]
                when = f"epoch {reached['epoch']} of {other['epochs']}: {share:.0%} | {reached['minutes']:.2f} |"
            rows.append(f"| {result['competitor']} | {against}: {other['AP']:.3f} | {result['seed']} | {when}")
    if not rows:
        return []
    return ["| | reaches the final AP of | seed | in | minutes |", "|---|---|---|---|---|", *rows]


def first_reaching(result: Result, ap: float) -> Mapping[str, float] | None:
    """The first evaluation with at least an AP; None if there is none."""
    return next((point for point in result["points"] if point["AP"] >= ap), None)


def curve_table(results: Sequence[Result]) -> list[str]:
    """A row for each evaluation of each run."""
    rows = ["| | seed | epochs | minutes | AP | AP50 |", "|---|---|---|---|---|---|"]
    for name, own in _by_competitor(results):
        for result in own:
            rows += [
                f"| {name} | {result['seed']} | {point['epoch']} | {point['minutes']:.2f} | {point['AP']:.3f} "
                f"| {point['AP50']:.3f} |"
                for point in result["points"]
            ]
    return rows


def draw_curves(results: Sequence[Result], path: Path) -> Path:
    """AP against epochs and against minutes, a row of pictures for each data set.

    Lines are means over seeds, where all of them have been measured; around them is the range of the seeds.
    """
    data_sets = _in_order(results, "data", DATA_SETS)
    names = _in_order(results, "competitor", (*RECIPES, *PEERS))
    with matplotlib.style.context(STYLE, after_reset=True):
        height = 3.6 * len(data_sets) + 0.12 * len(names) + 0.4
        figure = Figure(figsize=(11, height), layout="constrained")
        grid = figure.subplots(len(data_sets), 2, squeeze=False)
        for row, data in zip(grid, data_sets, strict=True):
            own = [result for result in results if result["data"] == data]
            for axes, across in zip(row, ("epoch", "minutes"), strict=True):
                _draw(axes, own, across, names)
                axes.set(title=f"{data}: AP, %", xlabel=across.replace("epoch", "epochs"), ylim=(0, None))
                axes.set_xlim(left=0)
        handles = {
            label: handle
            for axes in grid.flatten()
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        shown = [name for name in names if name in handles]
        figure.legend([handles[name] for name in shown], shown, loc="outside upper left", ncols=4)
        return save_figure(figure, path)


def _draw(axes: Axes, results: Sequence[Result], across: str, names: Sequence[str]) -> None:
    for name, own in _by_competitor(results):
        number = names.index(name)
        color, dashes = COLORS[number % len(COLORS)], DASHES[number // len(COLORS) % len(DASHES)]
        curves = [
            ([point[across] for point in result["points"]], [100 * point["AP"] for point in result["points"]])
            for result in own
        ]
        low, high = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
        places = sorted({place for x, _ in curves for place in x if low <= place <= high})
        values = np.array([np.interp(places, x, y) for x, y in curves])
        axes.plot(places, values.mean(axis=0), color=color, ls=dashes, lw=1.7, marker="o", ms=3, label=name)
        if len(own) > 1:
            axes.fill_between(places, values.min(axis=0), values.max(axis=0), color=color, alpha=0.15, lw=0)


def _by_competitor(results: Sequence[Result]) -> list[tuple[str, list[Result]]]:
    names = _in_order(results, "competitor", (*RECIPES, *PEERS))
    by_seed = sorted(results, key=lambda result: int(result["seed"]))
    return [(name, [result for result in by_seed if result["competitor"] == name]) for name in names]


def _in_order(results: Sequence[Result], key: str, order: Iterable[str]) -> list[str]:
    """Names that occur, those of the tables first and in their order."""
    found = dict.fromkeys(result[key] for result in results)
    known = [name for name in order if name in found]
    return [*known, *(name for name in found if name not in known)]


def _machines(results: Sequence[Result]) -> list[str]:
    """What the runs were made on; more than one line for each fact where it was not always the same."""
    shown = (
        (name, value)
        for result in results
        for name, value in result["machine"].items()
        if name != "threads"  # those of the processor
    )
    return list(dict.fromkeys(f"{name}: {value}" for name, value in shown))


def _ap_at(result: Result, share: float) -> float:
    """AP after a share of a run's epochs, between two evaluations in between; it begins at 0."""
    epochs, values = ([0.0, *(point[key] for point in result["points"])] for key in ("epoch", "AP"))
    return float(np.interp(share * result["epochs"], epochs, values))


def _budget(results: Sequence[Result]) -> str:
    """The budget, and by how much it was exceeded."""
    budget = Budget(**results[0]["asked"]["budget"])
    if budget.minutes is None:
        return str(budget)
    over = max(result["training_s"] / 60 / budget.minutes for result in results) - 1
    return str(budget) + (f", **{over:.1%} over**" if over > 0 else "")


def _mean(results: Sequence[Result], key: str) -> float:
    return statistics.fmean(result[key] for result in results)


def _each(results: Sequence[Result], key: str) -> str:
    return ", ".join(f"{result[key]:.3f}" for result in results)


def _spread(values: Iterable[int]) -> str:
    ordered = sorted(set(values))
    return str(ordered[0]) if len(ordered) == 1 else f"{ordered[0]} to {ordered[-1]}"
