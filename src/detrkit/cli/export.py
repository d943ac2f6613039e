"""``detrkit export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from detrkit.cli.shared import AsOption, JsonOption, ModelArgument, errors, opt, report, say
from detrkit.errors import UsageError

_LAYOUTS = ("bundle", "published", "hub")


def export(
    model: ModelArgument,
    out: Annotated[Path, opt("PATH", "Folder or .zip for a bundle, a .pth file for published, a folder for hub.")],
    layout: Annotated[
        str,
        opt(
            "FORMAT",
            "bundle: ONNX with all that it needs; published: as the DETR authors' files; hub: for transformers.",
            "--format",
        ),
    ] = "bundle",
    preset: AsOption = None,
    opset: Annotated[int, opt("N", "ONNX operator set of a bundle: 18, 20 or 23.")] = 20,
    raw: Annotated[bool, opt(None, "Give logits and boxes 0 to 1, instead of detections.", "--raw")] = False,
    images: Annotated[
        list[str] | None,
        typer.Option(
            "--image", metavar="IMAGE", help="Picture for the bundle's proof, besides drawn ones; may repeat."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a model as a bundle that runs without torch, or its weights in another layout."""
    with errors():
        if layout not in _LAYOUTS:
            raise UsageError(f"--format is {layout!r}, expected one of {', '.join(_LAYOUTS)}")
        from detrkit.api.export import export as write
        from detrkit.api.export import export_bundle

        if layout != "bundle":
            if raw or images or opset != 20:
                raise UsageError(
                    f"--raw, --image and --opset are of bundles; leave them out with --format {layout}"
                )
            chosen: Any = layout
            say(f"Written to {write(model, out, layout=chosen, preset=preset)}")
            return
        found = export_bundle(model, out, preset=preset, opset=opset, raw=raw, images=images or ())
        report(found, as_json)
