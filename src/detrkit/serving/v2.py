"""The Open Inference Protocol, version 2: JSON and binary tensors, as Triton's and KServe's clients send them."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any

import msgspec
import numpy as np

from detrkit.detections import ImageDetections
from detrkit.serving.masks import segmentations
from detrkit.serving.models import ServedModel
from detrkit.serving.pictures import SentPicture, check_pixels
from detrkit.serving.refusal import RefusedError

HEADER_LENGTH = "Inference-Header-Content-Length"
"""Header: bytes of a body's JSON, behind which binary tensors follow."""
EXTENSIONS = ("binary_tensor_data",)
INPUTS = {"image": ("UINT8", [1, -1, -1, 3]), "image_bytes": ("BYTES", [1])}
"""Inputs, one of which is given: RGB pixels, or a file."""
OUTPUTS = {"scores": ("FP32", [-1]), "labels": ("INT64", [-1]), "boxes": ("FP32", [-1, 4])}
"""Outputs; the labels are class ids, the boxes left, top, right and bottom in pixels."""
MASKS = "masks"
"""Output of models with masks, only if it is asked for: JSON of COCO's compressed RLE for each detection."""
_DTYPES: dict[str, np.dtype[Any]] = {"FP32": np.dtype("<f4"), "INT64": np.dtype("<i8")}


class _Tensor(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    data: Any = None
    parameters: dict[str, Any] = {}


class _Output(msgspec.Struct):
    name: str
    parameters: dict[str, Any] = {}


class _Request(msgspec.Struct):
    inputs: list[_Tensor]
    id: str = ""
    parameters: dict[str, Any] = {}
    outputs: list[_Output] = []


@dataclasses.dataclass(frozen=True)
class InferCall:
    """What is asked for.

    Args:
        picture: The picture.
        id: What its client calls the request.
        threshold: Least score; None for the model's own.
        outputs: Outputs that are wanted, in their order, and whether as binary tensors.
    """

    picture: SentPicture
    id: str
    threshold: float | None
    outputs: Mapping[str, bool]


def outputs_of(model: ServedModel) -> Mapping[str, tuple[str, list[int]]]:
    """Return type and shape of a model's outputs by name."""
    return {**OUTPUTS, **({MASKS: ("BYTES", [-1])} if model.predictor.mask_engine else {})}


def read_call(
    body: bytes, header_length: str | None, max_pixels: int, known: Collection[str] = OUTPUTS
) -> InferCall:
    """Read a request.

    Args:
        body: Its body.
        header_length: What :data:`HEADER_LENGTH` says; None for JSON alone.
        max_pixels: Pixels that a picture may have.
        known: Outputs that the model has.

    Raises:
        RefusedError: It is not what the protocol says, or more than one picture.
    """
    length = len(body)
    if header_length is not None:
        if not (header_length.isdecimal() and len(header_length) < 20 and int(header_length) <= len(body)):
            raise _bad(f"{HEADER_LENGTH} is no number of bytes of the body")
        length = int(header_length)
    try:
        call = msgspec.json.decode(memoryview(body)[:length], type=_Request)
    except (ValueError, RecursionError) as error:
        raise _bad(f"the JSON is not that of an inference request: {str(error)[:200]}") from error
    if len(call.inputs) != 1 or call.inputs[0].name not in INPUTS:
        names = [tensor.name[:50] for tensor in call.inputs[:4]]
        raise _bad(f"inputs are {names}, expected one of {list(INPUTS)}")
    # options
    threshold = call.parameters.get("threshold")
    if threshold is not None and not (type(threshold) in (int, float) and 0 <= threshold <= 1):
        raise _bad("parameters.threshold is expected to be a number, 0 to 1")
    binary = bool(call.parameters.get("binary_data_output", False))
    wanted = {one.name: bool(one.parameters.get("binary_data", binary)) for one in call.outputs}
    if unknown := [name[:50] for name in wanted if name not in known]:
        raise _bad(f"there are no outputs {unknown[:4]}, expected {list(known)}")
    picture = _read_picture(call.inputs[0], memoryview(body)[length:], max_pixels)
    return InferCall(picture, call.id[:200], threshold, wanted or dict.fromkeys(OUTPUTS, binary))


def _read_picture(tensor: _Tensor, rest: memoryview, max_pixels: int) -> SentPicture:
    """Read the only input, from its JSON or from the bytes behind it."""
    datatype, _ = INPUTS[tensor.name]
    shape = tensor.shape
    size = tensor.parameters.get("binary_data_size")
    if tensor.datatype != datatype:
        raise _bad(f"{tensor.name} is {tensor.datatype[:20]}, expected {datatype}")
    if (size is None) == (tensor.data is None):
        raise _bad(f"{tensor.name}: expected either data or parameters.binary_data_size")
    if size is None and len(rest):
        raise _bad(f"{len(rest)} bytes follow the JSON, which speaks of none")
    if size is not None and (type(size) is not int or size != len(rest)):
        raise _bad(f"{tensor.name}: binary_data_size is not the {len(rest)} bytes that follow the JSON")
    if datatype == "BYTES":
        if math.prod(shape[:3]) != 1 or len(shape) > 2:
            raise _bad(f"{tensor.name} has the shape {shape[:4]}, expected [1]: one picture")
        return SentPicture(_read_file(tensor) if size is None else _read_element(rest))
    if shape[:1] == [1] and len(shape) == 4:
        shape = shape[1:]
    if len(shape) != 3 or shape[2] != 3 or min(shape) < 1:
        raise _bad(
            f"{tensor.name} has the shape {tensor.shape[:5]}, expected [1, H, W, 3] or [H, W, 3]: one picture"
        )
    check_pixels((shape[0], shape[1]), max_pixels, tensor.name)
    pixels = _read_numbers(tensor) if size is None else np.frombuffer(rest, dtype=np.uint8)
    if pixels.size != math.prod(shape):
        raise _bad(f"{tensor.name} has {pixels.size:,} numbers, its shape {math.prod(shape):,}")
    return SentPicture(pixels.reshape(shape))


def _read_numbers(tensor: _Tensor) -> np.ndarray:
    """Return numbers of JSON, nested in any way, as uint8."""
    try:
        numbers = np.array(tensor.data)
    except (ValueError, RecursionError, OverflowError) as error:  # rows of several lengths
        raise _bad(f"{tensor.name}: data is no array of numbers") from error
    if numbers.dtype.kind not in "iu" or numbers.min() < 0 or numbers.max() > 255:
        raise _bad(f"{tensor.name}: data holds others than whole numbers 0 to 255")
    return numbers.astype(np.uint8).reshape(-1)


def _read_file(tensor: _Tensor) -> bytes:
    """Return a file from JSON, which holds it as base64."""
    data = tensor.data
    while isinstance(data, list) and len(data) == 1:
        [data] = data
    try:
        if not isinstance(data, str):
            raise ValueError("not one text")
        return base64.b64decode(data, validate=True)
    except (ValueError, binascii.Error) as error:
        raise _bad(
            f"{tensor.name}: data is expected to be one file in base64; binary tensors need none"
        ) from error


def _read_element(rest: memoryview) -> bytes:
    """Return the only element of a BYTES tensor: four bytes of its length, then itself."""
    if len(rest) < 4 or int.from_bytes(rest[:4], "little") != len(rest) - 4:
        raise _bad("a BYTES tensor of one element is its length in four bytes, then the element")
    return bytes(rest[4:])


def write_answer(call: InferCall, model: ServedModel, found: ImageDetections) -> tuple[bytes, int | None]:
    """Return the body of an answer, and the length of its JSON where binary tensors follow it."""
    values: dict[str, np.ndarray] = {"scores": found.scores, "labels": found.class_ids, "boxes": found.boxes_xyxy}
    tensors, tail = [], []
    for name, binary in call.outputs.items():
        if name == MASKS:
            datatype, texts = "BYTES", [msgspec.json.encode(mask) for mask in segmentations(model, found)]
            shape, data = [len(texts)], [text.decode() for text in texts]
            content = b"".join(len(text).to_bytes(4, "little") + text for text in texts)
        else:
            datatype = OUTPUTS[name][0]
            array = values[name].astype(_DTYPES[datatype])
            shape, data, content = list(array.shape), array.reshape(-1).tolist(), array.tobytes()
        tensor: dict[str, Any] = {"name": name, "datatype": datatype, "shape": shape}
        if binary:
            tail.append(content)
            tensor["parameters"] = {"binary_data_size": len(content)}
        else:
            tensor["data"] = data
        tensors.append(tensor)
    answer: dict[str, Any] = {
        "model_name": model.name,
        "model_version": model.version,
        "outputs": tensors,
        "parameters": {"runtime": model.label["runtime"], "precision": model.precision},
    }
    if call.id:
        answer["id"] = call.id
    head = msgspec.json.encode(answer)
    return (b"".join([head, *tail]), len(head)) if tail else (head, None)


def describe(model: ServedModel) -> dict[str, Any]:
    """Return the metadata of a model."""

    def tensors(named: Mapping[str, tuple[str, list[int]]]) -> list[dict[str, Any]]:
        return [{"name": name, "datatype": kind, "shape": shape} for name, (kind, shape) in named.items()]

    return {
        "name": model.name,
        "versions": [model.version],
        "platform": f"detrkit_{model.predictor.engine.name}",
        "inputs": tensors(INPUTS),
        "outputs": tensors(outputs_of(model)),
    }


def _bad(message: str) -> RefusedError:
    return RefusedError("bad_request", message)
