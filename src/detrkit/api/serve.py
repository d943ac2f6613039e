"""``detrkit.serve``: bundles behind HTTP."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from detrkit.errors import MissingExtraError, UsageError

_PACKAGES = ("fastapi", "uvicorn", "httptools", "prometheus_client", "python_multipart")


def serve(
    bundles: Sequence[str | os.PathLike[str]],
    *,
    token_file: Path | None = None,
    say: Callable[[str], object] = lambda _message: None,
    **settings: Any,
) -> None:
    """Serve bundles over HTTP until SIGTERM or SIGINT. No torch is needed.

    Args:
        bundles: Folders or zip files that :func:`export` wrote, or ``NAME=PATH``; the first
            answers where a request names no model.
        token_file: File with the bearer token; if not given, the environment's ``DETRKIT_SERVE_TOKEN`` counts.
        say: Receives what a person wants to read; the log is JSON on standard output.
        settings: As in :class:`detrkit.serving.settings.ServeSettings`, such as ``host`` and ``port``.

    Raises:
        BundleError: A bundle does not verify: its files or what it finds in its golden pictures.
        UsageError: Something was asked wrongly, such as to listen beyond this machine without a token.
    """
    bundles = [bundles] if isinstance(bundles, str | os.PathLike) else bundles
    for name in _PACKAGES:
        try:
            __import__(name)
        except ImportError as error:
            raise MissingExtraError(name, "serve") from error
    from detrkit.serving.server import run_server
    from detrkit.serving.settings import ServeSettings, read_token

    if unknown := settings.keys() - {
        field.name for field in dataclasses.fields(ServeSettings) if field.name != "token"
    }:
        raise UsageError(f"serve has no argument {', '.join(sorted(unknown))}; see ServeSettings")
    run_server(bundles, ServeSettings(token=read_token(token_file), **settings), say)
