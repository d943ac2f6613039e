"""HTTP connections of uvicorn that hold the headers of a request to a size and a time."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from detrkit.serving.contract import ErrorDetail, ErrorResponse

MOST_HEADERS = 32 << 10
"""Bytes of a request's first line and headers."""
MOST_FIELDS = 200
"""Headers of a request."""
HEADERS_S = 10.0
"""Time in which they have to arrive."""


class LimitedProtocol(HttpToolsProtocol):
    """A connection: the parser itself would take headers without end, as slowly as they come."""

    _timer: asyncio.TimerHandle | None = None
    _bytes = 0  # read of unfinished headers
    _taken = 0  # of those that are whole
    _in_headers = True

    def connection_made(self, transport: Any) -> None:
        """Wait for the first request."""
        super().connection_made(transport)
        self.on_message_begin()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what has come of unfinished headers."""
        before = self._in_headers
        super().data_received(data)
        if before and self._in_headers:
            self._bytes += len(data)
            if self._bytes > MOST_HEADERS:
                self.send_400_response("the headers are too large")

    def on_message_begin(self) -> None:
        """Begin to count, and to wait."""
        super().on_message_begin()
        self._bytes, self._taken, self._in_headers = 0, 0, True
        self._stop_timer()
        self._timer = self.loop.call_later(HEADERS_S, self._too_slow)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, as long as there are not too many; what is raised makes the parser fail."""
        super().on_header(name, value)
        self._taken += len(name) + len(value)
        if self._taken > MOST_HEADERS or len(self.headers) > MOST_FIELDS:
            raise ValueError("the headers are too large")

    def on_headers_complete(self) -> None:
        """Let the request begin."""
        self._in_headers = False
        self._stop_timer()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no request, and end the connection."""
        if self.transport.is_closing():
            return
        body = msgspec.json.encode(ErrorResponse(ErrorDetail("bad_request", msg, "")))
        head = f"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        self.transport.write(head.encode() + b"connection: close\r\n\r\n" + body)
        self.transport.close()

    def _too_slow(self) -> None:
        self.transport.close()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
