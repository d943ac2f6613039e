"""Bundle: what ``detrkit export`` writes and every runtime reads; see ``docs/export.md``."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import msgspec
import numpy as np

from detrkit.classes import ClassMap
from detrkit.detections import ImageDetections
from detrkit.errors import BundleError, DataError, ImageError, UsageError
from detrkit.ops.images import decode_pixels
from detrkit.preprocess import Preprocessing
from detrkit.runtimes.contents import MANIFEST, MOST_MANIFEST, Contents
from detrkit.runtimes.graph_check import check_graph, check_openvino
from detrkit.runtimes.report import BundleReport
from detrkit.threshold_file import Thresholds

KIND = "detrkit bundle"
VERSION = 2
"""Of bundles with masks; others are of version 1, which older detrkits read too."""

_Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]
_Side = Annotated[int, msgspec.Meta(ge=1, le=1 << 14)]
_Positive = Annotated[float, msgspec.Meta(gt=0)]


class FileRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of a bundle: its hash in hexadecimal, and its bytes."""

    sha256: str
    bytes: _Count


class GraphRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A graph of a bundle.

    Args:
        file: Name of the file.
        opset: ONNX operator set.
        precision: Precision that it is computed in.
        outputs: ``detections``: scores, labels and boxes in pixels, and of a model with masks what the second
            graph makes them of; ``masks``: mask logits; ``raw``: logits, boxes 0 to 1, and masks if there are any.
        weights: Precision that its weights are stored in.
        weights_file: Name of the file with the weights of OpenVINO's format; empty for ONNX, which holds its own.
    """

    file: str
    opset: int
    precision: Literal["32", "int8"] = "32"
    outputs: Literal["detections", "raw", "masks"] = "detections"
    weights: Literal["32", "16"] = "32"
    weights_file: str = ""


class PreprocessingRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is done to an image before the graph, which normalises it itself.

    Args:
        eval_size: Short side in pixels.
        max_size: Greatest long side in pixels; None for no bound.
        mean: What the graph subtracts, for pixels of 0 to 1.
        std: What the graph divides by.
        pixel_range: Gray values of 16- and 32-bit images that become black and white.
        least_side: Height and width that a batch is padded to at least.
        padding: ``exact``: padding changes nothing; ``published``: it does, and batches have images of one size.
        layout: Order of a batch's axes: ``nhwc``, pixel by pixel, or ``nchw``, channel by channel.
        fixed_hw: Height and width that every batch is padded to; None where they are free.
        fixed_batch: Images of every batch; None where their number is free.
        keep_aspect: False: images become squares of ``eval_size``.
    """

    eval_size: _Side
    max_size: _Side | None
    mean: tuple[float, float, float]
    std: tuple[_Positive, _Positive, _Positive]
    pixel_range: Literal["full", "percentile", "data"] | tuple[float, float] = "full"
    least_side: _Side = 64
    padding: Literal["exact", "published"] = "exact"
    layout: Literal["nhwc", "nchw"] = "nhwc"
    fixed_hw: tuple[_Side, _Side] | None = None
    fixed_batch: _Side | None = None
    keep_aspect: bool = True

    @property
    def rule(self) -> Preprocessing:
        """The size rule."""
        return Preprocessing(self.eval_size, self.max_size, self.mean, self.std, self.keep_aspect)


class MasksRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """From mask logits to pixels and to a panoptic picture; see :class:`detrkit.config.MasksConfig`."""

    threshold: Annotated[float, msgspec.Meta(gt=0, lt=1)]
    panoptic_score: Annotated[float, msgspec.Meta(ge=0, lt=1)]
    min_pixels: _Count
    stuff: Literal["published", "union"]


class GoldenPicture(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A picture and what torch found in it: all detections, best first, boxes in its pixels.

    Masks are those of the first detections, as many as are compared: counts of COCO's compressed RLE.
    """

    file: str
    boxes_xyxy: tuple[tuple[float, float, float, float], ...]
    scores: tuple[float, ...]
    class_ids: tuple[int, ...]
    masks: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET

    @property
    def detections(self) -> ImageDetections:
        """The same as arrays."""
        return ImageDetections(
            np.array(self.boxes_xyxy, dtype=np.float32).reshape(-1, 4),
            np.array(self.scores, dtype=np.float32),
            np.array(self.class_ids, dtype=np.int64),
        )


class Provenance(msgspec.Struct, frozen=True):
    """Where a model comes from.

    Args:
        source: Run, file or preset that was exported, as it was named.
        config: Everything the model was made from and trained with, its training data among it.
        commit: Git commit of the folder that it was exported in, with ``-dirty`` where files had changed; empty
            outside of git.
        created: When, in UTC.
        torch: Version of torch.
        python: Version of Python.
        calibration: Data, split and number of images that INT8's scales come from; None in float32.
    """

    source: str = ""
    config: dict[str, Any] = msgspec.field(default_factory=dict)
    commit: str = ""
    created: str = ""
    torch: str = ""
    python: str = ""
    calibration: dict[str, Any] | None = None


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Content of ``bundle.json``.

    Args:
        kind: Always :data:`KIND`.
        version: Version of the format.
        written_by: Version of detrkit.
        name: Name of the model.
        classes: Classes, as :meth:`detrkit.classes.ClassMap.to_dict` gives them.
        max_detections: Greatest number of detections of an image that count in evaluation.
        thresholds: Thresholds chosen for the model, as in ``thresholds.json``; None if there are none.
        licence: SPDX name of the weights' licence; empty where it is not known.
        provenance: Where the model comes from.
        graphs: Graphs.
        preprocessing: What is done to an image.
        golden: Pictures with what torch found in them.
        report: What was measured when it was written.
        files: All files but this one.
        seal: Hash of this file with an empty seal.
        masks: How masks are made, of a model that has any.
    """

    kind: str
    version: int
    written_by: str
    name: str
    classes: dict[str, Any]
    max_detections: _Count
    thresholds: dict[str, Any] | None
    licence: str
    provenance: Provenance
    graphs: tuple[GraphRecord, ...]
    preprocessing: PreprocessingRecord
    golden: tuple[GoldenPicture, ...]
    report: BundleReport
    files: dict[str, FileRecord]
    seal: str = ""
    masks: MasksRecord | msgspec.UnsetType = msgspec.UNSET


class _Version(msgspec.Struct):
    """What has to be known of a manifest before it is read."""

    kind: str = ""
    version: int = 0
    seal: str = ""


class Files(Protocol):
    """Files of a bundle by name, wherever they lie; see :class:`detrkit.runtimes.contents.Contents`."""

    @property
    def path(self) -> Path:
        """Where they lie."""

    def read(self, name: str, most: int, /) -> bytes:
        """Return the content of a file."""


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A bundle whose manifest has been read and checked; each file is checked as it is read."""

    manifest: Manifest
    class_map: ClassMap
    thresholds: Thresholds | None
    contents: Files

    def read(self, name: str) -> bytes:
        """Return the content of a file of the bundle.

        Raises:
            BundleError: It is missing, or not what was written.
        """
        where = f"{self.contents.path}: {name}"
        record = self.manifest.files.get(name)
        if record is None:
            raise BundleError(f"{where} is not listed in {MANIFEST}; copy the bundle again")
        content = self.contents.read(name, record.bytes)
        if len(content) != record.bytes:
            raise BundleError(
                f"{where} has {len(content):,} bytes, expected {record.bytes:,}; copy the bundle again"
            )
        if hashlib.sha256(content).hexdigest() != record.sha256:
            raise BundleError(f"{where} was changed since the bundle was written; copy the bundle again")
        return content

    def picture(self, name: str) -> np.ndarray:
        """Return a golden picture, uint8 ``[H, W, 3]``.

        Raises:
            BundleError: It is missing, not what was written, or no picture.
        """
        try:
            return decode_pixels(self.read(name), None)[0]
        except ImageError as error:
            raise BundleError(f"{self.contents.path}: {name}: {error}; export the model again") from error

    def read_graph(self, number: int = 0) -> bytes:
        """Return a graph, the first if not said, after a look at what it needs.

        Raises:
            BundleError: It is not what was written, or would read other files or run code of somebody's own.
        """
        graph = self.manifest.graphs[number]
        content = self.read(graph.file)
        check = check_openvino if graph.weights_file else check_graph
        check(content, f"{self.contents.path}: {graph.file}")
        return content

    def read_weights(self, number: int = 0) -> bytes | None:
        """Return the weights of a graph in OpenVINO's format; None for ONNX, which holds its own."""
        name = self.manifest.graphs[number].weights_file
        return self.read(name) if name else None

    def check_files(self) -> None:
        """Read every file, as :meth:`read` does."""
        for name in self.manifest.files:
            self.read(name)


def seal_manifest(manifest: Manifest) -> bytes:
    """Return the content of ``bundle.json``, sealed by its own hash.

    The hash is of the bytes, not of what they mean, so that later versions that know of more fields find it right.

    Raises:
        BundleError: It is larger than any that is read.
    """
    content = _encoded(msgspec.structs.replace(manifest, seal=""))
    sealed = _encoded(msgspec.structs.replace(manifest, seal=hashlib.sha256(content).hexdigest()))
    if len(sealed) > MOST_MANIFEST:
        raise BundleError(
            f"{MANIFEST} would have {len(sealed):,} bytes, expected at most {MOST_MANIFEST:,}; give fewer pictures"
        )
    return sealed


def read_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Read the manifest of a bundle.

    Raises:
        BundleError: It is no bundle, of a newer version, cut off, or changed.
    """
    contents = Contents(path)
    where = f"{contents.path}: {MANIFEST}"
    content = contents.read(MANIFEST, MOST_MANIFEST)
    # what it is, before anything is made of it
    try:
        version = msgspec.json.decode(content, type=_Version)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{where} is cut off or damaged: {error}; copy the bundle again") from error
    if version.kind != KIND:
        raise BundleError(f"{where} is of the kind {version.kind!r}, expected {KIND!r}; export the model again")
    if version.version > VERSION:
        raise BundleError(
            f"{where} has version {version.version}, newer than the {VERSION} that this detrkit reads; "
            "run: pip install --upgrade detrkit"
        )
    # unchanged, what it says, and whether that makes sense
    unsealed = content.replace(f'"seal": "{version.seal}"'.encode(), b'"seal": ""')
    if hashlib.sha256(unsealed).hexdigest() != version.seal:
        raise BundleError(f"{where} was changed since the bundle was written; export the model again")
    try:
        manifest = msgspec.json.decode(content, type=Manifest)
        class_map = ClassMap.from_dict(manifest.classes)
        thresholds = None
        if manifest.thresholds is not None:
            thresholds = Thresholds.from_dict(manifest.thresholds, where).for_classes(class_map)
        _check_sense(manifest, class_map)
    except (ValueError, KeyError, TypeError, RecursionError, DataError, UsageError) as error:
        raise BundleError(f"{where} does not say what it should: {error}; export the model again") from error
    return Bundle(manifest, class_map, thresholds, contents)


def _check_sense(manifest: Manifest, class_map: ClassMap) -> None:
    """Check what types cannot say.

    Raises:
        ValueError: Something contradicts itself, or refers to what is not there.
    """
    if not manifest.graphs:
        raise ValueError("it lists no graph")
    if [graph.outputs == "masks" for graph in manifest.graphs[:2]] != [False, True][: 1 + bool(manifest.masks)]:
        raise ValueError("it has masks and no graph of them, or a graph of masks and no masks")
    if not class_map.names:
        raise ValueError("it names no class")
    for picture in manifest.golden:
        lengths = {len(picture.boxes_xyxy), len(picture.scores), len(picture.class_ids)}
        fits = len(picture.masks or ()) <= len(picture.scores)
        if len(lengths) != 1 or not fits or not all(0 <= one < len(class_map) for one in picture.class_ids):
            raise ValueError(f"detections of {picture.file} are of several lengths, or of classes that it lacks")
    limits = manifest.preprocessing.pixel_range
    if isinstance(limits, tuple) and limits[0] >= limits[1]:
        raise ValueError(f"pixel_range is {limits}, expected the lower end first")


def _encoded(manifest: Manifest) -> bytes:
    return msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"
