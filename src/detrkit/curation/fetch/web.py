"""Asking a web server for a file or a range of it: what it answered, and whether to ask again."""

from __future__ import annotations

import dataclasses
import email.utils
import functools
import http.client
import re
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from detrkit.errors import DataError

TRY_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
USER_AGENT = "detrkit data fetch"

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)$")


@dataclasses.dataclass(frozen=True)
class Policy:
    """How patiently a file is fetched.

    Args:
        attempts: Failures in a row, without a byte in between, before giving up.
        first_wait_s: Wait after the first failure; doubled after each further one.
        longest_wait_s: No wait is longer, unless the server asks for one.
        longest_asked_wait_s: A server that asks for a longer wait than this is not waited for.
        timeout_s: Silence of the server after which the connection counts as lost.
        piece_bytes: A file is fetched in pieces of this size, several at once.
        block_bytes: Bytes read at once.
        save_every_s: How often what is done is written down; a kill loses at most this much.
    """

    attempts: int = 6
    first_wait_s: float = 1.0
    longest_wait_s: float = 60.0
    longest_asked_wait_s: float = 300.0
    timeout_s: float = 30.0
    piece_bytes: int = 32 * 2**20
    block_bytes: int = 256 * 2**10
    save_every_s: float = 1.0

    def wait_s(self, failures: int, asked_s: float | None) -> float:
        """Seconds to wait after this many failures in a row."""
        return max(min(self.first_wait_s * 2.0 ** (failures - 1), self.longest_wait_s), asked_s or 0.0)


class TryAgainError(Exception):
    """A failure that may pass.

    Args:
        reason: What happened.
        wait_s: Seconds that the server asks to wait.
    """

    def __init__(self, reason: str, wait_s: float | None = None):
        super().__init__(reason)
        self.wait_s = wait_s


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        """Follow within http and https, but never from https to http, where anyone could answer."""
        if urlsplit(req.full_url).scheme == "https" and urlsplit(newurl).scheme != "https":
            raise DataError(f"{req.full_url} leads on to {newurl!r}, which is not encrypted; not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@functools.cache  # reading the certificates takes longer than a small request
def _opener() -> urllib.request.OpenerDirector:
    """An opener for http and https only: no file, ftp or data addresses, not by a redirect either."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(context=ssl.create_default_context()),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    return opener


def ask(url: str, headers: Mapping[str, str], timeout_s: float) -> http.client.HTTPResponse:
    """The answer to a GET request, its body not read yet; the status is 200 or 206.

    Raises:
        TryAgainError: The server cannot be reached now, or says so.
        DataError: The server refuses, or the address is none.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise DataError(f"{url} is not an http or https address")
    # The standard library asks for no compression, so ranges count the bytes of the file itself.
    request = urllib.request.Request(url, headers={"User-Agent": USER_AGENT, **headers})
    try:
        response = _opener().open(request, timeout=timeout_s)
    except urllib.error.HTTPError as error:
        answer = f"{error.code} {http.client.responses.get(error.code, '')}".strip()  # not in the server's words
        with error:
            if error.code in TRY_AGAIN:
                wait_s = _retry_after(error.headers.get("Retry-After"))
                raise TryAgainError(f"the server answered {answer}", wait_s) from error
        raise DataError(
            f"{url}: the server answered {answer}, expected the file; "
            "the address may have moved: look at the home page of the data set"
        ) from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise DataError(f"{url}: the certificate of the server is not valid: {error.reason}") from error
        raise TryAgainError(_reason(error.reason)) from error
    except (OSError, http.client.HTTPException) as error:
        raise TryAgainError(_reason(error)) from error
    if response is None or response.status not in (200, 206):
        status = "nothing" if response is None else response.status
        raise DataError(f"{url}: the server answered {status}, expected 200 or 206")
    assert isinstance(response, http.client.HTTPResponse)
    return response


def read_block(response: http.client.HTTPResponse, count: int) -> bytes:
    """Up to ``count`` bytes of an answer; none at its end.

    Raises:
        TryAgainError: The connection was lost.
    """
    try:
        return response.read(count)
    except (OSError, http.client.HTTPException) as error:
        raise TryAgainError(_reason(error)) from error


@dataclasses.dataclass(frozen=True)
class Identity:
    """What tells one version of the file at an address from another.

    Args:
        size: Bytes, None if the server does not say.
        etag: Entity tag as sent.
        modified: Time of change as sent.
    """

    size: int | None
    etag: str | None
    modified: str | None

    @property
    def validator(self) -> str | None:
        """What ``If-Range`` may hold: a strong entity tag, or the time of change (RFC 9110, 13.1.5)."""
        if self.etag and not self.etag.startswith("W/"):
            return self.etag
        return self.modified


def identity(response: http.client.HTTPResponse) -> Identity:
    """Read it from the headers of a whole or a partial answer."""
    size: int | None = None
    if response.status == 206:
        match = _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
        size = int(match[3]) if match else None
    elif response.headers.get("Content-Length", "").isdigit():
        size = int(response.headers["Content-Length"])
    return Identity(size, response.headers.get("ETag"), response.headers.get("Last-Modified"))


def first_byte(response: http.client.HTTPResponse) -> int | None:
    """Where a partial answer starts; None if it does not say."""
    match = _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
    return int(match[1]) if match else None


def _retry_after(value: str | None) -> float | None:
    """Seconds from a ``Retry-After`` header: a number or a date."""
    if not value:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def _reason(error: Any) -> str:
    if isinstance(error, TimeoutError | socket.timeout):
        return "the server fell silent"
    if isinstance(error, socket.gaierror):
        return f"the name of the server cannot be found ({error.strerror}); is there a network?"
    if isinstance(error, http.client.IncompleteRead | http.client.RemoteDisconnected):
        return "the connection was cut"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
