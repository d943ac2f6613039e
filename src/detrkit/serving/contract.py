"""What ``/v1`` answers, in JSON."""

from __future__ import annotations

from typing import Any

import msgspec


class Detection(msgspec.Struct, frozen=True):
    """A detection: its box in pixels of the picture, from left and top to right and bottom."""

    box_xyxy: tuple[float, float, float, float]
    score: float
    class_id: int
    class_name: str


class ImageResult(msgspec.Struct, frozen=True):
    """A picture, upright, and what was found in it, best first."""

    name: str
    width: int
    height: int
    detections: list[Detection]


class DetectResponse(msgspec.Struct, frozen=True):
    """Answer of ``/v1/detect``: what answered, how long each stage took at the longest, and what was found."""

    model: str
    version: str
    runtime: str
    precision: str
    request_id: str
    timings_ms: dict[str, float]
    images: list[ImageResult]


class ModelResponse(msgspec.Struct, frozen=True):
    """A model that is loaded.

    ``classes`` stand by class id, ``category_ids`` are those of its data set; ``thresholds`` are as in
    ``thresholds.json``, or one number for all classes.
    """

    name: str
    version: str
    runtime: str
    precision: str
    classes: list[str]
    category_ids: list[int]
    thresholds: dict[str, Any]
    loaded: str
    streams: int
    threads: int
    batch_size: int


class ModelsResponse(msgspec.Struct, frozen=True):
    """Answer of ``/v1/models``: the first answers where none is named."""

    models: list[ModelResponse]


class ErrorDetail(msgspec.Struct, frozen=True):
    """Why a request was refused; ``kind`` is for programs."""

    kind: str
    message: str
    request_id: str


class ErrorResponse(msgspec.Struct, frozen=True):
    """Answer of every refused request outside of ``/v2``."""

    error: ErrorDetail


def schemas() -> dict[str, Any]:
    """Return the JSON schemas of all answers by name, as OpenAPI has them."""
    kinds = (DetectResponse, ModelResponse, ModelsResponse, ErrorResponse)
    return msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")[1]


def answers(kind: type[msgspec.Struct]) -> dict[int | str, dict[str, Any]]:
    """Return what OpenAPI says of a route's answers."""

    def content(name: str) -> dict[str, Any]:
        return {"content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}}

    refused = {"description": "Refused: see error.kind.", **content("ErrorResponse")}
    return {200: {"description": "Answered.", **content(kind.__name__)}, "4XX": refused, "5XX": refused}
