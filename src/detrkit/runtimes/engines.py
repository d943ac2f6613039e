"""Programs that run a graph on the CPU: ONNX Runtime and OpenVINO.

Shapes: B images, H x W padded height and width, Q queries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from detrkit.errors import BundleError, MissingExtraError, UsageError
from detrkit.runtimes.threads import usable_cpus

INPUTS = ("images", "sizes", "original_sizes")
"""Inputs of a graph: uint8 ``[B, H, W, 3]`` RGB, sizes before padding int64 ``[B, 2]``, sizes of the files."""


class Engine(Protocol):
    """A graph that is ready to run.

    Args:
        name: Name of the runtime.
        version: Its version.
        threads: Threads of one run.
    """

    name: str
    version: str
    threads: int

    def run(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Return the outputs of the graph, in its order."""


class OnnxRuntimeEngine:
    """A graph in ONNX Runtime, float32."""

    name = "onnxruntime"

    def __init__(self, graph: bytes, threads: int, weights: bytes | None = None):
        if weights is not None:
            raise UsageError("the bundle holds an OpenVINO graph, which only the runtime openvino runs")
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingExtraError("onnxruntime", "runtime") from error
        self.version: str = onnxruntime.__version__
        self.threads = threads
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session: Any = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no base but this
            raise BundleError(f"ONNX Runtime {self.version} cannot open the graph: {_line(error)}") from error
        self._names = [wanted.name for wanted in self._session.get_inputs()]

    def run(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Return the outputs of the graph, in its order."""
        try:
            return list(self._session.run(None, {name: inputs[name] for name in self._names}))
        except Exception as error:
            raise BundleError(f"ONNX Runtime {self.version} cannot run the graph: {_line(error)}") from error


class OpenVinoEngine:
    """A graph in OpenVINO, float32 whatever the CPU would do by itself."""

    name = "openvino"

    def __init__(self, graph: bytes, threads: int, weights: bytes | None = None):
        try:
            import openvino
        except ImportError as error:
            raise MissingExtraError("openvino", "openvino") from error
        toolkit: Any = openvino
        self.version: str = str(toolkit.__version__).partition("-")[0]
        self.threads = threads
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
        }
        try:
            core = toolkit.Core()
            compiled: Any = core.compile_model(core.read_model(graph, weights or b""), "CPU", settings)
        except Exception as error:
            raise BundleError(f"OpenVINO {self.version} cannot open the graph: {_line(error)}") from error
        self._names = [port.get_any_name() for port in compiled.inputs]
        self._outputs = list(compiled.outputs)
        self._request = compiled.create_infer_request()

    def run(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Return the outputs of the graph, in its order."""
        try:
            found = self._request.infer({name: inputs[name] for name in self._names})
        except Exception as error:
            raise BundleError(f"OpenVINO {self.version} cannot run the graph: {_line(error)}") from error
        return [np.array(found[output]) for output in self._outputs]


ENGINES: Mapping[str, Callable[[bytes, int, bytes | None], Engine]] = {
    "onnxruntime": OnnxRuntimeEngine,
    "openvino": OpenVinoEngine,
}
"""Runtimes by name, the usual one first."""

AUTO = "auto"
"""The fastest runtime that is installed, measured on this machine."""


def make_engine(
    graph: bytes, runtime: str = "", threads: int | None = None, weights: bytes | None = None
) -> Engine:
    """Make a graph ready to run.

    Args:
        graph: ONNX file, or one in OpenVINO's format.
        runtime: One of :data:`ENGINES`; if empty, the first of them that runs such a graph.
        threads: Threads of one run; those that this process may use if not given.
        weights: Weights of a graph in OpenVINO's format.

    Raises:
        UsageError: There is no such runtime, or it is not installed.
        BundleError: It cannot open the graph.
    """
    runtime = runtime or ("onnxruntime" if weights is None else "openvino")
    if runtime not in ENGINES:
        raise UsageError(f"runtime is {runtime!r}, expected one of {', '.join(ENGINES)}, {AUTO}")
    if threads is not None and threads < 1:
        raise UsageError(f"threads is {threads}, expected 1 or more")
    return ENGINES[runtime](graph, threads or usable_cpus(), weights)


def _line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))
