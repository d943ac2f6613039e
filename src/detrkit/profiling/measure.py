"""Some steps of the real training, watched: the loop, the loader and the step are those of ``detrkit train``."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.profiler import ProfilerActivity, record_function
from torch.utils.data import DataLoader

from detrkit.config import update_config
from detrkit.data.loader import LoadingFacts, endless_batches
from detrkit.detectors.cost import count_kept
from detrkit.errors import DataError
from detrkit.files import atomic_bytes
from detrkit.hardware import PeakMemory, count_flops
from detrkit.training.loop import fit
from detrkit.training.session import TrainingSetup
from detrkit.types import Batch

PRECISION_NAMES = {"32": "float32", "16": "float16", "bf16": "bf16"}

FORWARD, REST = "forward", "rest"
"""Names of phases: the model's forward, of which parts are told apart, and what no phase claims."""

WARM_UP = 2
"""Steps before any is counted: memory is new, kernels are chosen, workers start."""
_TRACED = 2
_DEEPEST = 2

Kind = Literal["warm-up", "plain", "timed", "inspected", "traced", "end"]


class PhaseClock:
    """A clock that divides a step among named phases: every moment belongs to the innermost that is open.

    Args:
        synchronise: Waits for the device, so that work is counted where it was asked for.
        now: Gives seconds since some moment.
    """

    def __init__(self, synchronise: Callable[[], None], now: Callable[[], float] = time.perf_counter):
        self.synchronise = synchronise
        self.waits = True
        self._now = now
        self._open: list[str] = []
        self._spent: dict[str, float] = {}
        self._mark = now()

    @property
    def phase(self) -> str:
        """The phase that the present moment belongs to."""
        return self._open[-1] if self._open else REST

    @contextlib.contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Count the time inside as a phase, but for that of phases inside it; a trace shows it by name."""
        with record_function(phase):
            self.enter(phase)
            try:
                yield
            finally:
                self.leave(phase)

    def enter(self, phase: str) -> None:
        """Begin a phase, which :meth:`leave` ends."""
        self._add_up()
        self._open.append(phase)

    def leave(self, phase: str) -> None:
        """End a phase, and what an error left open inside it."""
        self._add_up()
        if phase in self._open:
            last = len(self._open) - 1 - self._open[::-1].index(phase)
            del self._open[last:]

    def end_step(self) -> dict[str, float]:
        """Return the seconds by phase since the last call; their sum is the time since then."""
        self._add_up()
        spent, self._spent = self._spent, {}
        return spent

    def _add_up(self) -> None:
        if self.waits:
            self.synchronise()
        now = self._now()
        self._spent[self.phase] = self._spent.get(self.phase, 0.0) + now - self._mark
        self._mark = now


@dataclasses.dataclass(frozen=True)
class StepTimes:
    """Seconds of one step.

    Args:
        phases: Seconds by phase; their sum is the step.
        images: Images of the step.
        padding: Share of the pixels that is padding, 0 to 1.
    """

    phases: Mapping[str, float]
    images: int
    padding: float

    @property
    def seconds(self) -> float:
        """Seconds of the whole step."""
        return sum(self.phases.values())


@dataclasses.dataclass(frozen=True)
class MemoryUse:
    """Bytes of a training step.

    Args:
        parameters: The model, buffers too.
        gradients: Gradients of what is trained.
        optimizer: State of the optimiser.
        ema: Averaged weights.
        activations: Kept from the forward for the backward, by part.
        peak: The most at once, without what there was before the model.
        limit: All there is.
    """

    parameters: int
    gradients: int
    optimizer: int
    ema: int
    activations: Mapping[str, int]
    peak: int
    limit: int

    @property
    def kept(self) -> int:
        """Activations of all parts."""
        return sum(self.activations.values())

    @property
    def others(self) -> int:
        """The rest of the peak: what comes and goes inside operations, and what the allocator holds back."""
        known = self.parameters + self.gradients + self.optimizer + self.ema + self.kept
        return max(0, self.peak - known)


@dataclasses.dataclass(frozen=True)
class Measured:
    """Figures of a training.

    Args:
        timed: Each step with the device waited for at every border between phases.
        plain: Each step as it trains; the same on the CPU, where nothing is waited for anyway.
        memory: Memory of a step.
        flops: Arithmetic of a step, forward and backward.
        loading: How data is loaded.
        device: Where it was trained.
    """

    timed: Sequence[StepTimes]
    plain: Sequence[StepTimes]
    memory: MemoryUse
    flops: int
    loading: LoadingFacts | None
    device: torch.device

    @functools.cached_property
    def phases(self) -> dict[str, float]:
        """Median seconds of each phase, in the order of a step; what no phase claims comes last."""
        seen = dict.fromkeys(itertools.chain.from_iterable(step.phases for step in self.timed))
        names = [*(name for name in seen if name != REST), REST]
        return {name: statistics.median(step.phases.get(name, 0.0) for step in self.timed) for name in names}

    @property
    def step_s(self) -> float:
        """Median seconds of a step as it trains."""
        return statistics.median(step.seconds for step in self.plain)

    @property
    def images_per_s(self) -> float:
        """Images a second as it trains."""
        return sum(step.images for step in self.plain) / sum(step.seconds for step in self.plain)

    @property
    def data_wait(self) -> float:
        """Share of the time spent waiting for data, as it trains."""
        return sum(step.phases.get("data", 0.0) for step in self.plain) / sum(step.seconds for step in self.plain)

    @property
    def padding(self) -> float:
        """Share of the pixels that is padding."""
        return statistics.mean(step.padding for step in self.timed)


@contextlib.contextmanager
def watch_parts(model: nn.Module, clock: PhaseClock) -> Iterator[None]:
    """Time the parts of a model in its forward phase, of nested ones the outermost that runs."""
    handles = []
    for name, module in model.named_modules():
        if not name or len(name.split(".")) > _DEEPEST:
            continue
        phase = f"{FORWARD}: {name} ({type(module).__name__})"

        def begin(_part: nn.Module, _arguments: Any, phase: str = phase) -> None:
            if clock.phase == FORWARD:
                clock.enter(phase)

        def end(_part: nn.Module, _arguments: Any, _outputs: Any, phase: str = phase) -> None:
            if clock.phase == phase:
                clock.leave(phase)

        handles += [module.register_forward_pre_hook(begin), module.register_forward_hook(end)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def tensor_bytes(tensors: object) -> int:
    """Return the bytes of all tensors in nested dicts and lists."""
    if isinstance(tensors, Tensor):
        return tensors.nbytes
    if isinstance(tensors, dict):
        tensors = list(tensors.values())
    return sum(map(tensor_bytes, tensors)) if isinstance(tensors, list | tuple) else 0


class _EnoughSteps(Exception):  # noqa: N818 - no error: all that was to be seen has been seen
    """Ends the loop."""


def measure_training(
    setup: TrainingSetup, fabric: Fabric, *, steps: int, at_rest: int, trace: Path | None = None
) -> Measured:
    """Train for some steps and look; the model is changed, nothing is kept.

    Args:
        setup: Training to look at.
        fabric: Device and precision of one process.
        steps: Steps to be counted, after :data:`WARM_UP`.
        at_rest: Bytes in use before the model was there.
        trace: File for a Chrome trace of two more steps.

    Raises:
        DataError: There are too few readable images for a step.
        TrainingError: Training failed.
    """
    watch = _Watch(setup, fabric, steps, trace)
    criterion = cast("Any", setup.criterion)
    match = criterion.matcher

    def timed_match(*arguments: Any) -> Any:
        with watch.clock("matching"):
            return match(*arguments)

    # nothing but the steps: no log, no checkpoint, one endless epoch
    quiet = {"trackers": (), "log_every": 10**9, "save_every_min": 10**6, "save_every_steps": None, "epochs": 1}
    silent = setup.with_config(update_config(setup.config, {"train": quiet}))
    watched = dataclasses.replace(silent, loader=cast("Any", watch))
    seeing = register_optimizer_step_post_hook(lambda optimizer, *_: setattr(watch, "optimizer", optimizer))
    with (
        tempfile.TemporaryDirectory(prefix="detrkit-profile-") as folder,
        watch_parts(setup.model, watch.clock),
        watch.closing,
    ):
        criterion.matcher = timed_match
        try:
            result = fit(watched, Path(folder), fabric, lambda _model: {}, phase=watch.clock)
        except _EnoughSteps:
            return watch.result(at_rest)
        finally:
            criterion.matcher = match
            seeing.remove()
    if result.stopped == "interrupted":
        raise KeyboardInterrupt
    raise DataError("the training data gives no batch; expected at least one readable image")


def _write_trace(profiler: torch.profiler.profile, path: Path) -> None:
    with atomic_bytes(path) as file:
        profiler.export_chrome_trace(file.name)


class _Watch:
    """Stands in for the loader, and so sees where each step begins and ends."""

    def __init__(self, setup: TrainingSetup, fabric: Fabric, steps: int, trace: Path | None):
        cuda = fabric.device.type == "cuda"
        self.clock = PhaseClock(torch.cuda.synchronize if cuda else lambda: None)
        self.optimizer: torch.optim.Optimizer | None = None
        self.closing = contextlib.ExitStack()
        self.batch_sampler = setup.loader.batch_sampler
        self.facts: LoadingFacts | None = getattr(setup.loader, "facts", None)
        counts: dict[Kind, int] = {"warm-up": WARM_UP, "plain": steps if cuda else 0, "timed": steps}
        counts |= {"inspected": 1, "traced": _TRACED if trace else 0, "end": 1}
        self._kinds: list[Kind] = [kind for kind, count in counts.items() for _ in range(count)]
        self._train = setup.config.train
        self._model = setup.model
        self._loader: DataLoader[Batch | None] = setup.loader
        self._trace = trace
        self._device = fabric.device
        self._peak = PeakMemory(fabric.device)
        self._found: dict[Kind, list[StepTimes]] = {kind: [] for kind in counts}
        self._highest = self._flops = 0
        self._kept: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._kinds) * self._train.accumulate

    def __iter__(self) -> Iterator[Batch | None]:
        batches = endless_batches(self._loader, cast("Any", self.batch_sampler))
        for kind, following in itertools.pairwise([*self._kinds, "end"]):
            if kind == "end":
                raise _EnoughSteps
            images, pixels, padding = 0, 0, 0.0
            self._begin(kind)
            with contextlib.ExitStack() as looking:
                if kind == "inspected":
                    self._inspect(looking)
                for _ in range(self._train.accumulate):
                    batch = next(batches)
                    if batch is not None:
                        images += len(batch.sizes_hw)
                        pixels += batch.padding_mask.numel()
                        padding += float(batch.padding_mask.sum())
                    yield batch
            if following != kind:
                self._end(kind)
            times = self.clock.end_step()
            if images:
                self._found[kind].append(StepTimes(times, images, padding / pixels))

    def _begin(self, kind: Kind) -> None:
        self.clock.waits = kind != "plain"
        is_first = not self._found[kind]
        if kind == "timed" and is_first:
            self._peak.reset()
        if kind == "traced" and is_first and self._trace is not None:
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._device.type == "cuda" else [])]
            profiler = torch.profiler.profile(activities=activities)
            self.closing.callback(_write_trace, profiler, self._trace)
            self.closing.enter_context(profiler)
        self.clock.end_step()  # what was done here is no part of the step

    def _end(self, kind: Kind) -> None:
        if kind == "plain":
            self.clock.synchronise()
        if kind == "timed":
            self._highest = self._peak.peak()
        if kind == "traced":
            self.closing.close()

    def _inspect(self, looking: contextlib.ExitStack) -> None:
        """Count arithmetic, and what each forward keeps; slow, so these steps are not timed."""
        flops = looking.enter_context(count_flops())
        looking.callback(lambda: setattr(self, "_flops", flops.get_total_flops()))
        forward: dict[str, int] = {}
        counting = contextlib.ExitStack()

        def begin(_model: nn.Module, _arguments: Any) -> None:
            forward.clear()
            counting.enter_context(count_kept(self._model, forward, lambda: self.clock.phase))

        def end(_model: nn.Module, _arguments: Any, _outputs: Any) -> None:
            counting.close()
            if sum(forward.values()) > sum(self._kept.values()):  # the largest of several micro-batches
                self._kept = dict(forward)

        looking.callback(self._model.register_forward_pre_hook(begin).remove)
        looking.callback(self._model.register_forward_hook(end).remove)

    def result(self, at_rest: int) -> Measured:
        """Return all that was seen."""
        timed = self._found["timed"]
        if not timed:
            raise DataError("not one of the first batches could be read; run: detrkit data check")
        state = self._model.state_dict()
        averaged = [tensor for tensor in state.values() if tensor.is_floating_point()]
        memory = MemoryUse(
            parameters=tensor_bytes([*self._model.parameters(), *self._model.buffers()]),
            gradients=tensor_bytes([weight for weight in self._model.parameters() if weight.requires_grad]),
            optimizer=0 if self.optimizer is None else tensor_bytes(dict(self.optimizer.state)),
            ema=0 if self._train.ema_decay is None else tensor_bytes(averaged),
            activations=self._kept,
            peak=max(0, self._highest - at_rest),
            limit=self._peak.limit(),
        )
        plain = self._found["plain"] or timed
        return Measured(timed, plain, memory, self._flops, self.facts, self._device)
