"""Exported bundles as detectors, so that they are measured, compared and used as any model is.

Shapes: B images, H x W padded height and width.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from detrkit.classes import SizeHW
from detrkit.config import MasksConfig, Precision
from detrkit.detectors.detector import Detector
from detrkit.errors import UsageError
from detrkit.runtimes.engines import AUTO, ENGINES
from detrkit.runtimes.predictor import Predictor, load, make_inputs
from detrkit.types import ImageDetections

KIND = "bundle"


def bundle_detector(
    source: str | os.PathLike[str], *, device: str = "auto", precision: Precision = "32", streams: int = 1
) -> Detector:
    """Load a bundle as a detector.

    Args:
        source: Folder or zip file that ``detrkit export`` wrote, with ``@openvino``, ``@openvino-bf16`` or
            ``@auto`` behind it for another runtime than ONNX Runtime.
        device: ``auto`` or ``cpu``.
        precision: That of its graph.
        streams: Runs at once.

    Raises:
        BundleError: The bundle is damaged, changed, of a newer version, or not to be trusted.
        UsageError: It does not run on the device or in the precision.
    """
    if device not in ("auto", "cpu"):
        raise UsageError(f"device is {device!r}, but bundles run on the CPU; expected cpu or auto")
    path, runtime = split_runtime(source)
    predictor = load(path, runtime, streams=streams)
    own = predictor.bundle.manifest.graphs[0].precision
    if precision not in (own, "32"):
        raise UsageError(f"precision is {precision}, but {source} was exported with {own}")
    return predictor_detector(predictor, os.fspath(source))


def predictor_detector(predictor: Predictor, name: str) -> Detector:
    """Return a bundle that is loaded already as a detector.

    Args:
        predictor: The bundle in its runtime.
        name: Name of the detector.
    """
    bundle, engine = predictor.bundle, predictor.engine
    graphs = " ".join(bundle.manifest.files[graph.file].sha256 for graph in bundle.manifest.graphs)
    detector = Detector(
        BundleStages(predictor),
        bundle.class_map,
        name=name,
        kind=KIND,
        settings=f"{graphs} {bundle.manifest.preprocessing} {engine.name} {engine.version}",
        max_detections=bundle.manifest.max_detections,
        thresholds=bundle.thresholds,
    )
    detector.pixel_range = bundle.manifest.preprocessing.pixel_range
    if masks := bundle.manifest.masks:
        detector.masks = MasksConfig(**msgspec.structs.asdict(masks))
    return detector


def split_runtime(source: str | os.PathLike[str]) -> tuple[str, str]:
    """Return a bundle's path and the runtime that is named behind it, empty where none is."""
    path, _, runtime = os.fspath(source).rpartition("@")
    if path and runtime in (*ENGINES, AUTO):
        return path, runtime
    return os.fspath(source), ""


class BundleStages:
    """The stages of a bundle; its graph normalises and postprocesses, which ``forward`` therefore does too.

    Args:
        predictor: The bundle in its runtime.
    """

    def __init__(self, predictor: Predictor):
        self.predictor = predictor
        self.network: nn.Module = nn.Identity()  # its parameters are the runtime's
        self.device = torch.device("cpu")
        self.threads = predictor.engine.threads
        self.streams = predictor.engine.streams
        engine = predictor.engine
        self.runtime = f"{engine.name} {engine.version}, {engine.precision}"
        self.pads = predictor.preprocessing.padding == "exact"
        self.has_masks = predictor.mask_engine is not None

    def resize(self, image: Tensor) -> Tensor:
        """Resize an image by the model's rule, in torch: the same bits, sooner."""
        return self.predictor.preprocessing.rule.resize(image)

    def preprocess(self, images: Sequence[Tensor]) -> dict[str, np.ndarray]:
        """Pad images; boxes are asked for in shares of them, whose pixels only :meth:`postprocess` knows."""
        pixels = [image.permute(1, 2, 0).numpy() for image in images]
        return make_inputs(pixels, [(1, 1)] * len(pixels), self.predictor.preprocessing)

    def forward(self, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Run the graph."""
        return self.predictor.run(inputs)

    def postprocess(self, outputs: list[np.ndarray], orig_sizes_hw: Sequence[SizeHW]) -> list[ImageDetections]:
        """Return detections in pixels of the images' files."""
        scores, labels, boxes, *parts = (output[: len(orig_sizes_hw)] for output in outputs)
        scales = np.tile(
            np.array(orig_sizes_hw, dtype=np.float32)[:, None, ::-1], 2
        )  # width, height, width, height
        return self.predictor.read([scores, labels, boxes * scales, *parts], orig_sizes_hw)
