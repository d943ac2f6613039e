"""Training on a GPU: images a second, peak memory and model FLOP utilisation, batch by batch."""

from __future__ import annotations

import copy
import dataclasses
import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from benchmarks import detr_speed
from benchmarks.detr_speed import COMPILED, THEIRS, Job
from detrkit.hardware import PeakMemory, count_flops
from detrkit.profiling.advice import peak_tflops
from detrkit.training.memory import error_line, free_memory

NAMES = (THEIRS, "transformers, bf16 autocast", "detrkit float32", "detrkit bf16", COMPILED)
WARM_UP = 3

Make = Callable[[int], Callable[[], object]]


@dataclasses.dataclass(frozen=True)
class Rate:
    """One competitor at one batch size; all None where it failed.

    Args:
        name: Of the competitor.
        batch: Images a step.
        images_per_s: From the median step.
        memory_gib: Peak, the model included.
        utilisation: Share of the device's peak, 0 to 1; None too where that is not known.
        problem: Why there is nothing else, such as memory that ran out.
    """

    name: str
    batch: int
    images_per_s: float | None = None
    memory_gib: float | None = None
    utilisation: float | None = None
    problem: str = ""


def training_rates(
    competitors: Mapping[str, Make],
    device: torch.device,
    batches: Sequence[int],
    repeats: int,
    flops_of: Callable[[int], int],
    peaks: Mapping[str, float | None],
) -> list[Rate]:
    """Each competitor at each batch size, one after the other, since they would share the memory.

    Args:
        competitors: Makes the step for a batch size.
        device: To train on.
        batches: Images a step.
        repeats: Counted steps.
        flops_of: Floating-point operations of a step, forward and backward, by batch size; the same for all
            competitors, whatever they compute besides.
        peaks: Peak of the device in TFLOP/s by precision, if known.
    """
    found = []
    for batch in batches:
        flops = flops_of(batch)
        for name, make in competitors.items():
            try:
                seconds, memory = _measure(make, batch, device, repeats)
            except Exception as error:  # what a compiler or another toolkit raises is that row's result
                problem = error_line(error)
                free_memory()
                found.append(Rate(name, batch, problem=problem))
                continue
            precision = "bf16" if "bf16" in name else "32"
            peak = peaks.get(precision)
            share = None if peak is None else flops / seconds / (peak * 1e12)
            found.append(Rate(name, batch, batch / seconds, memory / 2**30, share))
    return found


def _measure(make: Make, batch: int, device: torch.device, repeats: int) -> tuple[float, int]:
    """Median seconds of a step, and the peak memory in bytes."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    memory = PeakMemory(device)
    gc.collect()
    free_memory()
    memory.reset()
    work = make(batch)
    times = []
    for _ in range(WARM_UP + repeats):
        wait()
        began = time.perf_counter()
        work()
        wait()
        times.append(time.perf_counter() - began)
    return statistics.median(times[WARM_UP:]), memory.peak()


def rates_table(rates: Sequence[Rate]) -> str:
    """A Markdown table; the first competitor of each batch size is what the others are compared with."""
    lines = [
        "| images a step | | images/s | times as fast | peak memory | utilisation |",
        "|---|---|---|---|---|---|",
    ]
    first: dict[int, Rate] = {}
    for rate in rates:
        base = first.setdefault(rate.batch, rate)
        if rate.images_per_s is None or rate.memory_gib is None:
            lines.append(f"| {rate.batch} | {rate.name} | {rate.problem} | | | |")
            continue
        faster = "" if base.images_per_s is None else f"{rate.images_per_s / base.images_per_s:.2f}"
        share = "" if rate.utilisation is None else f"{rate.utilisation:.1%}"
        memory = f"{rate.memory_gib:.1f} GiB"
        lines.append(f"| {rate.batch} | {rate.name} | {rate.images_per_s:.1f} | {faster} | {memory} | {share} |")
    return "\n".join(lines)


def gpu_report(
    device: torch.device,
    repeats: int,
    batches: Sequence[int],
    size_hw: tuple[int, int] | None = None,
    names: Sequence[str] = NAMES,
    preset: str = detr_speed.PRESET,
) -> str:
    """The table of a preset against transformers', and what it is measured against."""
    ours, theirs = detr_speed.make_pair(preset, None)
    job = Job(device, 1, size_hw or detr_speed.size_of(preset), preset)

    def make(name: str) -> Make:
        def work(batch: int) -> Callable[[], object]:
            # copies, so that what an out of memory leaves on the device goes with them
            mine, other = copy.deepcopy(ours), copy.deepcopy(theirs)
            return detr_speed.training_work(name, mine, other, dataclasses.replace(job, batch=batch))

        return work

    def flops_of(batch: int) -> int:
        return per_image * batch

    per_image = count_step(make("detrkit float32")(1))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    peaks = {precision: peak_tflops(name, precision) for precision in ("32", "bf16")}
    rates = training_rates({name: make(name) for name in names}, device, batches, repeats, flops_of, peaks)
    lines = [rates_table(rates), "", f"Forward and backward of an image: {per_image / 1e9:.0f} GFLOP."]
    if peaks["32"] is not None:
        lines.append(f"Peak, dense: {peaks['bf16']:g} TFLOP/s in bf16, {peaks['32']:g} in float32 (TF32 if on).")
    return "\n".join(lines)


def count_step(work: Callable[[], object]) -> int:
    """Floating-point operations of a step."""
    with count_flops() as count:
        work()
    return count.get_total_flops()
