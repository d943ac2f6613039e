"""``detrkit.export``: write a model for other programs, or as a bundle that runs without torch."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from detrkit.api.common import Source
from detrkit.detectors.detector import Detector, ImageSource
from detrkit.errors import UsageError
from detrkit.families.build import CLASSES_SUFFIX, get_family, load_model, read_weights
from detrkit.families.family import BuiltModel
from detrkit.families.presets import PRESETS
from detrkit.families.writers import HUB_FILES, get_writers
from detrkit.files import atomic_file, check_free
from detrkit.ops.sources import list_sources
from detrkit.threshold_file import find_threshold_file, read_thresholds, threshold_path, write_thresholds

if TYPE_CHECKING:
    from detrkit.detectors.accuracy import Progress
    from detrkit.export.write import ExportResult


def export(
    model: Source | Detector,
    out: Source,
    *,
    layout: Literal["bundle", "published", "hub"] = "bundle",
    preset: str | None = None,
    opset: int = 20,
    raw: bool = False,
    images: Sequence[ImageSource] = (),
    data: Source | None = None,
    split: str = "val",
) -> Path:
    """Write a model as a bundle that runs anywhere, or its weights in another layout.

    Args:
        model: Anything that :func:`load` takes; for a bundle also a detector of one of detrkit's models.
        out: A folder or ``.zip`` file for ``bundle``, a ``.pth`` file for ``published``, a folder for ``hub``.
        layout: ``bundle``: an ONNX graph with all that it needs, proved against torch. ``published``: weights as
            the DETR authors published theirs, bit-equal. ``hub``: safetensors and config for Hugging Face
            transformers, bit-equal.
        preset: Preset the weights are for, where the file cannot tell.
        opset: ONNX operator set of a bundle: 18, 20 or 23.
        raw: Let a bundle give logits and boxes 0 to 1 instead of detections.
        images: Pictures that a bundle carries with what torch finds in them, as its proof, besides drawn ones.
        data: Data set to measure AP on, of a bundle and of its model in torch, for the bundle's report.
        split: Split of the data set.

    Returns:
        The file or folder written.

    Raises:
        UsageError: The model is nothing that can be exported, or something else lies at ``out``.
        DataError: The data cannot be read.
        BundleError: The exported graph does not find what torch finds.
    """
    if layout == "bundle":
        found = export_bundle(
            model, out, preset=preset, opset=opset, raw=raw, images=images, data=data, split=split
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
    preset: str | None = None,
    opset: int = 20,
    raw: bool = False,
    images: Sequence[ImageSource] = (),
    data: Source | None = None,
    split: str = "val",
    progress: Progress | None = None,
) -> ExportResult:
    """Write a model as a bundle, and return what is known of it; see :func:`export`."""
    from detrkit.export.write import write_bundle

    # the model, with the thresholds chosen for it
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
    # pictures, and whose weights they are
    sources = list_sources([*images])[0]
    pictures = [source.pixels(built.config.data.pixel_range) for source in sources]
    name = built.config.model.preset
    source = model.name if isinstance(model, Detector) else os.fspath(model)
    published = PRESETS[name].published if source == name else None
    return write_bundle(
        built,
        Path(out),
        name=name,
        opset=opset,
        raw=raw,
        pictures=pictures,
        thresholds=thresholds,
        licence="" if published is None else published.licence,
        source=source,
        data=data,
        split=split,
        progress=progress,
    )


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
        with atomic_file(path.with_suffix(CLASSES_SUFFIX)) as file:
            file.write(json.dumps(weights.class_map.to_dict(), indent=1) + "\n")
    else:
        writers.hub(path, weights, config)
    if thresholds is not None:
        write_thresholds(threshold_path(path), read_thresholds(thresholds, weights.class_map))
    return path
