"""``detrkit.export``: write a model for other programs, or as a bundle that runs without torch."""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from detrkit.api.common import Source
from detrkit.classes import SizeHW
from detrkit.detectors.accuracy import AccuracyData
from detrkit.detectors.detector import Detector, ImageSource
from detrkit.errors import UsageError
from detrkit.export.graph import GraphOptions
from detrkit.export.quantize import GATE, Int8Options, quantize_bundle
from detrkit.export.variant import Variant
from detrkit.export.write import ExportResult, prepared_place, write_bundle, write_program
from detrkit.families.build import CLASSES_SUFFIX, get_family, load_model, read_weights
from detrkit.families.family import BuiltModel
from detrkit.families.presets import PRESETS
from detrkit.families.writers import HUB_FILES, get_writers
from detrkit.files import check_free, write_json
from detrkit.ops.sources import list_sources
from detrkit.runtimes.contents import is_bundle
from detrkit.threshold_file import (
    Thresholds,
    find_threshold_file,
    read_thresholds,
    threshold_path,
    write_thresholds,
)


def export(
    model: Source | Detector,
    out: Source,
    *,
    layout: Literal["bundle", "openvino", "tensorrt", "program", "published", "hub"] = "bundle",
    preset: str | None = None,
    opset: int = 20,
    raw: bool = False,
    shape_hw: SizeHW | None = None,
    batch: int | None = None,
    axes: Literal["nhwc", "nchw"] = "nhwc",
    weights: Literal["32", "16"] = "32",
    gather: bool = False,
    images: Sequence[ImageSource] = (),
    data: Source | None = None,
    split: str = "val",
    int8: bool = False,
    calibration: str = "train",
    gate: float = GATE,
) -> Path:
    """Write a model as a bundle that runs anywhere, or its weights in another layout.

    Args:
        model: Anything that :func:`load` takes; for a bundle also a detector of one of detrkit's models.
        out: A folder or ``.zip`` file for a bundle, a ``.pt2`` file for ``program``, a ``.pth`` file for
            ``published``, a folder for ``hub``.
        layout: ``bundle``: an ONNX graph with all that it needs, proved against torch; ``openvino``: the same in
            OpenVINO's format; ``tensorrt``: with a script that builds TensorRT engines. ``program``: a file for
            ``torch.export.load``. ``published``: weights as the DETR authors published theirs, bit-equal. ``hub``:
            safetensors and config for Hugging Face transformers, bit-equal.
        preset: Preset the weights are for, where the file cannot tell.
        opset: ONNX operator set of a bundle: 18, 20 or 23.
        raw: Let a bundle give logits and boxes 0 to 1 instead of detections.
        shape_hw: Fixed height and width of the graph's images, which are padded to it; larger ones are refused.
        batch: Fixed number of images, 1 if only the shape is given.
        axes: Order of the axes of the graph's images.
        weights: ``16`` stores weights in float16, which halves the file; they are computed with in float32.
        gather: Let plain Gathers stand where GridSample would.
        images: Pictures that a bundle carries with what torch finds in them, as its proof, besides drawn ones.
        data: Data set to measure AP on, of a bundle and of its model in torch, for the bundle's report.
        split: Split of the data set.
        int8: Let convolutions and linear layers compute in 8 bits, if that is faster here than anything else and
            AP on ``split`` falls by less than ``gate``. The model may also be a bundle.
        calibration: Split whose images INT8's scales are taken from; none of them is measured on.
        gate: AP points that INT8 may cost, less than.

    Returns:
        The file or folder written.

    Raises:
        UsageError: The model is nothing that can be exported, or something else lies at ``out``.
        DataError: The data cannot be read.
        BundleError: The exported graph does not find what torch finds, or INT8 does not pay.
    """
    if layout not in ("published", "hub"):
        options = GraphOptions(opset, raw, shape_hw, batch, axes, gather, weights == "16")
        if layout == "program":
            return export_program(model, out, preset=preset, options=options, images=images)
        found = export_bundle(
            model,
            out,
            layout=layout,
            preset=preset,
            options=options,
            images=images,
            accuracy=None if data is None else AccuracyData(data, split),
            int8=Int8Options(calibration, gate) if int8 else None,
        )
        return found.path
    if isinstance(model, Detector):
        raise UsageError(
            f"a detector in memory cannot be written as {layout}; give the model's run folder or file"
        )
    return _export_weights(model, Path(out), layout, preset)


def export_bundle(
    model: Source | Detector,
    out: Source,
    *,
    layout: str = "bundle",
    preset: str | None = None,
    options: GraphOptions | None = None,
    images: Sequence[ImageSource] = (),
    accuracy: AccuracyData | None = None,
    int8: Int8Options | None = None,
    variant: Variant | None = None,
    cold_start: bool = True,
) -> ExportResult:
    """Write a model, or a variant of it, as a bundle, and return what is known of it; see :func:`export`.

    Thresholds chosen for a model are not its variants', whose bundles have none.
    """
    if int8 is not None:
        if accuracy is None or layout != "bundle" or (options is not None and options.raw):
            raise UsageError(
                "INT8 is written as an ONNX bundle if its AP allows: name the data set to calibrate with and to "
                "measure on (--data), and leave --format and --raw out"
            )
        with prepared_place(Path(out)), tempfile.TemporaryDirectory() as folder:
            if not isinstance(model, Detector) and is_bundle(model):
                return quantize_bundle(model, Path(out), accuracy, int8)
            path = Path(folder) / "float32.zip"
            made: dict[str, Any] = {"preset": preset, "options": options, "images": images, "variant": variant}
            export_bundle(model, path, **made, cold_start=False)
            return quantize_bundle(path, Path(out), accuracy, int8)

    built, thresholds, pictures = _read_for_export(model, preset, images)
    name = built.config.model.preset
    source = model.name if isinstance(model, Detector) else os.fspath(model)
    published = PRESETS[name].published if source == name else None
    if variant is not None and variant != (whole := Variant.whole(built)):
        built, thresholds = variant.apply(built), None
        source, name = f"{source}, {variant.name} of {whole.name}", f"{name}-{variant.name}"
    with prepared_place(Path(out)):
        return write_bundle(
            built,
            Path(out),
            name=name,
            options=options or GraphOptions(),
            layout=layout,
            pictures=pictures,
            thresholds=thresholds,
            licence="" if published is None else published.licence,
            source=source,
            accuracy=accuracy,
            cold_start=cold_start,
        )


def export_program(
    model: Source | Detector,
    out: Source,
    *,
    preset: str | None = None,
    options: GraphOptions | None = None,
    images: Sequence[ImageSource] = (),
) -> Path:
    """Write a model as a file for ``torch.export.load``, proved by loading it; see :func:`export`."""
    built, _, pictures = _read_for_export(model, preset, images)
    write_program(built, Path(out), options or GraphOptions(), pictures)
    return Path(out)


def _read_for_export(
    model: Source | Detector, preset: str | None, images: Sequence[ImageSource]
) -> tuple[BuiltModel, Thresholds | None, list[np.ndarray]]:
    """Return a model, the thresholds chosen for it, and the pixels of pictures as it reads them."""
    thresholds = None
    if isinstance(model, Detector):
        if model.config is None:
            raise UsageError(f"{model.name} is a {model.kind} model; only detrkit's own models can be exported")
        family = get_family(model.config.model)
        built = BuiltModel(copy.deepcopy(model.model), family, model.config, model.class_map)
        thresholds = model.thresholds
    else:
        built = load_model(model, preset)
        if (file := find_threshold_file(model)) is not None:
            thresholds = read_thresholds(file, built.class_map)
    sources = list_sources([*images])[0]
    return built, thresholds, [source.pixels(built.config.data.pixel_range) for source in sources]


def _export_weights(model: Source, path: Path, layout: str, preset: str | None) -> Path:
    """Write weights in another layout, bit-equal; their thresholds go with them."""
    weights, config = read_weights(model, preset)
    writers = get_writers(get_family(config.model), f"{path} cannot be written")
    thresholds = find_threshold_file(model)
    outputs = [path, path.with_suffix(CLASSES_SUFFIX)]
    if layout == "hub":
        outputs = [path / name for name in HUB_FILES]
    check_free(*outputs, *([] if thresholds is None else [threshold_path(path)]))
    if layout == "published":
        if path.suffix not in (".pth", ".pt"):
            raise UsageError(f"{path} should be a .pth file, since the published layout is one file")
        writers.published(path, weights.state, config)
        write_json(path.with_suffix(CLASSES_SUFFIX), weights.class_map.to_dict())
    else:
        writers.hub(path, weights, config)
    if thresholds is not None:
        write_thresholds(threshold_path(path), read_thresholds(thresholds, weights.class_map))
    return path
