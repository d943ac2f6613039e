"""``detrkit export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from detrkit.cli.shared import AsOption, ModelArgument, errors, opt, say
from detrkit.errors import UsageError


def export(
    model: ModelArgument,
    out: Annotated[Path, opt("PATH", "A .pth file for published, a folder for hub.")],
    layout: Annotated[
        str,
        opt("FORMAT", "published: as the DETR authors' files; hub: for Hugging Face transformers.", "--format"),
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
