"""Speeds of detectors as a table for the terminal, and as a page."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from detrkit.detectors.cost import NOT_COUNTED
from detrkit.files import write_json
from detrkit.latency import Latency
from detrkit.profiling.measure import PRECISION_NAMES
from detrkit.profiling.speed import Setting, Speed, SpeedRow, device_of
from detrkit.visual.chart import Chart, Series, make_lines
from detrkit.visual.interactive_charts import Charts
from detrkit.visual.page import Card, Cards, Section, Text, write_page
from detrkit.visual.table import Column, Table, Value, columns
from detrkit.visual.text import shortened

EXPLANATION = (
    "Times are of a whole batch, from pixels in memory to detections; files are not read meanwhile. All rows take "
    "turns, one batch each, so that a machine that slows down hurts all alike. Arithmetic counts a multiplication "
    f"and an addition as two, where papers often count one, and leaves out {NOT_COUNTED}. Memory is what a batch "
    "takes beyond the weights: on the CPU by what the process grows, on CUDA by what torch hands out."
)

_AXES = (
    ("batch_size", "batch size"),
    ("size", "size of the input"),
    ("threads", "threads"),
    ("streams", "streams"),
)


def speed_table(speed: Speed) -> Table:
    """Return the figures of every setting; of one that could not be measured, why."""
    rows: list[list[Value]] = []
    for name, row in zip(row_names(speed.rows), speed.rows, strict=True):
        if row.latency is None or row.cost is None:
            rows.append([name, *[None] * 9, "", "", row.problem])
            continue
        total, cost = row.latency.total, row.cost
        # of what a runtime computes torch counts nothing
        figures = [cost.parameters / 1e6, cost.flops / 1e9] if cost.parameters else [None, None]
        cold = [None, None] if row.cold_start is None else [row.cold_start.seconds, row.cold_start.peak_mb]
        shape = " x ".join(map(str, cost.input_shape))
        times = [total.p50, total.p95, total.p99, row.latency.images_per_s]
        rows.append([name, *times, *figures, cost.peak_bytes / 2**20, *cold, row.runtime, shape, ""])
    heads = [Column("setting", "name"), Column("median, ms", "number", bar=True)]
    heads += columns("number", "p95, ms", "p99, ms") + columns("number", "images/s", digits=2, bar=True)
    heads += columns("number", "parameters, M", "GFLOP") + columns("number", "memory, MiB", digits=0)
    heads += columns("number", "cold start, s", "cold start, MB")
    heads += columns("text", "runs in", "input", *(["problem"] if any(row.problem for row in speed.rows) else []))
    rows = [row[: len(heads)] for row in rows]
    return Table(heads, rows, f"Speed on {machine(speed)}", [f"measured on {speed.images}", *speed.notes])


def speed_lines(speed: Speed) -> list[str]:
    """Return the table for a terminal."""
    left_out: tuple[str, ...] = ("p99, ms", "input")
    table = speed_table(speed)
    if not any(row.cold_start for row in speed.rows):
        left_out += ("cold start, s", "cold start, MB")
    return table.only(*(column.name for column in table.columns if column.name not in left_out)).lines()


def machine(speed: Speed) -> str:
    """Return the machine in a few words."""
    environment = speed.environment
    gpu = f", {environment['gpu']}" if environment["gpu"] else ""
    return f"{environment['cpu']}, {environment['cores']} cores{gpu}, torch {environment['torch']}"


def row_names(rows: Sequence[SpeedRow]) -> list[str]:
    """Return a name for each row: the model, and what differs between rows."""
    told: Sequence[tuple[str, Callable[[Setting], str]]] = (
        ("device", device_of),
        ("precision", lambda setting: PRECISION_NAMES[setting.precision]),
        ("backend", lambda setting: setting.backend),
        ("size", lambda setting: "own size" if setting.size is None else f"size {setting.size}"),
        ("batch_size", lambda setting: f"batch {setting.batch_size}"),
        ("threads", lambda setting: f"{setting.threads} thread{'' if setting.threads == 1 else 's'}"),
        ("streams", lambda setting: f"{setting.streams} stream{'' if setting.streams == 1 else 's'}"),
    )
    settings = [row.setting for row in rows]
    differing = [tell for field, tell in told if len({getattr(setting, field) for setting in settings}) > 1]
    return [", ".join([setting.model, *(tell(setting) for tell in differing)]) for setting in settings]


def write_speed(folder: Path, speed: Speed) -> None:
    """Write ``speed.json`` and ``speed.html``."""
    write_json(folder / "speed.json", speed.to_dict())
    environment = [[name, None if value is None else str(value)] for name, value in speed.environment.items()]
    charts = [chart for field, label in _AXES for chart in _against(speed, field, label)]
    sections = [
        Section("Speed", [_cards(speed), speed_table(speed), Charts(charts)]),
        Section("All figures", [_stages(speed), Text(EXPLANATION)]),
        Section("Machine", [Table(columns("text", "what", "found"), environment, "Machine and versions")]),
    ]
    write_page(folder / "speed.html", "Speed of detectors", f"{machine(speed)}; {speed.images}", sections)


def _cards(speed: Speed) -> Cards:
    measured = _measured(speed)
    cards = [Card("settings", str(len(speed.rows)), f"{len(speed.rows) - len(measured)} could not be measured")]
    if measured:
        name, latency = min(measured, key=lambda entry: entry[1].total.p50)
        cards.append(Card("shortest wait", f"{latency.total.p50:.1f} ms", shortened(name, 60)))
        name, latency = max(measured, key=lambda entry: entry[1].images_per_s)
        cards.append(Card("most images a second", f"{latency.images_per_s:.2f}", shortened(name, 60)))
    if speed.decode is not None:
        cards.append(Card("to read and decode a file", f"{speed.decode.p50:.1f} ms", "median, not in the times"))
    return Cards(cards)


def _measured(speed: Speed) -> list[tuple[str, Latency]]:
    named = zip(row_names(speed.rows), speed.rows, strict=True)
    return [(name, row.latency) for name, row in named if row.latency is not None]


def _against(speed: Speed, field: str, label: str) -> list[Chart]:
    """Return two charts with a setting across, where rows differ in it."""
    known = [row for row in speed.rows if row.latency is not None and getattr(row.setting, field) is not None]
    if len({getattr(row.setting, field) for row in known}) < 2:
        return []
    groups: dict[str, list[SpeedRow]] = {}
    for name, row in zip(row_names(_without(known, field)), known, strict=True):
        groups.setdefault(name, []).append(row)
    waits, rates = {}, {}
    for name, rows in groups.items():
        rows = sorted(rows, key=lambda row: getattr(row.setting, field))
        across = np.array([getattr(row.setting, field) for row in rows], dtype=float)
        latencies = [row.latency for row in rows if row.latency is not None]
        waits[name] = Series(across, np.array([one.total.p50 for one in latencies]))
        rates[name] = Series(across, np.array([one.images_per_s for one in latencies]))
    drawn = {f"Median of a batch against {label}, ms": waits, f"Images a second against {label}": rates}
    return [Chart(title, label, lines=make_lines(lines), legend=True) for title, lines in drawn.items()]


def _without(rows: Sequence[SpeedRow], field: str) -> list[SpeedRow]:
    """Return the rows with one setting made equal, so that their names do not speak of it."""
    first = getattr(rows[0].setting, field)
    return [dataclasses.replace(row, setting=dataclasses.replace(row.setting, **{field: first})) for row in rows]


def _stages(speed: Speed) -> Table:
    stages = ("preprocess", "model", "postprocess", "total")
    times = columns("number", *(f"{stage}, ms" for stage in stages), digits=2)
    heads = [Column("setting", "name"), *times, *columns("count", "batches timed", "warm-up", "threads")]
    rows: list[list[Value]] = [
        [name, *(getattr(one, stage).p50 for stage in stages), one.runs, one.warm_up, one.threads]
        for name, one in _measured(speed)
    ]
    return Table(heads, rows, "Medians by stage")
