"""Refusal of a request: what its client is told."""

from __future__ import annotations

from collections.abc import Mapping

from detrkit.errors import DetrkitError

STATUSES: Mapping[str, int] = {
    "bad_request": 400,
    "bad_image": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "too_slow": 408,
    "conflict": 409,
    "too_large": 413,
    "unsupported": 415,
    "invalid": 422,
    "busy": 429,
    "internal": 500,
    "deadline": 504,
}
"""HTTP status of each kind of refusal."""


class RefusedError(DetrkitError):
    """A request that is not answered as it was meant.

    Args:
        kind: One of :data:`STATUSES`.
        message: For the client: no paths, nothing of the server's own.
        headers: Further headers of the answer.
    """

    def __init__(self, kind: str, message: str, headers: Mapping[str, str] | None = None):
        super().__init__(message)
        self.kind = kind
        self.status = STATUSES[kind]
        self.headers = dict(headers or {})
