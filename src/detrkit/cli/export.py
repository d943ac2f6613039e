"""``detrkit export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from detrkit.cli.shared import (
    AsOption,
    JsonOption,
    ModelArgument,
    SplitOption,
    errors,
    given,
    opt,
    report,
    say,
    step_bar,
)
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
    data: Annotated[
        Path | None, opt("DATA", "Data set to measure AP on, of the bundle and in torch, for its report.")
    ] = None,
    split: SplitOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a model as a bundle that runs without torch, or its weights in another layout."""
    with errors():
        if layout not in _LAYOUTS:
            raise UsageError(f"--format is {layout!r}, expected one of {', '.join(_LAYOUTS)}")
        from detrkit.api.export import export as write
        from detrkit.api.export import export_bundle

        if layout != "bundle":
            if raw or images or opset != 20 or data is not None or split is not None:
                raise UsageError(
                    "--raw, --image, --opset, --data and --split are of bundles; leave them out with "
                    f"--format {layout}"
                )
            chosen: Any = layout
            say(f"Written to {write(model, out, layout=chosen, preset=preset)}")
            return
        if split is not None and data is None:
            raise UsageError("--split is given without --data; name the data set too")
        with step_bar(hidden=as_json) as progress:
            found = export_bundle(
                model,
                out,
                preset=preset,
                opset=opset,
                raw=raw,
                images=images or (),
                data=data,
                progress=progress,
                **given(split=split),
            )
        report(found, as_json)
