"""Curves of trainings: which metrics share a chart, under which title, and the picture in a run's folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detrkit.errors import UsageError, nearest
from detrkit.files import read_facts
from detrkit.visual.chart import Chart, Line, Series
from detrkit.visual.history import Across, History, read_metrics_log

_WORDS = read_facts(__file__)
_TITLES: Mapping[str, str] = _WORDS["titles"]
_PREFIXES = {"loss_": "Loss", "lr_": "Learning rate of", "grad_norm_": "Gradient norm of"}
_GROUPS = {group: tuple(beginnings) for group, beginnings in _WORDS["groups"].items()}
_SHARED: Mapping[str, Callable[[str], bool]] = {
    "lr": lambda name: name == "lr" or name.startswith("lr_"),
    "grad_norm": lambda name: name == "grad_norm" or name.startswith("grad_norm_"),
    "AP": lambda name: name in ("AP", "AP50", "AP75"),
    "APs": lambda name: name in ("APs", "APm", "APl"),
    "AR1": lambda name: name.startswith("AR"),
}
"""Charts that several metrics of one run share: the first name stands for all that the test accepts."""

_BRIEF = ("AP", "AP50", "AP75")
"""Metrics of the evaluation that a picture of several runs shows."""


def build_charts(
    histories: Sequence[History],
    *,
    metrics: Sequence[str] = (),
    across: Across = "step",
    smooth: float = 0.6,
    brief: bool = False,
) -> list[Chart]:
    """Return what there is to draw of some runs.

    Args:
        histories: runs.
        metrics: names to draw, as in metrics.jsonl; all if none is given.
        across: what runs along the axis.
        smooth: weight of the past in what is measured in every step, 0 to 1; 0 does not smooth.
        brief: of several runs, only the main metrics of the evaluation.

    Raises:
        UsageError: No run has a metric of that name, or not every run knows times.
    """
    without = [history.name for history in histories if history.records and not history.has_times]
    if across == "time" and without:
        raise UsageError(f"no times are recorded in {', '.join(without)}; draw over steps or epochs")
    steps = list(dict.fromkeys(name for history in histories for name in history.metrics("step")))
    evals = list(dict.fromkeys(name for history in histories for name in history.metrics("eval")))
    recorded = [*steps, *evals]
    for name in metrics:
        if name not in recorded and not _layers(name, steps):
            known = ", ".join(metric for metric in recorded if not metric.startswith("layers.")) or "nothing yet"
            raise UsageError(f"no run has a metric {name}; {nearest(name, recorded)} Recorded: {known}")
    if len(histories) > 1:
        shown = [name for name in evals if name in _BRIEF] or evals if brief else evals
        families = _families_of_runs([*steps, *shown], metrics)
    else:
        families = _families_of_one(recorded, metrics)
    charts = [
        _chart(histories, name, members, across, 0.0 if name in evals else smooth, is_eval=name in evals)
        for name, members in families.items()
    ]
    order = list(_GROUPS)
    return sorted((chart for chart in charts if chart.lines), key=lambda chart: order.index(chart.group))


def plot_curves(log: str | Path | Iterable[Mapping[str, Any]], path: str | Path) -> Path:
    """Draw the loss, the learning rate and the AP of a run: the picture in its folder.

    Args:
        log: ``metrics.jsonl`` or its records: ``{"kind": "step", "step", "epoch", "loss", "lr"}`` and
            ``{"kind": "eval", "epoch", "AP", "AP50"}``; other kinds and keys are passed over.
        path: PNG file.

    Raises:
        DataError: The log cannot be read.
    """
    from detrkit.visual.picture import draw_charts

    records = read_metrics_log(log) if isinstance(log, (str, Path)) else list(log)
    run = History("", Path(), {}, records)
    families = _families_of_one([*run.metrics("step"), *run.metrics("eval")], ())
    charts = [
        _chart([run], "loss", families.get("loss", {}), "step", 0.6, is_eval=False),
        _with_best(_chart([run], "AP", families.get("AP", {}), "epoch", 0.0, is_eval=True)),
        _chart([run], "lr", families.get("lr", {}), "step", 0.0, is_eval=False),
    ]
    return draw_charts(charts, path)


def smoothed(series: Series, weight: float) -> Series:
    """Return an exponential mean, without the pull towards zero at its beginning."""
    if not 0 < weight < 1 or len(series) < 3:
        return series
    values, mean, whole = np.empty(len(series)), 0.0, 0.0
    for place, value in enumerate(series.y):
        mean = weight * mean + (1 - weight) * float(value)
        whole = weight * whole + (1 - weight)
        values[place] = mean / whole
    return Series(series.x, values)


def _chart(
    histories: Sequence[History],
    name: str,
    members: Mapping[str, str],
    across: Across,
    smooth: float,
    *,
    is_eval: bool,
) -> Chart:
    """Return one chart: of several runs a line each, of one run a line for each member."""
    several = len(histories) > 1
    lines = [
        _line(history, member, across, smooth, *((history.name, number) if several else (part, place)))
        for number, history in enumerate(histories)
        for place, (part, member) in enumerate(members.items())
    ]
    lines = [line for line in lines if len(line.series)]
    low = min((float(line.series.y.min()) for line in lines), default=0.0)
    high = max((float(line.series.y.max()) for line in lines), default=0.0)
    return Chart(
        _title(name, several or len(members) < 2),
        "hours of training" if across == "time" else across,
        lines=lines,
        log_y=(name == "loss_scale" or name.startswith("lr")) and 0 < low < high / 20,
        legend=len(members) > 1,
        group=_group(name, is_eval),
    )


def _line(history: History, metric: str, across: Across, smooth: float, name: str, number: int) -> Line:
    found = history.series(metric, across)
    series = Series(found.x, 100 * found.y if _is_percent(metric) else found.y)
    soft = smoothed(series, 0.0 if metric.startswith("lr") else smooth)
    return Line(name, number, soft, None if soft is series else series)


def _with_best(chart: Chart) -> Chart:
    """Return the chart with the best value of each line in its name."""
    lines = []
    for line in chart.lines:
        best = int(line.series.y.argmax())
        name = f"{line.name}, best {line.series.y[best]:.1f} in epoch {line.series.x[best]:.0f}"
        lines.append(dataclasses.replace(line, name=name))
    return dataclasses.replace(chart, lines=lines, legend=True)


def _families_of_runs(every: Sequence[str], wanted: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return a chart for each metric; layers are drawn only where they are asked for by name."""
    names = [member for name in wanted for member in ([name] if name in every else _layers(name, every) or [name])]
    return {name: {name: name} for name in names or every if names or not name.startswith("layers.")}


def _families_of_one(every: Sequence[str], wanted: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return charts of what belongs together, each by what its lines are called there."""
    families: dict[str, dict[str, str]] = {}
    for name in wanted or every:
        if name.startswith("layers.") and (not wanted or name not in every):
            head = name if name not in every else name.rpartition(".")[0]
            families[head] = {_part(head, member): member for member in _layers(head, every)}
            continue
        head = next((head for head, accepts in _SHARED.items() if not wanted and accepts(name)), name)
        families.setdefault(head, {})[_part(head, name)] = name
    return families


def _layers(head: str, every: Sequence[str]) -> list[str]:
    """Return the layers of ``layers.class``, and ``layers.class.1`` and so on among other names."""
    return [name for name in every if name.startswith("layers.") and name.startswith(f"{head}.")]


def _part(head: str, member: str) -> str:
    if member.startswith("layers."):
        return f"layer {member.rpartition('.')[2]}"
    if head == member:
        return {"lr": "model", "grad_norm": "all"}.get(head, head)
    return member.removeprefix(f"{head}_")


def _title(name: str, alone: bool) -> str:
    """Return title of a chart; where a name stands for several, that of all of them."""
    if name in _TITLES and not (alone and _is_percent(name)):
        return _TITLES[name]
    if name.startswith("layers."):
        term, _, layer = name.removeprefix("layers.").partition(".")
        return f"Loss {term} of layer {layer}" if layer else f"Loss {term} of each layer"
    for prefix, title in _PREFIXES.items():
        if name.startswith(prefix):
            return f"{title} {name.removeprefix(prefix)}"
    return f"{name}, %" if _is_percent(name) else name.replace("_", " ")


def _group(name: str, is_eval: bool) -> str:
    if is_eval:
        return "Evaluation"
    found = [group for group, prefixes in _GROUPS.items() if prefixes and name.startswith(prefixes)]
    return found[-1] if found else "Outputs of the network"


def _is_percent(metric: str) -> bool:
    """Tell whether a metric is one of COCO's shares, which the field writes in percent."""
    return metric[:2] in ("AP", "AR")
