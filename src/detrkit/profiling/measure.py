"""Some steps of the real training, watched: the loop, the loader and the step are those of ``detrkit train``."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning_fabric import Fabric
from torch import nn
from torch.profiler import ProfilerActivity
from torch.utils.data import DataLoader

from detrkit.config import Config
from detrkit.data.loader import LoadingFacts
from detrkit.errors import DataError
from detrkit.families.family import BuiltModel
from detrkit.hardware import PeakMemory, count_flops
from detrkit.profiling.clock import REST, PhaseClock
from detrkit.profiling.instruments import DATA, StateSeen, TimedCriterion, watch_model, watch_step
from detrkit.profiling.memory import count_kept, tensor_bytes
from detrkit.training.loop import fit
from detrkit.types import Batch

WARM_UP = 2
"""Steps before any is counted: memory is new, kernels are chosen, workers start."""
_TRACED = 2

Kind = Literal["warm-up", "plain", "timed", "inspected", "traced", "end"]


@dataclasses.dataclass(frozen=True)
class StepTimes:
    """Seconds of one step.

    Args:
        phases: By phase; their sum is the step.
        images: Of the step.
        padding: Share of the pixels that is padding, 0 to 1.
    """

    phases: Mapping[str, float]
    images: int
    padding: float

    @property
    def seconds(self) -> float:
        """Of the whole step."""
        return sum(self.phases.values())


@dataclasses.dataclass(frozen=True)
class MemoryUse:
    """Bytes of a training step.

    Args:
        parameters: Of the model, buffers too.
        gradients: Of what is trained.
        optimizer: Its state.
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
        """What is left of the peak: what comes and goes inside operations, and what the allocator holds back."""
        known = self.parameters + self.gradients + self.optimizer + self.ema + self.kept
        return max(0, self.peak - known)


@dataclasses.dataclass(frozen=True)
class Measured:
    """What was seen of a training.

    Args:
        timed: Each step with the device waited for at every border between phases.
        plain: Each step as it trains; the same on the CPU, where nothing is waited for anyway.
        memory: Of a step.
        flops: Of a step, forward and backward.
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
        """As it trains."""
        return sum(step.images for step in self.plain) / sum(step.seconds for step in self.plain)

    @property
    def data_wait(self) -> float:
        """Share of the time spent waiting for data, as it trains."""
        return sum(step.phases.get(DATA, 0.0) for step in self.plain) / sum(step.seconds for step in self.plain)

    @property
    def padding(self) -> float:
        """Share of the pixels that is padding."""
        return statistics.mean(step.padding for step in self.timed)


class _EnoughSteps(Exception):  # noqa: N818 - no error: all that was to be seen has been seen
    """Ends the loop."""


def measure_training(
    built: BuiltModel,
    loader: DataLoader[Batch | None],
    fabric: Fabric,
    *,
    steps: int,
    at_rest: int,
    trace: Path | None = None,
) -> Measured:
    """Train for some steps and look; the model is changed, nothing is kept.

    Args:
        built: Model on the host, with its starting weights and the config of the training, for one process.
        loader: Of the training.
        fabric: Of one process.
        steps: To be counted, after :data:`WARM_UP`.
        at_rest: Bytes in use before the model was there.
        trace: File for a Chrome trace of two more steps.

    Raises:
        DataError: There are too few readable images for a step.
        TrainingError: Training failed.
    """
    config, model = built.config, built.model
    watch = _Watch(config, model, loader, fabric, steps, trace)
    criterion = cast("Any", TimedCriterion(built.family.build_criterion(config, built.class_map), watch.clock))
    quiet = config.train.model_copy(
        update={"trackers": (), "log_every": 10**9, "save_every_min": 10**6, "save_every_steps": None, "epochs": 1}
    )
    with (
        tempfile.TemporaryDirectory(prefix="detrkit-profile-") as folder,
        watch_model(model, watch.clock),
        watch_step(fabric, watch.clock, watch.seen),
        watch.closing,
    ):
        try:
            result = fit(
                config.model_copy(update={"train": quiet}),
                model,
                criterion,
                cast("Any", watch),
                built.class_map,
                Path(folder),
                lambda _model: {},
                fabric=fabric,
            )
        except _EnoughSteps:
            return watch.result(at_rest)
    if result.stopped == "interrupted":
        raise KeyboardInterrupt
    raise DataError("the training data gives no batch; expected at least one readable image")


class _Watch:
    """Stands in for the loader, and so sees where each step begins and ends."""

    def __init__(
        self,
        config: Config,
        model: nn.Module,
        loader: DataLoader[Batch | None],
        fabric: Fabric,
        steps: int,
        trace: Path | None,
    ):
        cuda = fabric.device.type == "cuda"
        self.clock = PhaseClock(torch.cuda.synchronize if cuda else lambda: None)
        self.seen = StateSeen()
        self.closing = contextlib.ExitStack()
        self.batch_sampler = loader.batch_sampler
        self.facts: LoadingFacts | None = getattr(loader, "facts", None)
        counts: dict[Kind, int] = {
            "warm-up": WARM_UP,
            "plain": steps if cuda else 0,
            "timed": steps,
            "inspected": 1,
            "traced": _TRACED if trace else 0,
            "end": 1,
        }
        self._kinds: list[Kind] = [kind for kind, count in counts.items() for _ in range(count)]
        self._config = config
        self._model = model
        self._loader = loader
        self._trace = trace
        self._device = fabric.device
        self._peak = PeakMemory(fabric.device)
        self._found: dict[Kind, list[StepTimes]] = {kind: [] for kind in dict.fromkeys(self._kinds)}
        self._highest = 0
        self._kept: dict[str, int] = {}
        self._flops = 0

    def __len__(self) -> int:
        return len(self._kinds) * self._config.train.accumulate

    def __iter__(self) -> Iterator[Batch | None]:
        batches = self._batches()
        for kind, following in itertools.pairwise([*self._kinds, "end"]):
            if kind == "end":
                raise _EnoughSteps
            images, pixels, padding = 0, 0, 0.0
            self._begin(kind)
            with contextlib.ExitStack() as looking:
                if kind == "inspected":
                    self._inspect(looking)
                for _ in range(self._config.train.accumulate):
                    with self.clock.measure(DATA), torch.profiler.record_function(DATA):
                        batch = next(batches)
                    if batch is not None:
                        images += len(batch.sizes_hw)
                        pixels += batch.padding_mask.numel()
                        padding += float(batch.padding_mask.sum())
                    yield batch
            self._end(kind, following == kind)
            times = self.clock.end_step()
            if images:
                self._found[kind].append(StepTimes(times, images, padding / pixels))

    def _batches(self) -> Iterator[Batch | None]:
        """The loader's, epoch after epoch."""
        sampler: Any = self.batch_sampler
        for epoch in itertools.count():
            sampler.set_epoch(epoch, 0)
            found = False
            for batch in self._loader:
                found |= batch is not None
                yield batch
            if not found:
                raise DataError("not one training image could be read; run: detrkit data check")

    def _begin(self, kind: Kind) -> None:
        self.clock.waits = kind != "plain"
        if kind == "timed" and not self._found["timed"]:
            self._peak.reset()
        if kind == "traced" and not self._found["traced"]:
            self._start_trace()
        self.clock.end_step()  # what was done here is no part of the step

    def _end(self, kind: Kind, goes_on: bool) -> None:
        if kind == "plain" and not goes_on:
            self.clock.synchronise()
        if kind == "timed" and not goes_on:
            self._highest = self._peak.peak()
        if kind == "traced" and not goes_on:
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

    def _start_trace(self) -> None:
        activities = [ProfilerActivity.CPU]
        if self._device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        profiler = torch.profiler.profile(activities=activities)
        self.closing.callback(lambda: profiler.export_chrome_trace(str(self._trace)))
        self.closing.enter_context(profiler)

    def result(self, at_rest: int) -> Measured:
        """All that was seen."""
        timed = self._found["timed"]
        if not timed:
            raise DataError("not one of the first batches could be read; run: detrkit data check")
        trained = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        optimizer = self.seen.optimizer
        memory = MemoryUse(
            parameters=tensor_bytes([*self._model.parameters(), *self._model.buffers()]),
            gradients=tensor_bytes(trained),
            optimizer=0 if optimizer is None else tensor_bytes(dict(optimizer.state)),
            ema=0 if self.seen.ema is None else tensor_bytes(self.seen.ema.state_dict()["weights"]),
            activations=self._kept,
            peak=max(0, self._highest - at_rest),
            limit=self._peak.limit(),
        )
        plain = self._found.get("plain") or timed
        return Measured(timed, plain, memory, self._flops, self.facts, self._device)
