"""Check of an ONNX graph before any runtime sees it: nothing that lies outside of the file, nothing that is code.

The file is read as the protocol buffers that it is, field by field, so that no package is needed for it. Numbers
of fields are those of onnx.proto.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from detrkit.errors import BundleError, listed

_STANDARD = ("", "ai.onnx")


class _Rule(NamedTuple):
    """A message: fields to go into, fields that name a domain, and fields that mean data outside of the file."""

    inner: Mapping[int, str]
    domains: tuple[int, ...] = ()
    outside: tuple[int, ...] = ()


_RULES: Mapping[str, _Rule] = {
    "model": _Rule({7: "graph", 8: "opset", 25: "function"}),
    "opset": _Rule({}, domains=(1,)),
    "function": _Rule({7: "node", 9: "opset"}, domains=(10,)),
    "graph": _Rule({1: "node", 5: "tensor", 15: "sparse"}),
    "node": _Rule({5: "attribute"}, domains=(7,)),
    "attribute": _Rule({5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"}),
    "sparse": _Rule({1: "tensor", 2: "tensor"}),
    "tensor": _Rule({}, outside=(13, 14)),
}


def check_graph(content: bytes, name: str) -> None:
    """Check that an ONNX file stands alone and has standard operators only.

    Args:
        content: The file.
        name: What to call it.

    Raises:
        BundleError: It is cut off or no ONNX, refers to data in other files, or needs operators of somebody's own.
    """
    domains: set[str] = set()
    outside = 0
    has_graph = False
    waiting = [("model", memoryview(content))]
    try:
        while waiting:
            kind, message = waiting.pop()
            rule = _RULES[kind]
            for field, value in _fields(message):
                if field in rule.inner and isinstance(value, memoryview):
                    waiting.append((rule.inner[field], value))
                    has_graph |= rule.inner[field] == "node"
                elif field in rule.domains and isinstance(value, memoryview):
                    domains.add(str(value, "utf-8"))
                elif field in rule.outside and value != 0:
                    outside += 1
    except (ValueError, IndexError) as error:
        raise BundleError(f"{name} is cut off or no ONNX graph; copy the bundle again") from error
    if not has_graph:
        raise BundleError(f"{name} holds no ONNX graph; copy the bundle again")
    if outside:
        raise BundleError(f"{name} keeps weights in other files, which a bundle may not; export the model again")
    if own := sorted(domains - set(_STANDARD)):
        raise BundleError(
            f"{name} needs operators of {listed(own)}, expected those of ONNX alone; export the model again"
        )


def check_openvino(content: bytes, name: str) -> None:
    """Check that a graph in OpenVINO's format has operators of OpenVINO's own sets only.

    Its weights lie in one file that is handed over with it; the format cannot name others.

    Raises:
        BundleError: It is cut off, or needs operators of somebody's own.
    """
    if b"<!" in content:  # entities, which a parser would multiply
        raise BundleError(f"{name} declares entities, which no OpenVINO graph does; export the model again")
    try:
        sets = {layer.get("version", "") for layer in ElementTree.fromstring(content).iter("layer")}
    except ElementTree.ParseError as error:
        raise BundleError(f"{name} is cut off or no OpenVINO graph: {error}; copy the bundle again") from error
    if not sets:
        raise BundleError(f"{name} holds no OpenVINO graph; copy the bundle again")
    if own := sorted(each for each in sets if not re.fullmatch(r"opset\d+", each)):
        raise BundleError(
            f"{name} needs operators of {listed(own)}, expected OpenVINO's own sets alone; export the model again"
        )


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """Yield number and value of every field; values of fixed width are passed over.

    Raises:
        ValueError: The message ends inside a field, or has one of an unknown kind.
        IndexError: It ends inside a number.
    """
    position = 0
    while position < len(message):
        tag, position = _number(message, position)
        wire = tag & 7
        if wire == 0:
            value, position = _number(message, position)
            yield tag >> 3, value
            continue
        if wire not in (1, 2, 5):
            raise ValueError(f"wire type {wire}")
        length = {1: 8, 5: 4}.get(wire, 0)
        if wire == 2:
            length, position = _number(message, position)
        if position + length > len(message):
            raise ValueError("cut off")
        if wire == 2:
            yield tag >> 3, message[position : position + length]
        position += length


def _number(message: memoryview, position: int) -> tuple[int, int]:
    """Return a number of variable length and the position behind it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = message[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise ValueError("number too long")
