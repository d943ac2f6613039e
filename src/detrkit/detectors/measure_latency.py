"""Latency of a detector, stage by stage, from pixels in memory to detections."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from detrkit.classes import SizeHW
from detrkit.detectors.stages import Stages, prepare
from detrkit.errors import UsageError
from detrkit.latency import Latency, Percentiles
from detrkit.ops.images import decode_image
from detrkit.preprocess import image_size_hw

WARM_UP = 3
REPEATS = 3

_SETTLED = 0.95
"""The warm-up goes on while one of the latest runs took less than this share of the fastest before."""
_MOST_WARM_UP = 5
"""Times the runs asked for, at most: a machine that others use never settles."""

MASKS_FROM = 0.5
"""Score of detections whose masks are made, as :meth:`Detector.predict` makes them if nothing else is said."""

_STREAM_RUNS = 3
"""Batches of each stream in one run: at its end one stream waits for the others."""

Clock = Callable[[], int]


def measure_latency(
    stages: Stages,
    images: Sequence[Tensor],
    *,
    batch_size: int = 1,
    warm_up: int = WARM_UP,
    repeats: int = REPEATS,
    progress: Callable[[int, int], None] | None = None,
    now: Clock = time.perf_counter_ns,
) -> Latency:
    """Measure the time of each stage, with the device waited for between stages.

    Args:
        stages: The detector.
        images: uint8 ``[3, H, W]`` RGB in memory, so that no disk is measured; batches are made in this order.
        batch_size: Images at once; what is left over at the end makes no batch of its own.
        warm_up: Runs before any counts, at least; as many more as it takes until times stop falling, and one for
            every size of input, since kernels are chosen and compiled by size.
        repeats: Times that each image is detected.
        progress: Called with runs done and runs in all.
        now: Nanoseconds since some moment.

    Raises:
        UsageError: There are fewer images than a batch has, or a number is too small.
    """
    stopwatch = Stopwatch(stages, images, batch_size=batch_size, now=now)
    stopwatch.warm_up(warm_up)
    if repeats < 1:
        raise UsageError(f"repeats is {repeats}, expected at least 1")
    runs = repeats * stopwatch.batches
    for done in range(1, runs + 1):
        stopwatch.run()
        if progress is not None:
            progress(done, runs)
    return stopwatch.read()


class Stopwatch:
    """Times one batch after another, so that several detectors can take turns.

    Args:
        stages: Detector.
        images: uint8 ``[3, H, W]`` RGB in memory; batches are made in this order.
        batch_size: Images at once; what is left over at the end makes no batch of its own.
        now: Nanoseconds since some moment.

    Raises:
        UsageError: There are fewer images than a batch has.
    """

    def __init__(
        self, stages: Stages, images: Sequence[Tensor], *, batch_size: int = 1, now: Clock = time.perf_counter_ns
    ):
        if batch_size < 1:
            raise UsageError(f"batch_size is {batch_size}, expected 1 or more")
        if len(images) < batch_size:
            raise UsageError(f"{len(images)} images make no batch of {batch_size}; give more images")
        self.stages = stages
        self.batch_size = batch_size
        self.batches = len(images) // batch_size
        self._images = images
        self._now = now
        self._next = 0
        self._streams: int = getattr(stages, "streams", 1)  # batches at once
        self._busy = 0
        self._warm_up = 0
        self._times: list[tuple[int, int, int]] = []

    def warm_up(self, least: int = WARM_UP) -> int:
        """Run without counting until times stop falling; returns the number of runs.

        Raises:
            UsageError: ``least`` is below 0.
        """
        if least < 0:
            raise UsageError(f"warm_up is {least}, expected 0 or more")
        if least == 0:
            return 0
        sizes: dict[tuple[SizeHW, ...], int] = {}
        for number in range(self.batches):
            sizes.setdefault(tuple(image_size_hw(image) for image in self._batch(number)), number)
        for number in sizes.values():
            self._time(number)
        totals: list[int] = []
        while len(totals) < least or (len(totals) < _MOST_WARM_UP * least and not _settled(totals)):
            totals.append(sum(self._time(0)))
        self._warm_up += len(sizes) + len(totals)
        return len(sizes) + len(totals)

    def run(self) -> None:
        """Detect and time the next batch, or some for each stream; after the last the first is next."""
        count = 1 if self._streams == 1 else _STREAM_RUNS * self._streams
        numbers = [(self._next + place) % self.batches for place in range(count)]
        self._next = (self._next + count) % self.batches
        if self._streams == 1:
            self._times.append(self._time(numbers[0]))
            return
        with ThreadPoolExecutor(self._streams) as pool:
            start = self._now()
            self._times += pool.map(self._time, numbers)
            self._busy += self._now() - start

    def read(self) -> Latency:
        """Return what was timed so far.

        Raises:
            DataError: Nothing was.
        """
        columns = list(zip(*self._times, strict=True)) or [(), (), ()]
        preprocess, model, postprocess = (Percentiles.of([time / 1e6 for time in column]) for column in columns)
        return Latency(
            preprocess,
            model,
            postprocess,
            total=Percentiles.of([sum(times) / 1e6 for times in self._times]),
            batch_size=self.batch_size,
            images=self.batches * self.batch_size,
            runs=len(self._times),
            warm_up=self._warm_up,
            device=device_name(self.stages.device),
            threads=torch.get_num_threads(),
            streams=self._streams,
            busy_s=None if self._streams == 1 else self._busy / 1e9,
        )

    def _batch(self, number: int) -> Sequence[Tensor]:
        return self._images[number * self.batch_size : (number + 1) * self.batch_size]

    def _time(self, number: int) -> tuple[int, int, int]:
        """Measure nanoseconds of the three stages on one batch."""
        images = self._batch(number)
        sizes = [image_size_hw(image) for image in images]
        start = self._moment()
        inputs = prepare(self.stages, images)
        ready = self._moment()
        outputs = self.stages.forward(inputs)
        seen = self._moment()
        for found in self.stages.postprocess(outputs, sizes):
            if found.masks is not None:  # they are made when asked for, as predict asks
                found.masks.take(found.scores >= MASKS_FROM).pixels()
        end = self._moment()
        return ready - start, seen - ready, end - seen

    def _moment(self) -> int:
        """Read the clock once all work that was asked of the device is done."""
        if self.stages.device.type == "cuda":
            torch.cuda.synchronize(self.stages.device)
        return self._now()


def measure_decode(
    files: Sequence[str | Path], *, repeats: int = 1, now: Clock = time.perf_counter_ns
) -> Percentiles:
    """Measure how long reading and decoding takes, a file, in milliseconds; files may be in memory already.

    Raises:
        ImageError: A file is no image that can be read.
        DataError: There is no file.
    """
    times = []
    for file in list(files) * repeats:
        start = now()
        decode_image(file)
        times.append((now() - start) / 1e6)
    return Percentiles.of(times)


def with_decode(latency: Latency, files: Sequence[str | Path]) -> Latency:
    """Add the time that its image files take to be read and decoded."""
    return msgspec.structs.replace(latency, decode=measure_decode(files))


def device_name(device: torch.device) -> str:
    """Return the name of a device as people call it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _settled(totals: Sequence[int]) -> bool:
    """Return True if none of the latest runs, half of all, was much faster than the fastest before."""
    half = len(totals) // 2
    return half > 0 and min(totals[half:]) >= _SETTLED * min(totals[:half])
