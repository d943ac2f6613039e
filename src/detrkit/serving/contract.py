"""What ``/v1`` answers, in JSON."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from starlette.datastructures import QueryParams

from detrkit.serving.refusal import RefusedError


class DetectOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of ``/v1/detect``, in its address."""

    threshold: (
        Annotated[float, msgspec.Meta(ge=0, le=1, description="Least score; the model's if not given.")] | None
    ) = None
    classes: Annotated[tuple[str, ...], msgspec.Meta(description="Names that are wanted; all if not given.")] = ()
    model: Annotated[str, msgspec.Meta(description="Name of a model; the first if not given.")] = ""
    masks: (
        Annotated[float, msgspec.Meta(ge=0, le=1, description="Give masks of detections of this score or more.")]
        | None
    ) = None
    panoptic: Annotated[bool, msgspec.Meta(description="Give the panoptic picture and its segments.")] = False
    format: Annotated[
        Literal["json", "png", "jpeg"], msgspec.Meta(description="Detections, or the picture, drawn.")
    ] = "json"


class Segmentation(msgspec.Struct, frozen=True):
    """A mask as COCO's compressed RLE, ``size`` being height and width."""

    size: tuple[int, int]
    counts: str


class Segment(msgspec.Struct, frozen=True):
    """A segment as in COCO's ``segments_info``: its box is left, top, width and height."""

    id: int
    category_id: int
    area: int
    bbox: tuple[int, int, int, int]
    iscrowd: int
    score: float


class PanopticPicture(msgspec.Struct, frozen=True):
    """A PNG file in base64, in which a pixel of segment ``id`` is R + 256 G + 256^2 B, and the segments."""

    png: str
    segments_info: list[Segment]


class Detection(msgspec.Struct, frozen=True):
    """A detection: its box in pixels of the picture, from left and top to right and bottom."""

    box_xyxy: tuple[float, float, float, float]
    score: float
    class_id: int
    class_name: str
    segmentation: Segmentation | msgspec.UnsetType = msgspec.UNSET


class ImageResult(msgspec.Struct, frozen=True):
    """A picture, upright, and what was found in it, best first."""

    name: str
    width: int
    height: int
    detections: list[Detection]
    panoptic: PanopticPicture | msgspec.UnsetType = msgspec.UNSET


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
    masks: bool


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


def read_options(query: QueryParams) -> DetectOptions:
    """Read the options of an address; what is not one of them is refused, for its sender meant something.

    Raises:
        RefusedError: One is unknown, given twice, or makes no sense.
    """
    given: dict[str, Any] = {}
    for name, value in query.multi_items():
        if name == "classes":
            given.setdefault(name, []).append(value)
        elif name in given:
            raise RefusedError("invalid", f"{name[:50]} is given twice")
        else:
            given[name] = value
    try:
        return msgspec.convert(given, DetectOptions, strict=False)
    except msgspec.ValidationError as error:
        raise RefusedError("invalid", str(error)[:200]) from error


def option_parameters() -> list[dict[str, Any]]:
    """Return the options as OpenAPI has them."""
    [described] = msgspec.json.schema_components((DetectOptions,))[1].values()
    return [{"name": name, "in": "query", "schema": schema} for name, schema in described["properties"].items()]


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
