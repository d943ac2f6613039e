"""Formats of an exported graph: ONNX, OpenVINO's, a program of ``torch.export``, a script for TensorRT."""

from __future__ import annotations

import dataclasses
import io
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from detrkit.config import TransformConfig
from detrkit.errors import MissingExtraError, UsageError
from detrkit.export.graph import LEAST_SIDE, GraphOptions, onnx_graph, trace_graph, trace_masks
from detrkit.families.family import BuiltModel
from detrkit.runtimes.bundle import GraphRecord
from detrkit.runtimes.engines import INPUTS, openvino_core

GRAPH = "graph.onnx"
TENSORRT = "tensorrt.sh"
_MOST_BATCH = 8
BUNDLES = ("bundle", "openvino", "tensorrt")
"""Formats that are bundles; all are read by a runtime of detrkit's."""


def write_graphs(
    built: BuiltModel, options: GraphOptions, layout: str
) -> tuple[dict[str, bytes], tuple[GraphRecord, ...]]:
    """Export a model and return the files of a bundle that are its graphs, and what the manifest says of them.

    Masks have a graph of their own, unless outputs are raw: only those that are asked for are computed then.

    Args:
        built: Model on the CPU, prepared for inference.
        options: What the graph is like.
        layout: One of :data:`BUNDLES`.
    """
    split = built.config.model.masks and not options.raw
    if split and layout == "tensorrt":
        raise UsageError(
            f"{built.config.model.preset} has masks, whose graph the script for TensorRT does not build; add "
            "--raw, which gives the masks of all queries in one graph, or export an ONNX bundle"
        )
    programs = {"graph": trace_graph(built, options, split), **({"masks": trace_masks(built)} if split else {})}
    files, records = {}, []
    for name, program in programs.items():
        content = onnx_graph(program, options)
        record = GraphRecord(
            f"{name}.onnx",
            options.opset,
            outputs="raw" if options.raw else "masks" if name == "masks" else "detections",
            weights="16" if options.half else "32",
        )
        if layout == "openvino":
            record = msgspec.structs.replace(record, file=f"{name}.xml", weights_file=f"{name}.bin")
            files[record.file], files[record.weights_file] = _to_openvino(content)
        else:
            files[record.file] = content
        if layout == "tensorrt":
            files[TENSORRT] = tensorrt_script(content, built.config.transforms, options).encode()
        records.append(record)
    return files, tuple(records)


def for_layout(options: GraphOptions, layout: str) -> GraphOptions:
    """Return options of a graph as a format needs it.

    TensorRT fuses nothing around GridSample, and takes uint8 only where a cast follows at once.
    """
    return dataclasses.replace(options, gather=True, layout="nchw") if layout == "tensorrt" else options


def _to_openvino(graph: bytes) -> tuple[bytes, bytes]:
    """Convert an ONNX file to OpenVINO's format, and return its graph and its weights, whose precision stays."""
    try:
        import openvino
    except ImportError as error:
        raise MissingExtraError("openvino", "openvino") from error
    toolkit: Any = openvino
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "graph.xml"
        toolkit.save_model(openvino_core().read_model(graph, b""), file, compress_to_fp16=False)
        return file.read_bytes(), file.with_suffix(".bin").read_bytes()


class ProgramEngine:
    """A program of ``torch.export``, read from its file."""

    name = "torch.export"

    def __init__(self, content: bytes, threads: int):
        self.version = str(torch.__version__)
        self.threads = threads
        self._module = torch.export.load(io.BytesIO(content)).module()

    def run(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Return the outputs of the program."""
        with torch.inference_mode():
            found = self._module(*(torch.from_numpy(np.ascontiguousarray(inputs[name])) for name in INPUTS))
        return [output.numpy() for output in found]


def program_file(built: BuiltModel, options: GraphOptions) -> bytes:
    """Export a model as a file that ``torch.export.load`` reads."""
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(trace_graph(built, options), content)
    return content.getvalue()


_SCRIPT = """#!/bin/sh
# Builds a TensorRT engine of {graph}, in which plain Gathers stand where GridSample would. Run it on the GPU that
# shall detect; engines fit no other. Written for TensorRT 10 with its trtexec and polygraphy.
#
#   sh tensorrt.sh            float32, TF32 off: the reference
#   sh tensorrt.sh fp16       float16, where it cannot overflow
#   sh tensorrt.sh compare    float32 in TensorRT and in ONNX Runtime, on the same random pixels
#   sh tensorrt.sh compare16  float16 likewise
#
# KEEP names the layers that stay in float32: sums of squares in LayerNorm and exponentials in softmax leave the
# range of float16, and boxes need its digits. Without "obey" TensorRT may fuse them into float16 kernels all the
# same. Random pixels show a wrong engine, not what float16 costs: measure AP of the engine before it is used.
#
# Inputs: images uint8 [batch, 3, height, width] RGB, resized by the rule in bundle.json, padded at the bottom and
# on the right; sizes and original_sizes int64 [batch, 2], without padding and of the file.
# Outputs: scores, labels, boxes.
set -e
cd "$(dirname "$0")"
KEEP="{keep}"
LAYERS=$(for name in $KEEP; do printf '%s:fp32,' "$name"; done)
POLY=$(for name in $KEEP; do printf '%s:float32 ' "$name"; done)
case "${{1:-fp32}}" in
fp32) trtexec --onnx={graph} --saveEngine=fp32.engine --noTF32 {trtexec} ;;
fp16) trtexec --onnx={graph} --saveEngine=fp16.engine --fp16 --precisionConstraints=obey \\
  --layerPrecisions="${{LAYERS%,}}" {trtexec} ;;
compare) polygraphy run {graph} --trt --onnxrt {polygraphy} --atol 1e-3 --rtol 1e-3 ;;
compare16) polygraphy run {graph} --trt --onnxrt --fp16 --precision-constraints obey \\
  --layer-precisions $POLY {polygraphy} --atol 5e-2 --rtol 5e-2 ;;
*) echo "expected fp32, fp16, compare or compare16" >&2; exit 2 ;;
esac
"""
_KEPT = {"LayerNormalization", "Softmax", "ReduceMean", "Sigmoid", "Exp", "Sqrt", "Pow", "Reciprocal", "TopK"}


def tensorrt_script(graph: bytes, transforms: TransformConfig, options: GraphOptions) -> str:
    """Return a script that builds TensorRT engines of an ONNX file, with its shapes and what stays in float32."""
    import onnx

    nodes = onnx.load_from_string(graph).graph.node
    keep = [node.name for node in nodes if node.op_type in _KEPT]
    # the smallest, the usual and the largest batch
    usual = (transforms.eval_size, round(transforms.eval_size * 4 / 3))
    longest = max(transforms.max_size or 2 * usual[1], LEAST_SIDE)
    shapes = {"min": (1, LEAST_SIDE, LEAST_SIDE), "opt": (1, *usual), "max": (_MOST_BATCH, longest, longest)}
    if options.shape_hw is not None:
        shapes, usual = {}, options.shape_hw
    trtexec, polygraphy = [], []
    for name, (count, height, width) in shapes.items():
        dims = {"images": (count, 3, height, width), "sizes": (count, 2), "original_sizes": (count, 2)}
        trtexec.append(f"--{name}Shapes=" + ",".join(f"{key}:{'x'.join(map(str, dims[key]))}" for key in dims))
        polygraphy.append(
            f"--trt-{name}-shapes " + " ".join(f"{key}:{list(dims[key])}".replace(" ", "") for key in dims)
        )
    side = min(usual)  # drawn pixels, in an image that fits both sides
    polygraphy.append(f"--val-range images:[0,255] sizes:[{side},{side}] original_sizes:[{side},{side}]")
    return _SCRIPT.format(
        graph=GRAPH, keep=" ".join(keep), trtexec=" ".join(trtexec), polygraphy=" ".join(polygraphy)
    )
