"""Search of the frontier: one factor at a time, then the combinations that promise most."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

from detrkit.export.variant import Variant
from detrkit.optimizing.bench import REFERENCE, Bench, Point
from detrkit.runtimes.engines import EXACT

QUERIES = (200, 100, 50, 25)
SIZES = (0.8, 0.64)
"""Shares of the evaluation size."""
MOST_COMBINATIONS = 8
MOST_REDUCED = 5
"""Variants that are measured in a runtime of reduced precision."""

_SIZE_STEP = 16
_LEAST_SIZE = 64
_HOPEFUL = 2.0
"""Times the gate that a combination's losses, added up, may come to: they are known to no more than that."""


def search_frontier(bench: Bench, gate: float) -> tuple[list[Point], list[str]]:
    """Measure what may be on the frontier.

    Args:
        bench: Measures the model's variants.
        gate: AP points that may be lost.

    Returns:
        Points, the whole model in the reference runtime first; and why reduced precision is not offered.
    """
    # the model as it is, in each runtime
    points = [bench.measure(bench.whole, runtime) for runtime in bench.runtimes()]
    points.sort(key=lambda point: point.runtime != REFERENCE)
    exact = min((point for point in points if point.runtime in EXACT), key=lambda point: point.share)
    # one factor at a time, then combinations, in the fastest runtime in float32
    factors = [[bench.measure(variant, exact.runtime) for variant in one] for one in single_factors(bench)]
    promising = [bench.measure(variant, exact.runtime) for variant in combine(exact, factors, gate)]
    points += [*itertools.chain(*factors), *promising]
    # reduced precision, where the whole model bears it and it is faster
    refused = []
    for reduced in [point for point in points if point.runtime not in EXACT]:
        if reduced.worst_loss > gate or reduced.share >= exact.share:
            refused.append(
                f"{reduced.runtime} is not offered: {reduced.loss_text}, with a gate of {gate:g}, "
                f"{1 / reduced.share:.2f} times as fast as the whole model, {exact.runtime} {1 / exact.share:.2f}"
            )
            points.remove(reduced)
            continue
        base = frontier([point for point in points if point.runtime == exact.runtime])
        base = [point for point in base if point.loss <= gate and point.variant != bench.whole]
        points += [bench.measure(point.variant, reduced.runtime) for point in base[:MOST_REDUCED]]
    return points, refused


def single_factors(bench: Bench) -> list[list[Variant]]:
    """Return variants that differ from the whole in one factor: decoder layers, queries, size."""
    whole = bench.whole
    counts = [count for count in QUERIES if count < len(whole.queries)]
    sizes = {round(share * whole.eval_size / _SIZE_STEP) * _SIZE_STEP for share in SIZES}
    sizes = {size for size in sizes if _LEAST_SIZE <= size < whole.eval_size}
    return [
        [dataclasses.replace(whole, decoder_layers=kept) for kept in range(whole.decoder_layers - 1, 0, -1)],
        [dataclasses.replace(whole, queries=tuple(sorted(bench.query_order[:count]))) for count in counts],
        [dataclasses.replace(whole, eval_size=size) for size in sorted(sizes, reverse=True)],
    ]


def combine(whole: Point, factors: Sequence[Sequence[Point]], gate: float) -> list[Variant]:
    """Return the combinations that promise most, the fastest first.

    What a combination takes is guessed as the product of what its factors take, what it loses as their sum.

    Args:
        whole: The whole model.
        factors: Variants that differ from it in one factor, for each factor.
        gate: AP points that may be lost.
    """
    guesses = []
    for parts in itertools.product(*([whole, *one] for one in factors)):
        changed = [part for part in parts if part is not whole]
        loss = sum(max(part.loss, 0.0) for part in changed)
        if len(changed) < 2 or loss > _HOPEFUL * gate:
            continue
        share = whole.share
        for part in changed:
            share *= part.share / whole.share
        layers, queries, size = (part.variant for part in parts)
        guesses.append((share, loss, Variant(layers.decoder_layers, queries.queries, size.eval_size)))
    guesses.sort(key=lambda guess: guess[:2])
    best: list[Variant] = []
    least = float("inf")
    for _, loss, variant in guesses:
        if loss < least:
            best.append(variant)
            least = loss
    others = [variant for _, _, variant in guesses if variant not in best]
    chosen = [*best, *others][:MOST_COMBINATIONS]
    return [variant for _, _, variant in guesses if variant in chosen]


def frontier(points: Sequence[Point]) -> list[Point]:
    """Return the points than which none is both faster and better, the fastest first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda point: (point.share, -point.ap)):
        if not best or point.ap > best[-1].ap:
            best.append(point)
    return best


def find_knee(points: Sequence[Point], gate: float) -> Point | None:
    """Return the fastest point whose loss, at the worse end of its interval, is below the gate."""
    good = [point for point in points if point.worst_loss < gate and point.share < 1]
    return min(good, key=lambda point: point.share, default=None)
