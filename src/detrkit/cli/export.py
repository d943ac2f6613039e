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
from detrkit.errors import UsageError, listed

_BUNDLES = ("bundle", "openvino", "tensorrt")
_LAYOUTS = (*_BUNDLES, "program", "published", "hub")


def export(
    model: ModelArgument,
    out: Annotated[Path, opt("PATH", "Folder or .zip for a bundle, a .pt2 or .pth file, a folder for hub.")],
    layout: Annotated[
        str,
        opt(
            "FORMAT",
            "bundle: ONNX with all that it needs; openvino: the same in OpenVINO's format; tensorrt: with a "
            "script that builds engines; program: for torch.export; published: as the DETR authors' files; hub: "
            "for transformers.",
            "--format",
        ),
    ] = "bundle",
    preset: AsOption = None,
    opset: Annotated[int, opt("N", "ONNX operator set of a bundle: 18, 20 or 23.")] = 20,
    shape: Annotated[
        str | None, opt("HxW", "Fixed height and width, to which images are padded; larger ones are refused.")
    ] = None,
    batch: Annotated[int | None, opt("N", "Fixed number of images; 1 if only --shape is given.", min=1)] = None,
    axes: Annotated[str, opt("ORDER", "Axes of the images: nhwc, or nchw.", "--layout")] = "nhwc",
    weights: Annotated[
        str, opt("BITS", "16: weights stored in float16, half the size, computed in float32.", "--precision")
    ] = "32",
    gather: Annotated[bool, opt(None, "Plain Gathers where GridSample would stand.", "--gather")] = False,
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
    int8: Annotated[
        bool, opt(None, "Compute in 8 bits, if AP on DATA allows and it is faster here; else refuse.", "--int8")
    ] = False,
    calibration: Annotated[
        str | None, opt("NAME", "Split that INT8 is calibrated with, train if not given.", "--calibrate")
    ] = None,
    gate: Annotated[
        float | None, opt("POINTS", "AP points that INT8 may cost, less than; 0.5 if not given.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a model as a bundle that runs without torch, or its weights in another layout."""
    with errors():
        if weights not in ("32", "16"):
            raise UsageError(f"--precision is {weights}, expected 32 or 16")
        graph = {"--image": images, "--raw": raw, "--shape": shape, "--batch": batch, "--gather": gather}
        graph["--layout"] = axes != "nhwc"
        of_bundles = {"--opset": opset != 20, "--precision": weights != "32", "--data": data, "--split": split}
        of_bundles["--int8"] = int8
        _check_layout(layout, graph, of_bundles)
        if split is not None and data is None:
            raise UsageError("--split is given without --data; name the data set too")
        if not int8 and (calibration is not None or gate is not None):
            raise UsageError("--calibrate and --gate are of --int8; give that too")
        from detrkit.api.export import export as write
        from detrkit.api.export import export_bundle, export_program
        from detrkit.detectors.accuracy import AccuracyData
        from detrkit.export.graph import GraphOptions
        from detrkit.export.quantize import Int8Options

        if layout in ("published", "hub"):
            chosen: Any = layout
            say(f"Written to {write(model, out, layout=chosen, preset=preset)}")
            return
        order: Any = axes
        options = GraphOptions(opset, raw, _size(shape), batch, order, gather, weights == "16")
        if layout == "program":
            found_at = export_program(model, out, preset=preset, options=options, images=images or ())
            say(f"Written to {found_at}; loaded again, it finds what the model finds")
            return
        with step_bar(hidden=as_json) as progress:
            found = export_bundle(
                model,
                out,
                preset=preset,
                layout=layout,
                options=options,
                images=images or (),
                accuracy=None if data is None else AccuracyData(data, **given(split=split), progress=progress),
                int8=Int8Options(**given(calibration=calibration, gate=gate)) if int8 else None,
            )
        report(found, as_json)


def _check_layout(layout: str, graph: dict[str, Any], of_bundles: dict[str, Any]) -> None:
    """Refuse what of a graph is asked of a format that has none, or not that."""
    if layout not in _LAYOUTS:
        raise UsageError(f"--format is {layout!r}, expected one of {', '.join(_LAYOUTS)}")
    wrong = {} if layout in _BUNDLES else of_bundles if layout == "program" else {**of_bundles, **graph}
    if given_wrongly := [name for name, value in wrong.items() if value]:
        raise UsageError(f"{listed(given_wrongly)}: not with --format {layout}; leave them out")


def _size(text: str | None) -> tuple[int, int] | None:
    """Return height and width of words like 800x1066."""
    if text is None:
        return None
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isdecimal() for side in sides):
        raise UsageError(f"--shape is {text!r}, expected height and width in pixels, such as 800x1066")
    return int(sides[0]), int(sides[1])
