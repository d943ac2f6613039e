"""Engines: precision that is asked for, and graphs of their own for shapes that come often."""

import ctypes
import gc
import types

import numpy as np
import pytest

from detrkit.errors import BundleError, UsageError
from detrkit.runtimes import engines
from detrkit.runtimes.engines import INPUTS, make_engine
from tests.support.bundles import mean_graph, noise

GRAPH = mean_graph().SerializeToString()


def inputs_of(height: int, width: int, real: tuple[int, int] | None = None) -> dict[str, np.ndarray]:
    image = noise((height, width))
    rows, columns = real or (height, width)
    image[rows:] = image[:, columns:] = 0
    arrays = (image[None], np.array([[rows, columns]]), np.array([[100, 100]]))
    return dict(zip(INPUTS, arrays, strict=True))


@pytest.fixture
def engine(monkeypatch):
    pytest.importorskip("openvino")
    monkeypatch.setattr(engines, "_WORTH", 0)
    monkeypatch.setattr(engines, "OWN_SHAPES", 2)
    return make_engine(GRAPH, "openvino", 1)


def test_shapes_that_come_again_get_a_graph_of_their_own_within_a_bound(engine):
    reference = make_engine(GRAPH, "onnxruntime", 1)
    sides = (70, 80, 70, 80, 80, 90, 90, 70, 70, 100)
    for side in sides:
        for real in (None, (side - 5, side)):  # padded ones are another case
            given = inputs_of(side, side, real)
            for one, other in zip(engine.run(given), reference.run(given), strict=True):
                assert np.allclose(one, other, atol=1e-4)
            assert len(engine._own) <= 2
    assert [shape[0][1] for shape in engine._own] == [70, 70]  # those used last of those that came twice


def test_the_first_shape_gets_its_own_at_once_and_needs_no_other(engine):
    for _ in range(3):
        engine.run(inputs_of(70, 80))
    assert (list(engine._own), engine._any) == ([((1, 70, 80, 3), True)], None)


def test_so_many_shapes_are_watched_and_no_more(engine, monkeypatch):
    monkeypatch.setattr(engines, "_WATCHED", 3)
    for side in range(64, 72):
        engine.run(inputs_of(side, 64))
    assert len(engine._spent) == 3


def test_bf16_is_refused_where_the_cpu_has_none(monkeypatch):
    pytest.importorskip("openvino")
    old = types.SimpleNamespace(get_property=lambda *_: ["FP32", "INT8"])
    monkeypatch.setattr(engines, "openvino_core", lambda: old)
    with pytest.raises(UsageError, match=r"openvino-bf16.*avx512_bf16.*take openvino"):
        make_engine(GRAPH, "openvino-bf16", 1)


def test_engines_that_end_leave_the_stack_of_signals_as_it_was():
    """Or the end of a data worker would be a segmentation fault; see ``openvino_core``."""
    pytest.importorskip("openvino")

    def stack() -> int:
        found = (ctypes.c_void_p * 3)()  # its address, flags, size
        assert ctypes.CDLL(None).sigaltstack(None, found) == 0
        return found[0] or 0

    first, second = make_engine(GRAPH, "openvino", 1), make_engine(GRAPH, "openvino", 1)
    for engine in (first, second):
        engine.run(inputs_of(64, 64))
    before = stack()
    del engine, first
    gc.collect()
    assert stack() == before
    del second
    gc.collect()
    assert stack() == before


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_what_cannot_be_opened_or_run_is_told(name):
    pytest.importorskip(name)
    with pytest.raises(BundleError, match="cannot open"):
        make_engine(GRAPH[:100], name, 1)
    engine = make_engine(GRAPH, name, 1)
    with pytest.raises(BundleError, match="cannot run"):
        engine.run({**inputs_of(64, 64), "images": np.zeros((1, 64, 64, 4), np.uint8)})
    for asked in ({"threads": 0}, {"streams": 0}):
        with pytest.raises(UsageError, match=next(iter(asked))):
            make_engine(GRAPH, name, **asked)
