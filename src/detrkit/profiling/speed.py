"""How fast detectors are: every setting of every model, measured in turn on one machine."""

from __future__ import annotations

import dataclasses
import itertools
import os
import platform
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from detrkit.classes import ClassMap
from detrkit.config import PRECISIONS, Precision, update_config
from detrkit.detectors.bundle import BundleStages, bundle_detector, split_runtime
from detrkit.detectors.cost import Cost, count_cost, peak_memory
from detrkit.detectors.find import find_target
from detrkit.detectors.load import make_detector
from detrkit.detectors.measure_latency import Stopwatch
from detrkit.detectors.on_split import EvalTarget
from detrkit.detectors.stages import ModelStages, Stages
from detrkit.errors import UsageError
from detrkit.families.build import build_model
from detrkit.families.presets import PRESETS
from detrkit.families.recipes import preset_config
from detrkit.files import to_plain
from detrkit.hardware import resolve_device
from detrkit.latency import Latency, Percentiles
from detrkit.machine import this_machine
from detrkit.runtimes.cold_start import measure_cold_start
from detrkit.runtimes.contents import is_bundle
from detrkit.runtimes.report import ColdStart
from detrkit.training.memory import error_line, free_memory

BACKENDS: dict[str, dict[str, Any] | None] = {
    "eager": None,
    "compile": {},
    "cuda-graphs": {"mode": "reduce-overhead"},
}
"""What ``torch.compile`` is given, by name of the backend."""

_CLASSES = 91
"""Rows of the class head of a model made here; those of the published ones."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """One row of the table.

    Args:
        model: As :func:`detrkit.detectors.find.find_target` takes it.
        device: auto, cpu, cuda or cuda:N.
        precision: 32, bf16 or 16.
        backend: eager, compile for ``torch.compile``, or cuda-graphs for that with CUDA graphs.
        size: Short side of the network's input; None for the model's own.
        batch_size: Images at once.
        threads: Threads that torch may use on the CPU; None for its own choice.
        streams: Batches at once, which a bundle's runtime can.
    """

    model: str
    device: str = "auto"
    precision: Precision = "32"
    backend: str = "eager"
    size: int | None = None
    batch_size: int = 1
    threads: int | None = None
    streams: int = 1


@dataclasses.dataclass(frozen=True)
class SpeedRow:
    """What was found for a setting: figures, or why there are none.

    Args:
        setting: Setting that was asked for.
        latency: Times of a batch.
        cost: Parameters, arithmetic and memory of a batch.
        problem: Why it could not be measured.
        runtime: What ran it, and in which precision.
        cold_start: The first detections of a fresh process, where it was asked for.
    """

    setting: Setting
    latency: Latency | None = None
    cost: Cost | None = None
    problem: str = ""
    runtime: str = ""
    cold_start: ColdStart | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return all figures, ready for JSON."""
        return {
            **dataclasses.asdict(self.setting),
            "latency": None if self.latency is None else self.latency.to_dict(),
            "cost": None if self.cost is None else self.cost.to_dict(),
            "problem": self.problem or None,
            "runtime": self.runtime,
            "cold_start": None if self.cold_start is None else to_plain(self.cold_start),
        }


@dataclasses.dataclass(frozen=True)
class Speed:
    """A table of speeds.

    Args:
        rows: One of each setting.
        environment: The machine and what is installed.
        images: Images that were detected in, in words.
        decode: Time to read and decode an image file, where there were files.
        notes: Sentences that a reader must know.
    """

    rows: tuple[SpeedRow, ...]
    environment: dict[str, Any]
    images: str
    decode: Percentiles | None
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return all figures, ready for JSON."""
        return {
            "environment": self.environment,
            "images": self.images,
            "decode_ms": None if self.decode is None else to_plain(self.decode),
            "notes": list(self.notes),
            "rows": [row.to_dict() for row in self.rows],
        }


def all_settings(
    models: Sequence[str],
    *,
    devices: Sequence[str] = ("auto",),
    precisions: Sequence[str] = ("32",),
    backends: Sequence[str] = ("eager",),
    sizes: Sequence[int | None] = (None,),
    batch_sizes: Sequence[int] = (1,),
    threads: Sequence[int | None] = (None,),
    streams: Sequence[int] = (1,),
) -> list[Setting]:
    """Return every combination, models side by side.

    Raises:
        UsageError: A value is none that is known, or there is none.
    """
    for name, values in {"model": models, "device": devices, "batch size": batch_sizes}.items():
        if not values:
            raise UsageError(f"no {name} is given; give at least one")
    for name, words, known in (("precision", precisions, PRECISIONS), ("backend", backends, BACKENDS)):
        unknown = [word for word in words if word not in known]
        if unknown:
            raise UsageError(f"{name} is {unknown[0]!r}, expected one of {', '.join(known)}")
    for name, numbers in {
        "batch size": batch_sizes,
        "size": sizes,
        "threads": threads,
        "streams": streams,
    }.items():
        small = [number for number in numbers if number is not None and number < 1]
        if small:
            raise UsageError(f"{name} is {small[0]}, expected at least 1")
    grid = itertools.product(devices, precisions, backends, sizes, batch_sizes, threads, streams)
    return [
        Setting(model, *rest)  # type: ignore[arg-type]
        for rest in grid
        for model in dict.fromkeys(models)
    ]


def measure_speed(
    settings: Sequence[Setting],
    images: Sequence[Tensor],
    *,
    repeats: int,
    warm_up: int,
    progress: Callable[[int, int], None] | None = None,
    find: Callable[[Setting], EvalTarget] | None = None,
) -> list[SpeedRow]:
    """Measure settings in turn, a batch of each at a time, so that a machine that slows down hurts all alike.

    A setting that fails, say for want of memory, does not stop the others.

    Args:
        settings: The rows.
        images: uint8 ``[3, H, W]`` RGB in memory; used again and again to fill a batch.
        repeats: Batches that are timed of each.
        warm_up: Batches before, at least.
        progress: Called with batches done and batches in all; making a setting ready counts as one.
        find: Makes a subject; :func:`find_fast` if not given.
    """
    usual = torch.get_num_threads()
    try:
        rows = [_Row(setting, images, usual) for setting in settings]
        subjects: dict[Setting, EvalTarget] = {}
        tell = progress or (lambda _done, _total: None)
        total = (1 + repeats) * len(rows)
        for place, row in enumerate(rows, start=1):
            row.prepare(subjects, find or find_fast, warm_up)
            tell(place, total)
        for turn in range(repeats):
            # each turn begins with another row, so that none always follows the same
            for place in range(len(rows)):
                rows[(turn + place) % len(rows)].run()
                tell((1 + turn) * len(rows) + place + 1, total)
        return [row.read() for row in rows]
    finally:
        torch.set_num_threads(usual)


def find_fast(setting: Setting) -> EvalTarget:
    """Find the detector of a setting. A preset gets random weights, which are as fast and need no download."""
    if setting.streams > 1 and not is_bundle(split_runtime(setting.model)[0]):
        raise UsageError(f"{setting.model} detects in one batch at a time; leave out --streams for it")
    if setting.streams > 1:
        return bundle_detector(
            setting.model, device=setting.device, precision=setting.precision, streams=setting.streams
        )
    if setting.model not in PRESETS:
        subject = find_target(setting.model, device=setting.device, precision=setting.precision)
        if subject.stages is None:
            raise UsageError(f"{setting.model} is a file of detections; give a model that runs")
        return subject
    config, preset = preset_config(setting.model), PRESETS[setting.model]
    if config.model.backbone_norm == "auto":
        # as their weights have it: frozen norms are folded into convolutions, others take time
        norm = "frozen" if preset.published or preset.backbone_file else "group"
        config = update_config(config, {"model.backbone_norm": norm})
    classes = ClassMap(tuple(f"class {i}" for i in range(_CLASSES)), tuple(range(_CLASSES)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built = build_model(config, classes)
    built.family.prepare_inference(built.model)
    return make_detector(built, device=setting.device, precision=setting.precision, name=setting.model)


def resized(target: EvalTarget, size: int) -> Stages:
    """Return the stages of a detector with another input size; the longest side allowed changes alike.

    Raises:
        UsageError: It is of a kind whose size cannot be chosen.
    """
    stages = target.stages
    if isinstance(stages, ModelStages):
        own = stages.preprocessing
        longest = None if own.max_size is None else max(round(own.max_size * size / own.eval_size), size)
        preprocessing = dataclasses.replace(own, eval_size=size, max_size=longest)
        return dataclasses.replace(stages, preprocessing=preprocessing)
    transform: Any = getattr(stages, "transform", None)
    if stages is None or not hasattr(transform, "min_size") or transform.fixed_size is not None:
        raise UsageError(f"the input size of {target.name} cannot be chosen; leave out --sizes for it")
    transform.max_size = round(transform.max_size * size / transform.min_size[-1])
    transform.min_size = (size,)
    return stages


def add_cold_start(row: SpeedRow) -> SpeedRow:
    """Return a row with the first detections of a fresh process, where it is a bundle's."""
    path, runtime = split_runtime(row.setting.model)
    if row.latency is None or not is_bundle(path):
        return row
    return dataclasses.replace(row, cold_start=measure_cold_start(path, runtime, row.latency.threads))


def describe_environment() -> dict[str, Any]:
    """Describe the machine and what is installed, for whoever compares figures."""
    return {
        "cpu": this_machine().processor,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()) + " UTC",
    }


class _Row:
    """A setting at work."""

    def __init__(self, setting: Setting, images: Sequence[Tensor], usual_threads: int):
        self.setting = setting
        self.problem = ""
        self._images = list(itertools.islice(itertools.cycle(images), max(len(images), setting.batch_size)))
        self._threads = setting.threads or usual_threads
        self._cost: Cost | None = None
        self._runtime = ""
        self._stopwatch: Stopwatch | None = None

    def prepare(
        self, subjects: dict[Setting, EvalTarget], find: Callable[[Setting], EvalTarget], warm_up: int
    ) -> None:
        """Make the subject, or take that of another row which differs in batch size or threads alone."""
        key = dataclasses.replace(self.setting, batch_size=1, threads=None)

        def work() -> None:
            new = key not in subjects
            if new:
                subjects[key] = find(self.setting)
            stages = subjects[key].stages
            if self.setting.size is not None:
                stages = resized(subjects[key], self.setting.size)
            assert stages is not None
            options = BACKENDS[self.setting.backend]
            if options is not None and isinstance(stages, BundleStages):
                raise UsageError(f"{self.setting.model} is compiled already; leave out --backends for it")
            if self.setting.backend == "cuda-graphs" and stages.device.type != "cuda":
                raise UsageError(f"cuda-graphs need a CUDA device, and this is {stages.device}; take compile")
            self._runtime = getattr(stages, "runtime", f"torch {self.setting.backend}")
            own_threads = getattr(stages, "threads", None)
            if own_threads is not None and self.setting.threads not in (None, own_threads):
                raise UsageError(
                    f"{self.setting.model} runs {own_threads} threads of its own; leave out --threads"
                )
            self._threads = own_threads or self._threads
            batch = self._images[: self.setting.batch_size]
            self._cost = count_cost(stages, batch)
            if options is not None:
                if new:  # detrkit's own are one graph; a break in it would be a fault
                    stages.network.compile(fullgraph=isinstance(stages, ModelStages), **options)
                self._cost = dataclasses.replace(self._cost, peak_bytes=peak_memory(stages, batch))
            self._stopwatch = Stopwatch(stages, self._images, batch_size=self.setting.batch_size)
            self._stopwatch.warm_up(warm_up)

        self._try(work)

    def run(self) -> None:
        """Time one batch."""
        if self._stopwatch is not None:
            self._try(self._stopwatch.run)

    def read(self) -> SpeedRow:
        """Return what was found."""
        if self._stopwatch is None or self.problem:
            return SpeedRow(self.setting, problem=self.problem)
        latency = msgspec.structs.replace(self._stopwatch.read(), threads=self._threads)
        return SpeedRow(self.setting, latency, self._cost, runtime=self._runtime)

    def _try(self, work: Callable[[], None]) -> None:
        torch.set_num_threads(self._threads)
        try:
            work()
        except Exception as error:  # whatever a compiler or a foreign model raises is that row's result
            self.problem = error_line(error)
            self._stopwatch = None
            free_memory()


def made_up_image(height: int = 480, width: int = 640) -> Tensor:
    """Return a picture with edges and noise, always the same: uint8 ``[3, H, W]``."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([128 + 90 * np.sin(rows / 17 + i) * np.cos(columns / 23 - i) for i in range(3)])
    pixels[:, height // 4 : height // 2, width // 4 : width // 2] += 60
    noisy = pixels + random.normal(0, 12, pixels.shape)
    return torch.from_numpy(np.clip(noisy, 0, 255).astype(np.uint8))


def device_of(setting: Setting) -> str:
    """Return the device that a setting means; as it was given where there is none such."""
    try:
        return str(resolve_device(setting.device))
    except UsageError:
        return setting.device
