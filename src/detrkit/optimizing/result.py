"""The result of a search: points, the frontier, the recommended point, and why it is not a faster one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from detrkit.files import to_plain
from detrkit.optimizing.bench import Point
from detrkit.optimizing.search import find_knee, frontier
from detrkit.visual.table import Column, Table, Value, columns

VERSION = 1
KNEE = "knee"
"""Name of the recommended point."""

_MOST_REASONS = 3


@dataclasses.dataclass(frozen=True)
class Optimization:
    """The frontier of one model on one machine.

    Args:
        model: Name of the model.
        data: Path of the annotations.
        split: Name of the split.
        images: Images in it.
        machine: System and processor.
        gate: AP points that the recommended point may lose, at the worse end of the interval.
        points: Points measured, the whole model in the reference runtime first.
        refused: Why reduced precision is not offered.
        throughput: Images a second by batch size, of points by name.
        picked: Bundle that was written; empty if none was.
    """

    model: str
    data: str
    split: str
    images: int
    machine: str
    gate: float
    points: Sequence[Point]
    refused: Sequence[str]
    throughput: Mapping[str, Mapping[int, float]] = dataclasses.field(default_factory=dict)
    picked: str = ""

    @property
    def whole(self) -> Point:
        """The whole model in the reference runtime, float32."""
        return self.points[0]

    @property
    def knee(self) -> Point | None:
        """The fastest point whose loss is surely below the gate; None if none is faster than the whole model."""
        return find_knee(self.points, self.gate)

    @property
    def front(self) -> list[Point]:
        """Points than which none is both faster and better, the fastest first."""
        return frontier(self.points)

    def find(self, name: str) -> Point | None:
        """Return the point of a name, or the recommended one for :data:`KNEE`."""
        if name == KNEE:
            return self.knee
        return next((point for point in self.points if point.name == name), None)

    def milliseconds(self, point: Point) -> float:
        """Return the time of an image: the share of the whole model's, times the whole model's median.

        Each point took turns with the whole model, so that points measured under other load compare.
        """
        own = self.whole.speed["ms"]
        return point.share * (own or math.nan)

    def verdict(self) -> list[str]:
        """Say what is recommended, and what keeps faster points from it."""
        knee = self.knee
        if knee is None:
            head = f"nothing is faster than the whole model at an AP loss surely below {self.gate:g} points"
        else:
            head = (
                f"recommended: {knee.name}, {1 / knee.share:.2f} times as fast as the whole model in "
                f"{self.whole.runtime} float32, AP {100 * knee.ap:.1f} instead of {100 * self.whole.ap:.1f}, "
                f"{knee.loss_text}"
            )
        limit = 1.0 if knee is None else knee.share
        faster = sorted((point for point in self.points if point.share < limit), key=lambda point: point.loss)
        return [head, *(self._reason(point) for point in faster[:_MOST_REASONS])]

    def table(self) -> Table:
        """Return the points, the fastest first."""
        heads = [
            *(Column("point"), Column(""), *columns("count", "layers", "queries", "size"), Column("runtime")),
            *(Column("AP", "percent", bar=True), *columns("number", "loss", "at worst", digits=2)),
            *(Column("ms", "number", bar=True), Column("times as fast", "number", digits=2)),
        ]
        front, knee = self.front, self.knee
        rows: list[list[Value]] = []
        for point in sorted(self.points, key=lambda point: point.share):
            mark = "recommended" if point is knee else "frontier" if point in front else ""
            mark = "whole model" if point is self.whole else mark
            variant = point.variant
            losses = [loss if math.isfinite(loss) else None for loss in (point.loss, point.worst_loss)]
            times = [None, None] if point.share == math.inf else [self.milliseconds(point), 1 / point.share]
            kept = [variant.decoder_layers, len(variant.queries), variant.eval_size]
            rows.append([point.name, mark, *kept, point.runtime, point.ap, *losses, *times])
        note = (
            "AP loss in points against the whole model, and the worse end of its 95 % interval by resampling the "
            f"{self.images:,} images; times from pixels in memory to detections, one image at a time."
        )
        return Table(heads, rows, f"{self.model} on {self.machine}", [note])

    def lines(self) -> list[str]:
        """Return table and verdict as text."""
        return [*self.table().lines(), *self.refused, *self.verdict(), *self.throughput_lines()]

    def throughput_lines(self) -> list[str]:
        """Return images a second by batch size."""
        return [
            f"{name}: images a second " + ", ".join(f"{rate:.1f} in batches of {n}" for n, rate in rates.items())
            for name, rates in self.throughput.items()
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return the content for JSON: AP and differences 0 to 1, times in milliseconds."""
        plain = ("model", "data", "split", "images", "machine", "gate", "refused", "picked")
        front, knee = self.front, self.knee
        return {
            "version": VERSION,
            **{name: to_plain(getattr(self, name)) for name in plain},
            "recommended": None if knee is None else knee.name,
            "verdict": self.verdict(),
            "throughput": to_plain(self.throughput, str_keys=True),
            "points": [
                {
                    "name": point.name,
                    **to_plain(point),
                    "times_as_fast": None if point.share == math.inf else 1 / point.share,
                    "frontier": point in front,
                }
                for point in self.points
            ],
        }

    def _reason(self, point: Point) -> str:
        told = f"not {point.name}, {1 / point.share:.2f} times as fast: {point.loss_text}"
        if point.loss == math.inf:
            return f"{told}; too few images hold objects"
        if point.loss >= self.gate:
            return f"{told}, beyond the gate of {self.gate:g}"
        reach = point.worst_loss - point.loss
        needed = self.images * (reach / (self.gate - point.loss)) ** 2
        return f"{told}; {self.images:,} images cannot tell, about {needed:,.0f} would if that is the true loss"
