"""Latency of a detector as numbers; free of torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from detrkit.errors import DataError
from detrkit.files import to_plain


class Percentiles(msgspec.Struct, frozen=True):
    """Time that something takes, in milliseconds: half of the runs take at most ``p50``, and so on."""

    p50: float
    p90: float
    p95: float
    p99: float
    min: float
    mean: float

    @classmethod
    def of(cls, milliseconds: Sequence[float] | np.ndarray) -> Percentiles:
        """Take the percentiles of some runs; between two runs they are interpolated.

        Raises:
            DataError: There is no run.
        """
        values = np.asarray(milliseconds, dtype=np.float64)
        if values.size == 0:
            raise DataError("there are no times to take percentiles of; measure at least one run")
        p50, p90, p95, p99 = np.percentile(values, (50, 90, 95, 99)).tolist()
        return cls(p50, p90, p95, p99, float(values.min()), float(values.mean()))


class Latency(msgspec.Struct, frozen=True):
    """Time that a detector takes from pixels in memory to detections, by stage.

    Times are of a whole batch, which is what each of its images waits for. The percentiles of the stages do not
    add up to those of the total, since not all stages are slow in the same run.

    Args:
        preprocess: From uint8 images to the network's input, on the device.
        model: The network.
        postprocess: From its outputs to detections in pixels, on the host.
        total: All three.
        batch_size: Images at once.
        images: Number of different images that were used.
        runs: Number of timed runs, after the warm-up.
        warm_up: Number of runs before, which do not count.
        device: Name of the device.
        threads: Threads that torch may use on the CPU for one operation; of a bundle, those of all its runs.
        decode: Reading and decoding an image file, each; not in ``total``. None where no files were read.
        streams: Batches at once; the times of each are then longer.
        busy_s: Seconds in which all the runs were done; None for the sum of their times, one after the other.
    """

    preprocess: Percentiles = msgspec.field(name="preprocess_ms")
    model: Percentiles = msgspec.field(name="model_ms")
    postprocess: Percentiles = msgspec.field(name="postprocess_ms")
    total: Percentiles = msgspec.field(name="total_ms")
    batch_size: int
    images: int
    runs: int
    warm_up: int
    device: str
    threads: int
    decode: Percentiles | None = msgspec.field(name="decode_ms", default=None)
    streams: int = 1
    busy_s: float | None = None

    @property
    def images_per_s(self) -> float:
        """Images a second, as many batches at once as there are streams."""
        if self.busy_s is not None:
            return self.batch_size * self.runs / self.busy_s
        return 1000 * self.batch_size / self.total.mean

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers ready for JSON; times in milliseconds."""
        return {**to_plain(self), "images_per_s": self.images_per_s}
