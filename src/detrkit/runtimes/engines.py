"""Programs that run a graph on the CPU: ONNX Runtime and OpenVINO.

Shapes: B images, H x W padded height and width, Q queries.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from detrkit.errors import BundleError, MissingExtraError, UsageError
from detrkit.machine import usable_cpus

INPUTS = ("images", "sizes", "original_sizes")
"""Inputs of a graph: uint8 ``[B, H, W, 3]`` RGB, sizes before padding int64 ``[B, 2]``, sizes of the files."""


class Engine(Protocol):
    """A graph that is ready to run, in several threads at once if it has several streams.

    Args:
        name: Name of the runtime, one of :data:`ENGINES`.
        version: Its version.
        precision: Numbers that it computes in, where the graph has float32.
        threads: Threads of all runs together.
        streams: Runs at once.
    """

    name: str
    version: str
    precision: str
    threads: int
    streams: int

    def run(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Return the outputs of the graph, in its order."""


class OnnxRuntimeEngine:
    """A graph in ONNX Runtime, float32."""

    name = "onnxruntime"
    precision = "float32"

    def __init__(self, graph: bytes, threads: int, weights: bytes | None = None, streams: int = 1):
        if weights is not None:
            raise UsageError("the bundle holds an OpenVINO graph, which only the runtime openvino runs")
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingExtraError("onnxruntime", "runtime") from error
        self.version: str = onnxruntime.__version__
        self.threads = threads
        self.streams = streams
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = max(1, threads // streams)
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.load_model_format", "ONNX")  # what was checked; not guessed
        # With one thread a session works in the thread that asks, so that one will do; more belong to a session.
        sessions = 1 if options.intra_op_num_threads == 1 else streams
        try:
            self._sessions: list[Any] = [
                onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
                for _ in range(sessions)
            ]
        except Exception as error:  # its exceptions have no base but this
            raise BundleError(f"ONNX Runtime {self.version} cannot open the graph: {_line(error)}") from error
        self._names = [wanted.name for wanted in self._sessions[0].get_inputs()]
        self._free: queue.LifoQueue[Any] = queue.LifoQueue()
        for number in range(streams):
            self._free.put(self._sessions[number % sessions])

    def run(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Return the outputs of the graph, in its order."""
        session = self._free.get()
        try:
            return list(session.run(None, {name: inputs[name] for name in self._names}))
        except Exception as error:
            raise BundleError(f"ONNX Runtime {self.version} cannot run the graph: {_line(error)}") from error
        finally:
            self._free.put(session)


OWN_SHAPES = 4
"""Shapes of inputs that have a compiled graph of their own, at most: for detr-r50 each takes 300 MB."""
_WORTH = 10
"""Time spent in a shape, in compilations, from which one of its own is worth it: it saves 5 to 15 %."""
_WATCHED = 64  # shapes whose time is kept


@functools.cache
def openvino_core() -> Any:
    """Return OpenVINO's core, one for the process.

    Each sets the stack on which signals are handled, and puts the one before it back when it is freed: of two that
    are freed in the order in which they were made, the second puts back what is no longer there, and the next
    signal, such as that of a data worker's end, is a segmentation fault (seen in OpenVINO 2026.4).
    """
    import openvino

    toolkit: Any = openvino
    return toolkit.Core()


class OpenVinoEngine:
    """A graph in OpenVINO, in the precision asked for, whatever the CPU would do by itself.

    A graph that is compiled for one shape is faster than one for all. The first shape gets its own at once, others
    as soon as enough time was spent in them. Where no image is padded, sizes are constants of the compiled graph,
    which so computes neither mask nor position embeddings anew.
    """

    def __init__(
        self,
        graph: bytes,
        threads: int,
        weights: bytes | None = None,
        streams: int = 1,
        *,
        precision: str = "float32",
    ):
        try:
            import openvino
        except ImportError as error:
            raise MissingExtraError("openvino", "openvino") from error
        self._toolkit: Any = openvino
        self.name = _OPENVINO[precision]
        self.precision = precision
        self.version: str = str(self._toolkit.__version__).partition("-")[0]
        self.threads = threads
        self.streams = streams
        self._settings = {
            "INFERENCE_PRECISION_HINT": {"float32": "f32"}.get(precision, precision),
            "PERFORMANCE_HINT": "LATENCY" if streams == 1 else "THROUGHPUT",
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": threads,
        }
        self._core = openvino_core()
        if precision == "bf16" and "BF16" not in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise UsageError(
                f"runtime is {self.name}, but this CPU does not multiply bf16 numbers itself (avx512_bf16 or "
                "amx_bf16), and would be slower than in float32; take openvino"
            )
        try:
            self._graph: Any = self._core.read_model(graph, weights or b"")
        except Exception as error:
            raise BundleError(f"OpenVINO {self.version} cannot open the graph: {_line(error)}") from error
        images = [one for one in self._graph.inputs if "images" in one.get_names()]
        nhwc = not images or images[0].partial_shape[3] == 3
        self._sides = slice(1, 3) if nhwc else slice(2, 4)
        self._has_images = bool(images)  # a graph of masks has none, and is compiled once for all shapes
        self._lock = threading.Lock()
        self._any: _Compiled | None = None
        self._own: collections.OrderedDict[_Shape, _Compiled] = collections.OrderedDict()
        self._spent: collections.OrderedDict[_Shape, float] = collections.OrderedDict()

    def run(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Return the outputs of the graph, in its order."""
        try:
            shape = self._shape_of(inputs) if self._has_images else None
            compiled = self._choose(shape)
            start = time.perf_counter()
            found = compiled.run(inputs)
            if shape is not None and compiled is self._any:
                with self._lock:
                    self._spend(shape, time.perf_counter() - start)
        except Exception as error:
            raise BundleError(f"OpenVINO {self.version} cannot run the graph: {_line(error)}") from error
        return found

    def _choose(self, shape: _Shape | None) -> _Compiled:
        """Return the graph for a shape: its own, one that is compiled now, or that for all."""
        with self._lock:
            if shape is not None and shape in self._own:
                self._own.move_to_end(shape)
                return self._own[shape]
            spent = self._spent.get(shape, 0.0) if shape is not None else -1.0
            pays = self._any is not None and spent > _WORTH * self._any.seconds
            if shape is not None and (pays or not self._own):
                self._spent.pop(shape, None)
                if len(self._own) == OWN_SHAPES:
                    self._own.popitem(last=False)
                self._own[shape] = self._compile(shape)
                return self._own[shape]
            if self._any is None:
                self._any = self._compile(None)
            return self._any

    def _shape_of(self, inputs: Mapping[str, np.ndarray]) -> _Shape:
        images = inputs["images"].shape
        return tuple(images), bool((inputs["sizes"] == images[self._sides]).all())

    def _spend(self, shape: _Shape, seconds: float) -> None:
        self._spent[shape] = self._spent.pop(shape, 0.0) + seconds
        if len(self._spent) > _WATCHED:
            self._spent.popitem(last=False)

    def _compile(self, shape: _Shape | None) -> _Compiled:
        start = time.perf_counter()
        model = self._graph.clone()
        if shape is not None:
            images, whole = shape
            wanted = model.input("images").partial_shape
            if not wanted.compatible(self._toolkit.PartialShape(list(images))):
                raise ValueError(f"images have the shape {list(images)}, expected {wanted}")
            model.reshape({"images": images, "sizes": [images[0], 2], "original_sizes": [images[0], 2]})
            if whole:
                self._fix_sizes(model, images)
        compiled = self._core.compile_model(model, "CPU", self._settings)
        return _Compiled(compiled, time.perf_counter() - start)

    def _fix_sizes(self, model: Any, images: tuple[int, ...]) -> None:
        """Put the sizes of images that fill the whole batch into a model, instead of an input."""
        sizes = np.tile(np.array(images[self._sides], dtype=np.int64), (images[0], 1))
        [parameter] = [one for one in model.get_parameters() if "sizes" in one.output(0).get_names()]
        constant = self._toolkit.op.Constant(sizes)
        for target in parameter.output(0).get_target_inputs():
            target.replace_source_output(constant.output(0))
        model.remove_parameter(parameter)


_Shape = tuple[tuple[int, ...], bool]
"""Shape of a batch, and whether its images fill it."""


class _Compiled:
    """A model that OpenVINO compiled, with as many requests as run at once.

    Args:
        compiled: The model.
        seconds: Time that it took.
    """

    def __init__(self, compiled: Any, seconds: float):
        self.seconds = seconds
        self._compiled = compiled
        self._names = [port.get_any_name() for port in compiled.inputs]
        self._outputs = list(compiled.outputs)
        self._free: list[Any] = []

    def run(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        with self._request() as request:
            found = request.infer({name: inputs[name] for name in self._names})
            return [np.array(found[output]) for output in self._outputs]

    @contextlib.contextmanager
    def _request(self) -> Iterator[Any]:
        try:
            request = self._free.pop()  # of a list, which is safe in threads
        except IndexError:
            request = self._compiled.create_infer_request()
        try:
            yield request
        finally:
            self._free.append(request)


_OPENVINO = {"float32": "openvino", "bf16": "openvino-bf16"}

ENGINES: Mapping[str, Callable[[bytes, int, bytes | None, int], Engine]] = {
    "onnxruntime": OnnxRuntimeEngine,
    **{name: functools.partial(OpenVinoEngine, precision=precision) for precision, name in _OPENVINO.items()},
}
"""Runtimes by name, the usual one first."""

EXACT = ("onnxruntime", "openvino")
"""Runtimes that compute in float32, among which ``auto`` chooses: it never gives up precision by itself."""

AUTO = "auto"
"""The fastest runtime that is installed, measured on this machine."""


def make_engine(
    graph: bytes, runtime: str = "", threads: int | None = None, weights: bytes | None = None, streams: int = 1
) -> Engine:
    """Make a graph ready to run.

    Args:
        graph: ONNX file, or one in OpenVINO's format.
        runtime: One of :data:`ENGINES`; if empty, the first of them that runs such a graph.
        threads: Threads of all runs; those that this process may use if not given.
        weights: Weights of a graph in OpenVINO's format.
        streams: Runs at once, which share the threads.

    Raises:
        UsageError: There is no such runtime, it is not installed, or this CPU cannot compute in its precision.
        BundleError: It cannot open the graph.
    """
    runtime = runtime or ("onnxruntime" if weights is None else "openvino")
    if runtime not in ENGINES:
        raise UsageError(f"runtime is {runtime!r}, expected one of {', '.join(ENGINES)}, {AUTO}")
    for name, number in (("threads", threads), ("streams", streams)):
        if number is not None and number < 1:
            raise UsageError(f"{name} is {number}, expected 1 or more")
    return ENGINES[runtime](graph, threads or usable_cpus(), weights, streams)


def _line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))
