"""The routes of a server."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.routing import Route

import detrkit
from detrkit.errors import DetrkitError
from detrkit.serving import masks, v2
from detrkit.serving.contract import (
    Detection,
    DetectOptions,
    DetectResponse,
    ImageResult,
    ModelResponse,
    ModelsResponse,
    answers,
    option_parameters,
    read_options,
    schemas,
)
from detrkit.serving.guard import DETECT, Guard, JsonResponse, refused
from detrkit.serving.models import ServedModel
from detrkit.serving.pictures import SentPicture, decode_sent, draw_detections
from detrkit.serving.refusal import STATUSES, RefusedError
from detrkit.serving.service import Found, Service
from detrkit.serving.settings import ServeSettings

PAGE = Path(__file__).parent / "page"
"""Static files at ``/``."""
_HEALTH = ("/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready")

_FILE = {"type": "string", "format": "binary"}
_BODY = {
    "required": True,
    "description": "Files of a form, whatever their fields are called, or one picture as it is.",
    "content": {
        "multipart/form-data": {
            "schema": {"type": "object", "properties": {"images": {"type": "array", "items": _FILE}}}
        },
        "image/*": {"schema": _FILE},
        "application/octet-stream": {"schema": _FILE},
    },
}


def make_app(service: Service, page: Path = PAGE) -> FastAPI:
    """Return the ASGI application around a service, which it closes when it ends."""

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(
        title="detrkit",
        version=detrkit.__version__,
        description="Detections of pictures. Where the server has a token, send Authorization: Bearer TOKEN.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    _add_health(app, service)
    _add_detect(app, service)
    _add_v2(app, service)
    files = {path.relative_to(page).as_posix() for path in page.rglob("*") if path.is_file()}
    public = {*_HEALTH, *(f"/{name}" for name in files), *(["/"] if "index.html" in files else [])}
    if files:
        app.mount("/", StaticFiles(directory=page, html=True))
    app.add_middleware(Guard, settings=service.settings, metrics=service.metrics, public=public)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(RefusedError, _on_refused)
    app.openapi = functools.partial(_openapi, app, app.openapi)  # type: ignore[method-assign]
    return app


def _add_health(app: FastAPI, service: Service) -> None:
    @app.get("/health/live", tags=["health"])
    async def live() -> dict[str, str]:
        """The process answers."""
        return {"status": "live"}

    @app.get("/health/ready", tags=["health"])
    async def ready() -> Response:
        """Requests are accepted: models are loaded, and the server was not told to stop."""
        return JsonResponse(
            {"status": "draining" if service.draining else "ready"}, 503 if service.draining else 200
        )

    @app.get("/metrics", tags=["health"])
    async def metrics() -> Response:
        """What Prometheus reads."""
        text, kind = service.metrics.text()
        return Response(text, headers={"Content-Type": kind})


def _add_detect(app: FastAPI, service: Service) -> None:
    @app.post(
        DETECT,
        tags=["detect"],
        response_class=Response,
        responses=answers(DetectResponse),
        openapi_extra={"requestBody": _BODY, "parameters": option_parameters()},
    )
    async def detect(request: Request) -> Response:
        """Detect objects in one or several pictures: JPEG, PNG, WebP, BMP or TIFF, known by their content."""
        options = read_options(request.query_params)
        with service.store.lease(options.model) as held, service.gate.admit(held) as visit:
            class_ids = _class_ids(held, options.classes)
            sent = await service.read_pictures(request, visit)
            if options.format != "json" and len(sent) != 1:
                raise RefusedError(
                    "bad_request", f"{len(sent)} pictures cannot be drawn as one; send them one by one"
                )
            least = held.threshold if options.threshold is None else options.threshold
            found, timings = await service.detect(request, visit, held, sent, least, class_ids)
            if options.format != "json":
                return await _drawn(service, held, sent[0], found[0], timings, options.format)
            make = functools.partial(_image_results, held, found, options, service.settings)
            if options.masks is None and not options.panoptic:
                images = make()
            else:
                start = time.perf_counter()
                images = await service.work(make)
                timings["masks"] = round(1000 * (time.perf_counter() - start), 3)
            answer = DetectResponse(
                **held.label, request_id=request.state.request_id, timings_ms=timings, images=images
            )
            return JsonResponse(answer, headers=_timing_header(timings))

    # Starlette answers, FastAPI describes: its reading of arguments, where there are none, takes a quarter of a
    # millisecond, and a small model not much more for a picture
    app.router.routes.insert(0, Route(DETECT, detect, methods=["POST"]))

    @app.get("/v1/models", tags=["models"], response_class=Response, responses=answers(ModelsResponse))
    async def models() -> Response:
        """Models that are loaded; the first answers where none is named."""
        return JsonResponse({"models": [model.describe() for model in service.store.models]})

    @app.post(
        "/v1/models/{name}/reload", tags=["models"], response_class=Response, responses=answers(ModelResponse)
    )
    async def reload(name: str) -> Response:
        """Load the model's bundle anew; the old one goes on until it has verified, and for good if it does not."""
        try:
            model = await service.reload(name)
        except RefusedError:
            raise
        except DetrkitError as error:  # its words hold paths, which the log has
            raise RefusedError(
                "conflict", "the new bundle was refused, the old one goes on; the log says why"
            ) from error
        return JsonResponse(model.describe())


def _add_v2(app: FastAPI, service: Service) -> None:
    @app.get("/v2", tags=["v2"])
    async def server() -> dict[str, Any]:
        """Metadata of the server."""
        return {"name": "detrkit", "version": detrkit.__version__, "extensions": list(v2.EXTENSIONS)}

    @app.get("/v2/health/live", tags=["v2"])
    async def live() -> dict[str, bool]:
        """The process answers."""
        return {"live": True}

    @app.get("/v2/health/ready", tags=["v2"])
    async def ready() -> Response:
        """Requests are accepted."""
        return JsonResponse({"ready": not service.draining}, 503 if service.draining else 200)

    @app.get("/v2/models/{name}", tags=["v2"])
    @app.get("/v2/models/{name}/versions/{version}", tags=["v2"])
    async def metadata(name: str, version: str = "") -> dict[str, Any]:
        """Inputs and outputs of a model."""
        with service.store.lease(name, version) as held:
            return v2.describe(held)

    @app.get("/v2/models/{name}/ready", tags=["v2"])
    @app.get("/v2/models/{name}/versions/{version}/ready", tags=["v2"])
    async def model_ready(name: str, version: str = "") -> dict[str, Any]:
        """The model is loaded."""
        with service.store.lease(name, version) as held:
            return {"name": held.name, "ready": True}

    @app.post("/v2/models/{name}/infer", tags=["v2"], response_class=Response)
    @app.post("/v2/models/{name}/versions/{version}/infer", tags=["v2"], response_class=Response)
    async def infer(request: Request, name: str, version: str = "") -> Response:
        """Detect objects in one picture, sent as pixels or as a file."""
        with service.store.lease(name, version) as held, service.gate.admit(held) as visit:
            body = await service.read_body(request, visit)
            length = request.headers.get(v2.HEADER_LENGTH)
            known = v2.outputs_of(held)
            call = await service.work(v2.read_call, body, length, service.settings.max_pixels, known)
            least = held.threshold if call.threshold is None else call.threshold
            [found], timings = await service.detect(request, visit, held, [call.picture], least)
            if v2.MASKS in call.outputs:
                masks.check_pixels([found], [len(found.detections.scores)], service.settings.max_mask_pixels)
                content, head = await service.work(v2.write_answer, call, held, found.detections)
            else:
                content, head = v2.write_answer(call, held, found.detections)
            headers = _timing_header(timings)
            if head is None:
                return JsonResponse(content, headers=headers)
            return Response(content, 200, {**headers, v2.HEADER_LENGTH: str(head)}, "application/octet-stream")


def _class_ids(model: ServedModel, classes: Sequence[str]) -> list[int]:
    """Return class ids of names.

    Raises:
        RefusedError: The model does not know one.
    """
    known = model.predictor.class_map.class_id_by_name()
    if unknown := [name[:100] for name in classes if name not in known]:
        raise RefusedError("invalid", f"classes {unknown[:5]} are none of the model's; see /v1/models")
    names = model.predictor.class_map.names
    return [number for number, name in enumerate(names) if name in classes]


def _image_results(
    model: ServedModel, found: Sequence[Found], options: DetectOptions, settings: ServeSettings
) -> list[ImageResult]:
    """Return what is answered of each picture, in JSON."""
    # masks are of the best, how many of each picture is known first
    counts = [0] * len(found)
    if options.masks is not None:
        masks.settings_of(model)
        counts = [int((one.detections.scores >= options.masks).sum()) for one in found]
    merged = [masks.panoptic_count(model, one) if options.panoptic else 0 for one in found]
    masks.check_pixels(found, np.add(counts, merged).tolist(), settings.max_mask_pixels)
    names, results = model.predictor.class_map.names, []
    for one, count in zip(found, counts, strict=True):
        height, width = one.size_hw
        encoded: list[Any] = [msgspec.UNSET] * len(one.detections.scores)
        if count:
            encoded[:count] = masks.segmentations(model, one.detections.take(np.arange(count)))
        columns = (*(values.tolist() for values in one.detections), encoded)
        detections = [
            Detection(tuple(box), score, number, names[number], mask)
            for box, score, number, mask in zip(*columns, strict=True)
        ]
        picture = masks.panoptic_picture(model, one) if options.panoptic else msgspec.UNSET
        results.append(ImageResult(one.name, width, height, detections, picture))
    return results


async def _drawn(
    service: Service, model: ServedModel, sent: SentPicture, found: Found, timings: dict[str, float], kind: str
) -> Response:
    """Return the picture, drawn; what JSON would say of the model is in headers."""
    how = model.predictor.bundle.manifest.masks
    if how:
        masks.check_pixels([found], [len(found.detections.scores)], service.settings.max_mask_pixels)

    def draw() -> bytes:
        pixels = decode_sent(sent, model.predictor, service.settings.max_pixels)
        names = model.predictor.class_map.names
        return draw_detections(pixels, found.detections, names, kind.upper(), how.threshold if how else 0.5)

    start = time.perf_counter()
    content = await service.work(draw)
    timings["draw"] = round(1000 * (time.perf_counter() - start), 3)
    label = {f"X-Detrkit-{name.title()}": value for name, value in model.label.items()}
    return Response(content, 200, {**label, **_timing_header(timings)}, f"image/{kind}")


def _timing_header(timings: dict[str, float]) -> dict[str, str]:
    return {"Server-Timing": ", ".join(f"{stage};dur={milliseconds}" for stage, milliseconds in timings.items())}


def _on_refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    return refused(request.scope, error)


def _on_http_error(request: Request, error: Exception) -> Response:
    """Answer what the router refuses."""
    assert isinstance(error, HTTPException)
    kind = next((kind for kind, status in STATUSES.items() if status == error.status_code), "bad_request")
    return refused(request.scope, RefusedError(kind, str(error.detail), error.headers))


def _openapi(app: FastAPI, generate: Any) -> dict[str, Any]:
    """Return the description of all routes, with the answers' schemas."""
    found: dict[str, Any] = generate()
    found.setdefault("components", {}).setdefault("schemas", {}).update(schemas())
    return found
