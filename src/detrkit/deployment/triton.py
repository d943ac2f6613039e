"""What Triton has to know of a bundle's graph."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from detrkit.errors import MissingExtraError, UsageError
from detrkit.runtimes.bundle import Bundle

_TYPES = {"tensor(uint8)": "TYPE_UINT8", "tensor(int64)": "TYPE_INT64", "tensor(float)": "TYPE_FP32"}
_MOST_BATCH = 8


def triton_facts(graph: bytes, bundle: Bundle, path: str) -> dict[str, Any]:
    """Return inputs, outputs and greatest batch of a graph, as ONNX Runtime reads them of it.

    Where the number of images is free, Triton counts it itself, and may put requests of one shape together.

    Raises:
        UsageError: The graph is in OpenVINO's format, or there is another for masks.
    """
    if bundle.manifest.masks:
        raise UsageError(
            f"{path} has masks, which Triton would need a second graph and NumPy for; detrkit serve speaks its "
            "protocol too: deploy to another target"
        )
    if bundle.manifest.graphs[0].weights_file:
        raise UsageError(
            f"{path} holds an OpenVINO graph, expected an ONNX one; export it without --format openvino"
        )
    inputs, outputs = graph_tensors(graph)
    is_free = bundle.manifest.preprocessing.fixed_batch is None
    most = _MOST_BATCH if is_free else 0

    def described(tensors: list[tuple[str, str, list[int]]]) -> list[dict[str, Any]]:
        return [
            {"name": name, "data_type": kind, "dims": dims[1:] if is_free else dims}
            for name, kind, dims in tensors
        ]

    return {"inputs": described(inputs), "outputs": described(outputs), "max_batch": most}


def graph_tensors(graph: bytes) -> tuple[list[tuple[str, str, list[int]]], list[tuple[str, str, list[int]]]]:
    """Return name, Triton's type and sides (-1: free) of each input and output of an ONNX graph."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("onnxruntime", "runtime") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    found = []
    for tensors in (session.get_inputs(), session.get_outputs()):
        found.append(
            [
                (one.name, _TYPES[one.type], [side if isinstance(side, int) else -1 for side in one.shape])
                for one in tensors
            ]
        )
    return found[0], found[1]


def check_config(path: Path, graph: bytes) -> str:
    """Read a configuration back by Triton's own definitions, and compare it with the graph; empty if they agree.

    Raises:
        ImportError: Triton's client is not installed.
    """
    parser: Any = importlib.import_module("google.protobuf.text_format")
    definitions: Any = importlib.import_module("tritonclient.grpc.model_config_pb2")
    try:
        config = parser.Parse(path.read_text(encoding="utf-8"), definitions.ModelConfig())
    except parser.ParseError as error:
        return str(error)
    extra = [-1] if config.max_batch_size else []
    for said, real in zip((config.input, config.output), graph_tensors(graph), strict=True):
        told = [(one.name, definitions.DataType.Name(one.data_type), [*extra, *one.dims]) for one in said]
        if told != real:
            return f"it has {told}, the graph {real}"
    return ""
