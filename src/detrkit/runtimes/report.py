"""What a bundle's report says: what was measured, with which runtime, on which machine."""

from __future__ import annotations

import platform
from collections.abc import Mapping

import msgspec

from detrkit.errors import counted
from detrkit.latency import Percentiles
from detrkit.machine import Machine, this_machine
from detrkit.runtimes.compare import Difference
from detrkit.runtimes.engines import Engine

LOSSES = {"float32": 1e-4, "float16": 0.003, "bf16": 0.003}
"""AP, 0 to 1, that a bundle may lie away from torch's float32 on the same images, by precision."""
_USUAL_LOSS = 0.005
MASK_LOSS = 1e-3
"""Likewise of AP of masks and of PQ, at least."""


INT8 = " int8"
"""What is written behind a runtime where it runs the INT8 graph."""


class Interval(msgspec.Struct, frozen=True):
    """A value, and the ends of its interval."""

    value: float
    low: float
    high: float


class Accuracy(msgspec.Struct, frozen=True):
    """AP of a bundle on a split, by the evaluator of ``detrkit eval``.

    Args:
        data: Name of the data set, as it was given.
        split: Name of the split.
        sha256: Hash of the annotations as they were read, whatever their format.
        images: Images.
        objects: Annotated objects.
        ap: AP at IoU 0.50 to 0.95, 0 to 1.
        ap50: AP at IoU 0.50.
        low: Lower end of AP's 95 % interval by the choice of images; None with too few images.
        high: Upper end.
        torch_ap: AP of the model in torch on the same images, float32, or of the float32 graph that an INT8 one
            was made from; None where it was not measured.
        masks: ``mask_AP`` and, on panoptic data, ``PQ``, 0 to 1, of a model with masks.
        torch_masks: The same of the model in torch.
        change: How much higher AP is than ``torch_ap``, with its 95 % interval over the same resamples of the
            images; None in float32, or where too few images hold objects.
    """

    data: str
    split: str
    sha256: str
    images: int
    objects: int
    ap: float
    ap50: float
    low: float | None = None
    high: float | None = None
    torch_ap: float | None = None
    change: Interval | None = None
    masks: dict[str, float] = msgspec.field(default_factory=dict)
    torch_masks: dict[str, float] = msgspec.field(default_factory=dict)

    def line(self) -> str:
        """Return the same for people."""
        interval = "" if self.low is None or self.high is None else f" (95 %: {self.low:.4f} to {self.high:.4f})"
        torch = "" if self.torch_ap is None else f", torch's {self.torch_ap:.4f}"
        if self.change is not None:
            value, low, high = (100 * number for number in msgspec.structs.astuple(self.change))
            torch = (
                f", without INT8 {self.torch_ap:.4f} ({value:+.2f} points, 95 % of paired resamples: {low:+.2f} "
                f"to {high:+.2f})"
            )
        masks = "".join(
            f"; {name.replace('_', ' ')} {value:.4f}"
            + (f", torch's {self.torch_masks[name]:.4f}" if name in self.torch_masks else "")
            for name, value in self.masks.items()
        )
        return (
            f"AP {self.ap:.4f}{interval}{torch}; AP50 {self.ap50:.4f}{masks}, "
            f"on {counted(self.images, 'image')} and {counted(self.objects, 'object')} of {self.data}, "
            f"{self.split}"
        )


def differing_masks(here: Mapping[str, float], then: Mapping[str, float], allowed: float) -> list[str]:
    """Return which numbers of masks are not as they were, in words; a pixel at an edge moves them more than AP."""
    most = max(allowed, MASK_LOSS)
    return [
        f"{name} {here[name]:.4f}, expected {value:.4f} within {most:g}"
        for name, value in then.items()
        if name in here and abs(here[name] - value) > most
    ]


class ColdStart(msgspec.Struct, frozen=True):
    """A bundle in a fresh process.

    Args:
        seconds: From the start of Python to the first picture's detections.
        peak_mb: Most resident memory, in megabytes; 0 where the system does not tell.
    """

    seconds: float
    peak_mb: float


class BundleReport(msgspec.Struct, frozen=True):
    """What was measured of a bundle.

    Args:
        machine: Where.
        runtime: Name of the runtime; empty where nothing was run, as for raw outputs.
        version: Version of the runtime.
        precision: Least precise numbers that it computed in or read.
        python: Version of Python.
        threads: Threads of one run.
        parity: What differs from torch in the golden pictures.
        latency: Time from pixels in memory to detections, a picture, over the golden ones in turn.
        runs: Runs behind ``latency``.
        cold_start: The first detections of a fresh process.
        accuracy: AP; None where no data was given.
        export_s: Seconds that the exporter took; 0 where nothing was exported.
        graph_ms: Of an INT8 bundle, fastest times by runtime of its graph, ``openvino int8``, and of the float32
            one that it was made from, ``openvino``.
    """

    machine: Machine
    runtime: str = ""
    version: str = ""
    precision: str = "float32"
    python: str = ""
    threads: int = 0
    parity: Difference | None = None
    latency: Percentiles | None = msgspec.field(name="latency_ms", default=None)
    runs: int = 0
    cold_start: ColdStart | None = None
    accuracy: Accuracy | None = None
    export_s: float = 0.0
    graph_ms: dict[str, float] = msgspec.field(default_factory=dict)

    @classmethod
    def here(cls, engine: Engine | None = None, precision: str = "float32") -> BundleReport:
        """Return a report of this machine and a runtime, in which nothing is measured yet."""
        python = platform.python_version()
        if engine is None:
            return cls(this_machine(), python=python)
        return cls(this_machine(), engine.name, engine.version, precision, python, engine.threads)

    @property
    def allowed_loss(self) -> float:
        """AP, 0 to 1, that may lie between this and torch's float32 on the same images."""
        return LOSSES.get(self.precision, _USUAL_LOSS)

    def lines(self) -> list[str]:
        """Return what was measured for people, AP first."""
        lines = [] if self.accuracy is None else [self.accuracy.line()]
        if self.latency is not None:
            times = ", ".join(f"{name} {getattr(self.latency, name):.1f}" for name in ("p50", "p90", "p95", "p99"))
            lines.append(f"{times} ms a picture ({self.runs} runs, {counted(self.threads, 'thread')})")
        if self.cold_start is not None:
            peak = f", {self.cold_start.peak_mb:.0f} MB at most" if self.cold_start.peak_mb else ""
            lines.append(f"first detections of a fresh process after {self.cold_start.seconds:.1f} s{peak}")
        lines += speed_lines(self.graph_ms)
        where = (
            f"{self.runtime} {self.version}, {self.precision}, Python {self.python}"
            if self.runtime
            else f"Python {self.python}"
        )
        return [*lines, f"{where}, on {self.machine}"]

    def changes(self, other: BundleReport) -> list[str]:
        """Return what another report was measured with that this one was not, in words."""
        pairs = {
            "runtime": (f"{self.runtime} {self.version}".strip(), f"{other.runtime} {other.version}".strip()),
            "precision": (self.precision, other.precision),
            "processor": (self.machine.processor, other.machine.processor),
            "instructions": (", ".join(self.machine.instructions), ", ".join(other.machine.instructions)),
            "system": (self.machine.system, other.machine.system),
        }
        return [
            f"{what}: {mine or 'unknown'} here, {theirs or 'unknown'} when it was written"
            for what, (mine, theirs) in pairs.items()
            if mine != theirs
        ]


def speed_lines(graph_ms: Mapping[str, float]) -> list[str]:
    """Return for people how much faster INT8 is in each runtime; nothing of other bundles."""
    pairs = {way: (ms, graph_ms[way.removesuffix(INT8)]) for way, ms in graph_ms.items() if way.endswith(INT8)}
    return [
        f"{way}: {ms:.1f} ms the graph alone, {before:.1f} without INT8 ({before / ms:.2f} times as fast)"
        for way, (ms, before) in pairs.items()
    ]
