"""How a server listens, and what it takes from strangers."""

from __future__ import annotations

import dataclasses
import ipaddress
import os
from pathlib import Path

from detrkit.errors import UsageError

TOKEN_VARIABLE = "DETRKIT_SERVE_TOKEN"
"""Environment variable with the bearer token."""
LEAST_TOKEN = 16
_MOST_TOKEN = 4096


@dataclasses.dataclass(frozen=True)
class ServeSettings:
    """Settings of a server.

    Args:
        host: Address that it listens on.
        port: Port; 0 for any free one.
        token: Bearer token that requests have to bring; empty for none, which only loopback may have.
        runtime: Runtime of the bundles, as for :func:`detrkit.runtimes.predictor.load`.
        threads: Threads of each model; as many as this process may use if not given.
        streams: Runs of a model at once; measured as it is loaded if not given.
        batch_size: Images of a batch at most; measured as it is loaded if not given.
        batch_wait_s: Time that a batch waits for more images, where batches pay.
        deadline_s: Time from a request's last byte to the start of its inference.
        body_s: Time in which the body of a request has to arrive.
        drain_s: Time that accepted requests are given when the server is told to stop.
        max_waiting: Images in the house, those at work among them; further requests are told to come back.
        max_bytes: Bytes of a request's body.
        max_buffered: Bytes of all bodies together.
        max_pixels: Pixels of a picture, which its header tells before it is decoded.
        max_images: Pictures of a request.
        max_mask_pixels: Pixels of all masks of a request together.
        max_connections: Connections at once.
        sample_dir: Folder that a part of the requests is written to; None for none.
        sample_rate: Share of the requests that is written.
        sample_max_bytes: Bytes that the folder may hold.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str = dataclasses.field(default="", repr=False)
    runtime: str = ""
    threads: int | None = None
    streams: int | None = None
    batch_size: int | None = None
    batch_wait_s: float = 0.002
    deadline_s: float = 10.0
    body_s: float = 30.0
    drain_s: float = 30.0
    max_waiting: int = 64
    max_bytes: int = 16 << 20
    max_buffered: int = 256 << 20
    max_pixels: int = 36_000_000
    max_images: int = 16
    max_mask_pixels: int = 500_000_000
    max_connections: int = 1000
    sample_dir: Path | None = None
    sample_rate: float = 0.01
    sample_max_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and (value < 0 or (value == 0 and field.name not in _MAY_BE_ZERO)):
                raise UsageError(f"{field.name} is {value}, expected more than 0")
        if not 0 <= self.sample_rate <= 1:
            raise UsageError(f"sample_rate is {self.sample_rate}, expected 0 to 1")
        if self.token and not (LEAST_TOKEN <= len(self.token) <= _MOST_TOKEN and _is_plain(self.token)):
            raise UsageError(
                f"the token has {len(self.token)} characters, expected {LEAST_TOKEN} to {_MOST_TOKEN} printable "
                "ASCII ones without spaces; make one with: openssl rand -hex 32"
            )
        if not self.token and not is_loopback(self.host):
            raise UsageError(
                f"host is {self.host}, which other machines reach, and there is no token; put one into the "
                f"environment as {TOKEN_VARIABLE}, or into a file for --token-file: openssl rand -hex 32"
            )


_MAY_BE_ZERO = ("port", "batch_wait_s", "sample_rate")


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches an address; names other than ``localhost`` count as reachable."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def read_token(file: Path | None = None) -> str:
    """Return the token of a file, or else of the environment; empty where there is none.

    Raises:
        UsageError: The file cannot be read, or holds none.
    """
    if file is None:
        return os.environ.get(TOKEN_VARIABLE, "").strip()
    try:
        with file.open(encoding="ascii") as opened:
            token = opened.read(2 * _MOST_TOKEN).strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not ASCII text"
        raise UsageError(f"{file}: the token cannot be read: {reason}") from error
    if not token:
        raise UsageError(f"{file} holds no token; write one with: openssl rand -hex 32")
    return token


def _is_plain(token: str) -> bool:
    return token.isascii() and token.isprintable() and " " not in token
