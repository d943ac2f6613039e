"""A profile in words, as JSON, and as a page."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detrkit.config import Config
from detrkit.files import write_json
from detrkit.profiling.advice import Advice
from detrkit.profiling.measure import PRECISION_NAMES, Measured
from detrkit.visual.page import Block, Card, Cards, Section, Text, write_page
from detrkit.visual.table import Column, Table, Value, columns

_FIGURES = ("step_s", "images_per_s", "data_wait", "padding", "flops")
_NO_ADVICE = "nothing stands out that a setting would change"


@dataclasses.dataclass(frozen=True)
class Profile:
    """Where the time and memory of a training step go.

    Args:
        config: Config of the training that was watched.
        measured: What was seen.
        advice: What to change, the greatest share first.
        device_name: Device as people call it.
        utilisation: Share of the GPU's peak arithmetic, 0 to 1; None where that is not known.
        folder: Folder of the files.
    """

    config: Config
    measured: Measured
    advice: Sequence[Advice]
    device_name: str
    utilisation: float | None
    folder: Path

    def tables(self) -> tuple[Table, Table]:
        """Return the tables of time, in the order of a step, and of memory."""
        # phases
        phases, memory = self.measured.phases, self.measured.memory
        total = max(sum(phases.values()), 1e-12)
        times = [Column("time"), Column("ms a step", "number", bar=True), Column("share", "percent")]
        spent = [(name, 1000 * seconds, seconds / total) for name, seconds in phases.items()]
        # kinds of memory
        kinds = {
            "parameters": memory.parameters,
            "gradients": memory.gradients,
            "optimiser state": memory.optimizer,
            "averaged weights": memory.ema,
            "activations": memory.kept,
            "temporary and allocator": memory.others,
        }
        sizes = [Column("memory"), Column("MiB", "number", 0, bar=True), Column("share of the peak", "percent")]
        held = [(name, size / 2**20, size / max(memory.peak, 1)) for name, size in kinds.items()]
        note = f"peak: {memory.peak / 2**20:,.0f} MiB, {memory.peak / memory.limit:.1%} of {_gib(memory.limit)}"
        return Table(times, spent), Table(sizes, held, notes=[note])

    def to_dict(self) -> dict[str, Any]:
        """Return all figures; times in seconds, memory in bytes."""
        measured, memory, train = self.measured, self.measured.memory, self.config.train
        return {
            "model": self.config.model.preset,
            "data": self.config.data.root,
            "device": self.device_name,
            **{name: getattr(train, name) for name in ("precision", "batch_size", "accumulate", "recompute")},
            "steps": len(measured.timed),
            **{name: getattr(measured, name) for name in _FIGURES},
            "utilisation": self.utilisation,
            "phases_s": measured.phases,
            "memory": {**dataclasses.asdict(memory), "kept": memory.kept, "others": memory.others},
            "advice": [dataclasses.asdict(item) for item in self.advice],
        }

    def lines(self) -> list[str]:
        """Return two tables and what to change."""
        train, measured = self.config.train, self.measured
        what = f"{self.config.model.preset}, {train.batch_size} images a batch, {PRECISION_NAMES[train.precision]}"
        lines = [
            f"{what}, on {self.device_name}: {_seconds(measured.step_s)} a step, "
            f"{measured.images_per_s:.2f} images/s (median of {len(measured.timed)} steps)"
        ]
        if self.utilisation is not None:
            lines.append(f"{self.utilisation:.0%} of the GPU's peak arithmetic")
        for table in self.tables():
            lines += ["", *table.lines()]
        return [*lines, "", *([f"- {item.sentence}" for item in self.advice] or [_NO_ADVICE])]


def write_profile(profile: Profile) -> None:
    """Write ``profile.json`` and ``profile.html``."""
    write_json(profile.folder / "profile.json", profile.to_dict())
    measured, memory = profile.measured, profile.measured.memory
    subtitle = f"{profile.config.model.preset} on {profile.config.data.root}, {profile.device_name}"
    times, sizes = profile.tables()

    note = "Medians. Each moment counts for the innermost phase; the device is waited for at each border."
    largest = sorted(memory.activations.items(), key=lambda item: -item[1])
    kept = [(name, size / 2**20, size / max(memory.kept, 1)) for name, size in largest]
    heads = [Column("kept for the backward by"), Column("MiB", "number", bar=True), Column("share", "percent")]
    parts = Table(heads, kept, "Activations by part of the model")
    each: list[list[Value]] = [
        [str(number), 1000 * step.seconds, *(1000 * step.phases.get(name, 0.0) for name in measured.phases)]
        for number, step in enumerate(measured.timed, start=1)
    ]
    heads = [Column("step"), *columns("number", *(f"{name}, ms" for name in ("whole", *measured.phases)))]
    steps = Table(heads, each, "Each step, by phase")
    advice: list[Block] = [Text(item.sentence) for item in profile.advice] or [Text(_NO_ADVICE)]
    sections = [
        Section("Step", [_cards(profile)]),
        Section("What to change", advice),
        Section("Time", [Text(note), times]),
        Section("Memory", [sizes, parts]),
        Section("Steps", [steps]),
    ]
    write_page(profile.folder / "profile.html", "Profile of a training step", subtitle, sections)


def _cards(profile: Profile) -> Cards:
    train, measured = profile.config.train, profile.measured
    whole, flops = train.batch_size * train.accumulate, measured.flops
    arithmetic = f"{flops / 1e12:.2f} TFLOP" if flops >= 1e12 else f"{flops / 1e9:.1f} GFLOP"
    cards = [
        Card("a step", _seconds(measured.step_s), f"{whole} images, {PRECISION_NAMES[train.precision]}"),
        Card("images a second", f"{measured.images_per_s:.2f}"),
        Card("waiting for data", f"{measured.data_wait:.1%}"),
        Card("peak memory", _gib(measured.memory.peak), f"of {_gib(measured.memory.limit)}"),
        Card("padding", f"{measured.padding:.1%}", "of the pixels"),
        Card("arithmetic", arithmetic, "forward and backward"),
    ]
    if profile.utilisation is not None:
        cards.append(Card("utilisation", f"{profile.utilisation:.1%}", "of the GPU's peak"))
    return Cards(cards)


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.1f} ms"


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
