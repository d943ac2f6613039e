"""The search, on a made-up model whose factors cost and save known shares."""

from __future__ import annotations

import dataclasses
import json

import pytest

from detrkit.export.variant import Variant
from detrkit.optimizing.bench import Point
from detrkit.optimizing.page import write_frontier
from detrkit.optimizing.result import Optimization
from detrkit.optimizing.search import MOST_COMBINATIONS, combine, frontier, search_frontier

WHOLE = Variant(3, tuple(range(100)), 320)
RUNTIMES = {"onnxruntime": (1.0, 0.0), "openvino": (0.8, 0.0), "openvino-bf16": (0.5, 0.1)}


def point(variant: Variant, runtime: str, share: float, loss: float, reach: float = 0.2) -> Point:
    ends = {"difference": -loss / 100, "low": -(loss + reach) / 100, "high": -(loss - reach) / 100}
    speed = {"ms": 20 * share, "whole_ms": 20.0, "p95_ms": 25 * share}
    return Point(variant, runtime, {"AP": 0.5 - loss / 100, "AP50": 0.8, **ends}, speed)


class MadeUpBench:
    """A layer saves a tenth and costs 0.1 points, half of the queries likewise, smaller images much of both."""

    whole = WHOLE
    query_order = tuple(reversed(range(100)))

    def __init__(self, **runtimes: tuple[float, float]):
        self._runtimes = {**RUNTIMES, **runtimes}
        self.measured: list[Point] = []

    def runtimes(self) -> list[str]:
        return list(self._runtimes)

    def measure(self, variant: Variant, runtime: str) -> Point:
        share, loss = self._runtimes[runtime]
        lost_layers, size = 3 - variant.decoder_layers, variant.eval_size / 320
        share *= (1 - 0.1 * lost_layers) * (0.9 if len(variant.queries) < 100 else 1) * size**2
        loss += 0.1 * lost_layers + (0.1 if len(variant.queries) < 100 else 0) + 4 * (1 - size)
        reach = 0.0 if variant == WHOLE and runtime in ("onnxruntime", "openvino") else 0.2
        self.measured.append(point(variant, runtime, share, loss, reach))
        return self.measured[-1]


def result(points: list[Point], refused: list[str], gate: float = 0.5) -> Optimization:
    return Optimization("nano", "val.json", "val", 87, "a machine", gate, points, refused)


def test_the_fastest_point_that_surely_loses_less_than_the_gate_is_recommended(tmp_path):
    bench = MadeUpBench()
    points, refused = search_frontier(bench, 0.5)
    found = result(points, refused)
    assert refused == []
    assert found.whole.name == "d3-q100-s320@onnxruntime"
    assert found.knee is not None
    assert found.knee.runtime == "openvino-bf16"
    assert found.knee.worst_loss < 0.5
    faster = [one for one in points if one.share < found.knee.share]
    assert faster
    assert all(one.worst_loss >= 0.5 for one in faster)
    assert all(a.share < b.share and a.ap < b.ap for a, b in zip(found.front, found.front[1:], strict=False))
    assert len({one.name for one in bench.measured}) == len(bench.measured)  # nothing twice
    # the most used queries are kept, in their own order
    fewer = next(one for one in points if len(one.variant.queries) == 25)
    assert fewer.variant.queries == tuple(range(75, 100))
    # told to people, programs and on the page
    verdict = found.verdict()
    assert verdict[0].startswith(f"recommended: {found.knee.name}")
    assert len(verdict) > 1
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["recommended"] == found.knee.name
    write_frontier(tmp_path, found)
    page = (tmp_path / "optimize.html").read_text(encoding="utf-8")
    assert page.count(f"{found.knee.name}\n") + page.count(found.knee.name) >= 2
    assert (tmp_path / "optimize.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("share_and_loss", "why"), [((0.5, 0.7), "AP loss 0.70 points"), ((0.9, 0.0), "1.11 times as fast")]
)
def test_reduced_precision_that_loses_too_much_or_saves_nothing_is_refused_with_figures(share_and_loss, why):
    points, refused = search_frontier(MadeUpBench(**{"openvino-bf16": share_and_loss}), 0.5)
    assert len(refused) == 1
    assert refused[0].startswith("openvino-bf16 is not offered")
    assert why in refused[0]
    assert all(one.runtime != "openvino-bf16" for one in points)


def test_without_a_good_point_the_reasons_are_said():
    whole = point(WHOLE, "onnxruntime", 1.0, 0.0, 0.0)
    small, shallow = (dataclasses.replace(WHOLE, eval_size=256), dataclasses.replace(WHOLE, decoder_layers=1))
    found = result([whole, point(small, "onnxruntime", 0.5, 2.0), point(shallow, "onnxruntime", 0.9, 0.4)], [])
    assert found.knee is None
    assert found.find("knee") is None
    nothing, unsure, beyond = found.verdict()
    assert "nothing is faster" in nothing
    assert "87 images cannot tell, about 348 would" in unsure  # the interval is to be half as wide
    assert "AP loss 2.00 points" in beyond
    assert "beyond the gate of 0.5" in beyond
    assert found.to_dict()["recommended"] is None
    # what has no interval, for want of images with objects, is never recommended
    blank = dataclasses.replace(whole, accuracy={"AP": 0.5, "AP50": 0.5, "difference": None, "low": None})
    blank = dataclasses.replace(blank, speed={"ms": 10.0, "whole_ms": 20.0, "p95_ms": 30.0}, variant=small)
    found = result([whole, blank], [])
    assert found.knee is None
    assert "too few images hold objects" in found.verdict()[1]
    json.dumps(found.to_dict(), allow_nan=False)


def test_combinations_are_few_hopeful_and_of_several_factors():
    bench = MadeUpBench()
    whole = bench.measure(WHOLE, "openvino")
    factors = [
        [bench.measure(dataclasses.replace(WHOLE, decoder_layers=kept), "openvino") for kept in (2, 1)],
        [bench.measure(dataclasses.replace(WHOLE, queries=tuple(range(n))), "openvino") for n in (50, 25)],
        [bench.measure(dataclasses.replace(WHOLE, eval_size=256), "openvino")],
    ]
    found = combine(whole, factors, 0.35)
    assert 0 < len(found) <= MOST_COMBINATIONS
    assert all(variant.eval_size == 320 for variant in found)  # 0.8 points are not within twice the gate
    assert len(combine(whole, factors, 50.0)) == MOST_COMBINATIONS
    assert combine(whole, factors, 0.01) == []
    assert frontier([whole]) == [whole]
