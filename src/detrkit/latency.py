"""How long a detector takes, as numbers; free of torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from detrkit.errors import DataError


@dataclasses.dataclass(frozen=True)
class Percentiles:
    """How long something takes, in milliseconds: half of the runs take at most ``p50``, and so on."""

    p50: float
    p90: float
    p95: float
    p99: float
    min: float
    mean: float

    @classmethod
    def of(cls, milliseconds: Sequence[float] | np.ndarray) -> Percentiles:
        """Those of some runs; between two runs they are interpolated.

        Raises:
            DataError: There is no run.
        """
        values = np.asarray(milliseconds, dtype=np.float64)
        if values.size == 0:
            raise DataError("there are no times to take percentiles of; measure at least one run")
        p50, p90, p95, p99 = np.percentile(values, (50, 90, 95, 99)).tolist()
        return cls(p50, p90, p95, p99, float(values.min()), float(values.mean()))


@dataclasses.dataclass(frozen=True)
class Latency:
    """How long a detector takes from pixels in memory to detections, by stage.

    Times are of a whole batch, which is what each of its images waits for. The percentiles of the stages do not
    add up to those of the total, since not all stages are slow in the same run.

    Args:
        preprocess: From uint8 images to the network's input, on the device.
        model: The network.
        postprocess: From its outputs to detections in pixels, on the host.
        total: All three.
        batch_size: Images at once.
        images: Different images that were used.
        runs: Timed, after the warm-up.
        warm_up: Runs before, which do not count.
        device: As people call it.
        threads: That torch may use on the CPU for one operation.
        decode: Reading and decoding an image file, each; not in ``total``. None where no files were read.
    """

    preprocess: Percentiles
    model: Percentiles
    postprocess: Percentiles
    total: Percentiles
    batch_size: int
    images: int
    runs: int
    warm_up: int
    device: str
    threads: int
    decode: Percentiles | None = None

    @property
    def images_per_s(self) -> float:
        """Images a second, one batch after the other."""
        return 1000 * self.batch_size / self.total.mean

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON; times in milliseconds."""
        stages = ("preprocess", "model", "postprocess", "total")
        facts = ("batch_size", "images", "runs", "warm_up", "device", "threads")
        return {
            **{f"{name}_ms": dataclasses.asdict(getattr(self, name)) for name in stages},
            "decode_ms": None if self.decode is None else dataclasses.asdict(self.decode),
            "images_per_s": self.images_per_s,
            **{name: getattr(self, name) for name in facts},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Latency:
        """The inverse of :meth:`to_dict`."""
        stages = ("preprocess", "model", "postprocess", "total")
        decode = data["decode_ms"]
        fields: dict[str, Any] = {name: Percentiles(**data[f"{name}_ms"]) for name in stages}
        fields |= {name: data[name] for name in ("batch_size", "images", "runs", "warm_up", "device", "threads")}
        return cls(**fields, decode=None if decode is None else Percentiles(**decode))
