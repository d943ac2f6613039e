"""How a bundle is run for most images a second: measured on this machine as it is loaded."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from detrkit.classes import SizeHW
from detrkit.runtimes.predictor import Predictor, load
from detrkit.runtimes.verify import load_verified
from detrkit.serving.settings import ServeSettings

logger = logging.getLogger(__name__)

SIZES = (4, 8)
"""Batch sizes that are tried, as long as more is faster."""
_WORTH = 1.05  # times as many images a second that a longer wait for each image is worth
_SLOW = 4.0  # images a second; where each takes so long, it fills the processors by itself
_LEAST_S = 0.3
_LEAST_RUNS = 2


@dataclasses.dataclass(frozen=True)
class Running:
    """A way to run a bundle.

    Args:
        predictor: The bundle, ready to run.
        batch_size: Images of a batch.
        images_per_s: What that gave.
    """

    predictor: Predictor
    batch_size: int
    images_per_s: float


def choose_running(path: Path, settings: ServeSettings) -> Running:
    """Load and verify a bundle, and choose the runs at once and the batches that give most images a second.

    What gives another last digit than an image alone, with all threads, as :func:`detrkit.runtime.load` runs it,
    is not taken, however fast.

    Raises:
        BundleError: The bundle does not verify.
        UsageError: There is no such runtime, or it is not installed.
    """
    plain = load_verified(path, settings.runtime, settings.threads)
    probes = _probes(plain)
    streams = settings.streams or plain.engine.threads
    best = _fastest_size(plain, plain, probes, settings) if settings.streams in (None, 1) else None
    # as many runs at once as threads, each on one of them: nothing is shared out and waited for inside of a run
    if streams > 1:
        parallel = load(path, plain.engine.name, max(streams, plain.engine.threads), streams)
        several = _fastest_size(parallel, plain, probes, settings)
        if several and (best is None or several.images_per_s > _WORTH * best.images_per_s):
            best = several
    return best or Running(plain, plain.preprocessing.fixed_batch or 1, 0.0)


def _fastest_size(
    predictor: Predictor, plain: Predictor, probes: list[np.ndarray], settings: ServeSettings
) -> Running | None:
    """Return the batch size that is fastest, or that was asked for; None where none is exact."""
    asked = predictor.preprocessing.fixed_batch or settings.batch_size
    best: Running | None = None
    for size in (asked,) if asked else (1, *SIZES):
        if not _is_exact(predictor, plain, size, probes):
            name, streams = plain.bundle.manifest.name, predictor.engine.streams
            logger.warning("%s: %d images a batch in %d streams give other last digits", name, size, streams)
            if not asked:
                break
        rate = 0.0 if asked and settings.streams else _rate(predictor, size, probes[0])
        if best is not None and rate < _WORTH * best.images_per_s:
            break
        best = Running(predictor, size, rate)
        if rate < _SLOW:
            break
    return best


def _probes(predictor: Predictor) -> list[np.ndarray]:
    """Return pictures to try: the first golden one, and one of noise that is upright."""
    bundle = predictor.bundle
    golden = bundle.picture(bundle.manifest.golden[0].file)
    height, width = sorted(golden.shape[:2], reverse=True)
    noise = np.random.default_rng(0).integers(0, 256, (height // 8 + 1, width // 9 + 1, 3)).astype(np.uint8)
    return [golden, np.kron(noise, np.ones((8, 8, 1), dtype=np.uint8))]


def _is_exact(predictor: Predictor, plain: Predictor, size: int, probes: list[np.ndarray]) -> bool:
    """Return whether a batch gives what each of its images gives alone, to the last digit."""
    if predictor is plain and size == (plain.preprocessing.fixed_batch or 1):
        return True
    for probe in probes:
        pair = [probe, np.ascontiguousarray(probe[::-1, ::-1])]
        resized, size_hw = [plain.resize(image) for image in pair], _size_of(probe)
        alone = [plain.detect_together([image], [size_hw])[0] for image in resized]
        batch = list(itertools.islice(itertools.cycle(zip(resized, alone, strict=True)), size))
        found = predictor.detect_together([image for image, _ in batch], [size_hw] * size)
        for (_, expected), got in zip(batch, found, strict=True):
            if not all(np.array_equal(one, other) for one, other in zip(expected, got, strict=True)):
                return False
    return True


def _rate(predictor: Predictor, size: int, probe: np.ndarray) -> float:
    """Measure images a second with all streams at work."""
    images, sizes = [predictor.resize(probe)] * size, [_size_of(probe)] * size
    streams = predictor.engine.streams

    def run(until: float) -> int:
        runs = 0
        while runs < _LEAST_RUNS or time.perf_counter() < until:
            predictor.detect_together(images, sizes)
            runs += 1
        return runs

    with ThreadPoolExecutor(streams) as pool:
        list(pool.map(run, [0.0] * streams))
        start = time.perf_counter()
        runs = sum(pool.map(run, [start + _LEAST_S] * streams))
        return runs * size / (time.perf_counter() - start)


def _size_of(image: np.ndarray) -> SizeHW:
    return image.shape[0], image.shape[1]
