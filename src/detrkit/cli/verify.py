"""``detrkit verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from detrkit.cli.shared import JsonOption, errors, opt, report


def verify(
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="Folder or zip file that detrkit export wrote.")
    ],
    runtime: Annotated[
        str, opt("NAME", "onnxruntime, openvino, or auto for the faster; ONNX Runtime if not given.")
    ] = "",
    threads: Annotated[int | None, opt("N", "Threads; all that may be used if not given.", min=1)] = None,
    as_json: JsonOption = False,
) -> None:
    """Check a bundle's files, and that it finds in its golden pictures what torch found; exit code 1 if not."""
    with errors():
        from detrkit.runtimes.verify import verify_bundle

        found = verify_bundle(bundle, runtime, threads)
        report(found, as_json)
    if not found.passed:
        raise typer.Exit(1)
