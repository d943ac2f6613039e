"""A profile in words, as JSON, and as a page."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detrkit.config import Config
from detrkit.files import atomic_file
from detrkit.profiling.advice import Advice
from detrkit.profiling.measure import Measured
from detrkit.visual.page import Block, Card, Cards, Section, Text, write_page
from detrkit.visual.table import Column, Table, Value


@dataclasses.dataclass(frozen=True)
class Profile:
    """Where the time and memory of a training step go.

    Args:
        config: Of the training that was watched.
        measured: What was seen.
        advice: What to change, the greatest share first.
        device_name: As people call it.
        utilisation: Share of the GPU's peak arithmetic, 0 to 1; None where that is not known.
        folder: Where the files lie.
    """

    config: Config
    measured: Measured
    advice: Sequence[Advice]
    device_name: str
    utilisation: float | None
    folder: Path

    def time_rows(self) -> list[tuple[str, float, float]]:
        """Phase, median seconds, share; in the order of a step."""
        phases = self.measured.phases
        total = max(sum(phases.values()), 1e-12)
        return [(name, seconds, seconds / total) for name, seconds in phases.items()]

    def memory_rows(self) -> list[tuple[str, int, float]]:
        """Kind of memory, bytes, share of the peak."""
        memory = self.measured.memory
        kinds = {
            "parameters": memory.parameters,
            "gradients": memory.gradients,
            "optimiser state": memory.optimizer,
            "averaged weights": memory.ema,
            "activations": memory.kept,
            "temporary and allocator": memory.others,
        }
        return [(name, size, size / max(memory.peak, 1)) for name, size in kinds.items()]

    def to_dict(self) -> dict[str, Any]:
        """All figures; times in seconds, memory in bytes."""
        measured, memory = self.measured, self.measured.memory
        return {
            "model": self.config.model.preset,
            "data": self.config.data.root,
            "device": self.device_name,
            "precision": self.config.train.precision,
            "batch_size": self.config.train.batch_size,
            "accumulate": self.config.train.accumulate,
            "recompute": self.config.train.recompute,
            "steps": len(measured.timed),
            "step_s": measured.step_s,
            "images_per_s": measured.images_per_s,
            "data_wait": measured.data_wait,
            "padding": measured.padding,
            "flops": measured.flops,
            "utilisation": self.utilisation,
            "phases_s": {name: seconds for name, seconds, _ in self.time_rows()},
            "memory": {
                **{field.name: getattr(memory, field.name) for field in dataclasses.fields(memory)},
                "kept": memory.kept,
                "others": memory.others,
            },
            "advice": [dataclasses.asdict(item) for item in self.advice],
        }

    def lines(self) -> list[str]:
        """Two tables and what to change."""
        train, measured = self.config.train, self.measured
        what = f"{self.config.model.preset}, {train.batch_size} images a batch, {_precision(train.precision)}"
        head = f"{what}, on {self.device_name}: {_seconds(measured.step_s)} a step"
        lines = [f"{head}, {measured.images_per_s:.2f} images/s (median of {len(measured.timed)} steps)"]
        if self.utilisation is not None:
            lines.append(f"{self.utilisation:.0%} of the GPU's peak arithmetic")
        lines += ["", f"{'time':44} {'a step':>10} {'share':>7}"]
        lines += [f"{name:44} {_seconds(seconds):>10} {share:>7.1%}" for name, seconds, share in self.time_rows()]
        lines += ["", f"{'memory':44} {'MiB':>10} {'share':>7}"]
        for name, size, share in self.memory_rows():
            lines.append(f"{name:44} {size / 2**20:>10,.0f} {share:>7.1%}")
        peak = measured.memory.peak
        of_all = peak / measured.memory.limit
        lines += [f"{'peak':44} {peak / 2**20:>10,.0f}   ({of_all:.1%} of {_gib(measured.memory.limit)})", ""]
        lines += [f"- {item.sentence}" for item in self.advice] or [
            "nothing stands out that a setting would change"
        ]
        return lines


def write_profile(profile: Profile) -> None:
    """Write ``profile.json`` and ``profile.html``."""
    with atomic_file(profile.folder / "profile.json") as file:
        file.write(json.dumps(profile.to_dict(), indent=1) + "\n")
    config, measured = profile.config, profile.measured
    subtitle = f"{config.model.preset} on {config.data.root}, {profile.device_name}"
    advice: list[Block] = [Text(item.sentence) for item in profile.advice]
    sections = [
        Section("Step", [_cards(profile)]),
        Section("What to change", advice or [Text("Nothing stands out that a setting would change.")]),
        Section("Time", _time_blocks(profile)),
        Section("Memory", _memory_blocks(profile)),
        Section("Steps", [_steps_table(measured)]),
    ]
    write_page(profile.folder / "profile.html", "Profile of a training step", subtitle, sections)


def _cards(profile: Profile) -> Cards:
    config, measured = profile.config, profile.measured
    train = config.train
    whole = train.batch_size * train.accumulate
    cards = [
        Card("a step", _seconds(measured.step_s), f"{whole} images, {_precision(train.precision)}"),
        Card("images a second", f"{measured.images_per_s:.2f}"),
        Card("waiting for data", f"{measured.data_wait:.1%}"),
        Card("peak memory", _gib(measured.memory.peak), f"of {_gib(measured.memory.limit)}"),
        Card("padding", f"{measured.padding:.1%}", "of the pixels"),
        Card("arithmetic", _flops(measured.flops), "forward and backward"),
    ]
    if profile.utilisation is not None:
        cards.append(Card("utilisation", f"{profile.utilisation:.1%}", "of the GPU's peak"))
    return Cards(cards)


def _time_blocks(profile: Profile) -> list[Block]:
    columns = [Column("phase"), Column("ms a step", "number", bar=True), Column("share", "percent")]
    rows: list[list[Value]] = [[name, 1000 * seconds, share] for name, seconds, share in profile.time_rows()]
    note = "Medians. Each moment counts for the innermost phase; the device is waited for at each border."
    return [Text(note), Table(columns, rows, "Time of a step by phase")]


def _memory_blocks(profile: Profile) -> list[Block]:
    memory = profile.measured.memory
    columns = [Column("kind"), Column("MiB", "number", bar=True), Column("share of the peak", "percent")]
    rows: list[list[Value]] = [[name, size / 2**20, share] for name, size, share in profile.memory_rows()]
    kept: list[list[Value]] = [
        [name, size / 2**20, size / max(memory.kept, 1)] for name, size in _largest_first(memory.activations)
    ]
    parts = [Column("kept for the backward by"), Column("MiB", "number", bar=True), Column("share", "percent")]
    return [
        Table(columns, rows, "Memory at the peak"),
        Table(parts, kept, "Activations by part of the model"),
    ]


def _steps_table(measured: Measured) -> Table:
    names = list(measured.phases)
    columns = [Column("step"), *(Column(f"{name}, ms", "number") for name in ("whole", *names))]
    rows: list[list[Value]] = [
        [str(number), 1000 * step.seconds, *(1000 * step.phases.get(name, 0.0) for name in names)]
        for number, step in enumerate(measured.timed, start=1)
    ]
    return Table(columns, rows, "Each step, by phase")


def _largest_first(sizes: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(sizes.items(), key=lambda item: -item[1])


def _precision(name: str) -> str:
    return {"32": "float32", "16": "float16", "bf16": "bf16"}[name]


def _flops(count: int) -> str:
    return f"{count / 1e12:.2f} TFLOP" if count >= 1e12 else f"{count / 1e9:.1f} GFLOP"


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.1f} ms"


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
