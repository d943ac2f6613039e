"""``detrkit export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from detrkit.cli.shared import AsOption, ModelArgument, errors, say
from detrkit.errors import UsageError


def export(
    model: ModelArgument,
    out: Annotated[Path, typer.Option(metavar="PATH", help="A .pth file for published, a folder for hub.")],
    layout: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="published: as the DETR authors' files; hub: for Hugging Face transformers.",
        ),
    ] = "hub",
    preset: AsOption = None,
) -> None:
    """Write a model's weights in another layout, bit-equal."""
    with errors():
        from detrkit.api.export import export as write

        if layout not in ("published", "hub"):
            raise UsageError(f"--format is {layout!r}, expected published or hub")
        path = write(model, out, layout=layout, preset=preset)  # type: ignore[arg-type]
        say(f"Written to {path}")
