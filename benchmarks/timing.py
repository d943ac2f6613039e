"""Timing of several competitors in turn, so that drift of the machine hits all alike."""

from __future__ import annotations

import dataclasses
import gc
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

import torch


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a table: a competitor's median seconds, and how many times faster than the first it is."""

    name: str
    median_s: float
    least_s: float
    greatest_s: float
    ratio: float
    memory_gib: float | None = None


def time_in_turn(
    competitors: Mapping[str, Callable[[], object]],
    repeats: int,
    device: torch.device | None = None,
    inner: int = 1,
    pause_s: float = 0.0,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Row]:
    """Run every competitor once to warm up, then all in turn ``repeats`` times.

    Args:
        competitors: Name to work; the first is the peer that the others' ratios are against.
        repeats: Counted runs of each.
        inner: Times the work is done in one counted run, for work of milliseconds; times are of one.
        device: A CUDA device is waited for, and its peak memory noted.
        pause_s: Seconds between two runs, where threads of the one before go on spinning.
        clock: Seconds since some moment.
    """
    cuda = device is not None and device.type == "cuda"
    times: dict[str, list[float]] = {name: [] for name in competitors}
    memory: dict[str, float] = {}
    for work in competitors.values():
        work()
    gc.collect()
    for _ in range(repeats):
        for name, work in competitors.items():
            if cuda:
                torch.cuda.reset_peak_memory_stats()
                torch.cuda.synchronize()
            time.sleep(pause_s)
            start = clock()
            for _ in range(inner):
                work()
            if cuda:
                torch.cuda.synchronize()
                memory[name] = torch.cuda.max_memory_allocated() / 2**30
            times[name].append((clock() - start) / inner)
    medians = {name: statistics.median(values) for name, values in times.items()}
    base = next(iter(medians.values()))
    return [
        Row(name, medians[name], min(values), max(values), base / medians[name], memory.get(name))
        for name, values in times.items()
    ]


def table(title: str, rows: list[Row], note: str = "") -> str:
    """A Markdown table."""
    lines = [
        f"### {title}",
        "",
        "| | median | min to max | times as fast | peak memory |",
        "|---|---|---|---|---|",
    ]
    first = rows[0].memory_gib if rows else None
    for row in rows:
        memory = "" if row.memory_gib is None else f"{row.memory_gib:.2f} GiB"
        if first and row.memory_gib is not None:
            memory += f" ({row.memory_gib / first:.2f})"
        lines.append(
            f"| {row.name} | {_seconds(row.median_s)} | {_seconds(row.least_s)} to {_seconds(row.greatest_s)} "
            f"| {row.ratio:.2f} | {memory} |"
        )
    return "\n".join([*lines, "", *([note, ""] if note else [])])


def machine() -> str:
    """Hardware and versions, as a Markdown list."""
    lines = [f"- processor: {_processor()}, {torch.get_num_threads()} threads", f"- system: {platform.platform()}"]
    if torch.cuda.is_available():
        lines.append(f"- GPU: {torch.cuda.get_device_name(0)}, CUDA {torch.version.cuda}")
    names = ("torch", "torchvision", "transformers", "timm", "hotcoco", "pycocotools", "numpy", "pillow")
    lines.append(
        "- versions: Python " + platform.python_version() + ", " + ", ".join(f"{n} {version(n)}" for n in names)
    )
    return "\n".join(lines)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.1f} ms"
