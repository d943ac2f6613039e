"""What every request passes: identity, headers, errors without traces, one line in the log."""

from __future__ import annotations

import hmac
import json
import logging
import random
import re
import time
from collections.abc import Collection
from typing import Any

import msgspec
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from detrkit.serving.contract import ErrorDetail, ErrorResponse
from detrkit.serving.metrics import Metrics
from detrkit.serving.refusal import RefusedError
from detrkit.serving.settings import ServeSettings, is_loopback

logger = logging.getLogger(__name__)

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        "media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Cache-Control": "no-store",
}
"""Headers of every answer; the page asks for nothing beyond its own origin."""

DETECT = "/v1/detect"
_RAW = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+)(?::\d{1,5})?")
_GONE = 499  # what a log says where the client did not wait; nobody is sent it


class Guard:
    """ASGI middleware around all routes.

    Args:
        app: The routes.
        settings: Whom to let in.
        metrics: Told of each request.
        public: Paths that need no token.
    """

    def __init__(self, app: ASGIApp, settings: ServeSettings, metrics: Metrics, public: Collection[str]):
        self._app = app
        self._token = settings.token.encode()
        self._metrics = metrics
        self._public = frozenset(public)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, whatever happens."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        headers = Headers(scope=scope)
        request_id = headers.get("x-request-id", "")
        if not _SANE_ID.fullmatch(request_id):
            request_id = f"{random.getrandbits(128):032x}"
        # what the routes know of a request, for its line in the log
        notes: dict[str, Any] = {}
        scope["state"] = {**scope.get("state", {}), "request_id": request_id, "notes": notes}
        status = 0

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id.encode()), *_RAW]
            await send(message)

        try:
            self._check(scope, headers)
            await self._app(scope, receive, send_marked)
        except RefusedError as refusal:
            await refused(scope, refusal)(scope, receive, send_marked)
        except ClientDisconnect:
            status = _GONE
        except Exception:
            logger.exception("request %s failed", request_id)
            if not status:
                error = RefusedError("internal", "the server failed on this request; its log says why")
                await refused(scope, error)(scope, receive, send_marked)
        finally:
            self._note(scope, status or _GONE, time.perf_counter() - start)

    def _check(self, scope: Scope, headers: Headers) -> None:
        """Refuse who brings no token; where none is needed, whoever is sent by a page of another origin.

        Raises:
            RefusedError: The request is not let in.
        """
        if self._token:
            scheme, _, token = headers.get("authorization", "").partition(" ")
            known = scheme.lower() == "bearer" and hmac.compare_digest(token.strip().encode(), self._token)
            if not known and scope["path"] not in self._public:
                advice = {"WWW-Authenticate": "Bearer"}
                raise RefusedError("unauthorized", "expected the header Authorization: Bearer TOKEN", advice)
            return
        # a browser that was led here under another name, or by another page
        host = headers.get("host", "")
        origin = headers.get("origin")
        named = _HOST.fullmatch(host)
        if named is None or not is_loopback(named[1]):
            raise RefusedError("forbidden", "without a token, only this machine is answered, as localhost")
        if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
            raise RefusedError("forbidden", "without a token, pages of other origins are not answered")

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        """Count a request, and write its line: no content, no names that its sender chose."""
        route = getattr(scope.get("route"), "path", "") or (DETECT if scope["path"] == DETECT else "other")
        notes = scope["state"]["notes"]
        self._metrics.requests.labels(route, str(status)).inc()
        if status < 400:
            self._metrics.request_seconds.labels(route).observe(seconds)
        elif kind := notes.get("kind", "gone" if status == _GONE else ""):
            self._metrics.errors.labels(kind).inc()
        fields = {
            "event": "request",
            "request_id": scope["state"]["request_id"],
            "method": scope["method"][:16],
            "route": route,
            "status": status,
            "ms": round(1000 * seconds, 2),
            **notes,
        }
        logger.info("request", extra={"fields": fields})


def refused(scope: Scope, refusal: RefusedError) -> Response:
    """Return the answer of a refused request, in the form that the route's protocol wants."""
    state = scope["state"]
    state["notes"]["kind"] = refusal.kind
    content: object = {"error": str(refusal)}
    if not scope["path"].startswith("/v2"):
        content = ErrorResponse(ErrorDetail(refusal.kind, str(refusal), state["request_id"]))
    return JsonResponse(content, refusal.status, refusal.headers)


class JsonResponse(Response):
    """A JSON answer, encoded by msgspec."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Return the body."""
        return content if isinstance(content, bytes) else msgspec.json.encode(content)


class JsonFormatter(logging.Formatter):
    """One line of JSON for each record; ``extra={"fields": ...}`` are its fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + f".{int(record.msecs):03}",
            "level": record.levelname.lower(),
            **(getattr(record, "fields", None) or {"event": "message", "message": record.getMessage()}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)
