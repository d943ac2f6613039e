"""Writing of a bundle: the graph, golden pictures with what torch finds in them, and the proof that both agree."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import io
import platform
import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from PIL import Image

import detrkit
from detrkit.curation.synthetic import draw_scene
from detrkit.detections import ImageDetections
from detrkit.detectors.load import make_detector
from detrkit.errors import BundleError
from detrkit.export.graph import LEAST_SIDE, export_graph
from detrkit.families.family import BuiltModel
from detrkit.files import atomic_bytes, check_free, make_folder, to_plain
from detrkit.latency import Percentiles
from detrkit.runtimes.bundle import (
    KIND,
    VERSION,
    Bundle,
    FileRecord,
    GoldenPicture,
    GraphRecord,
    Manifest,
    PreprocessingRecord,
    seal_manifest,
)
from detrkit.runtimes.compare import Difference
from detrkit.runtimes.contents import MANIFEST
from detrkit.runtimes.engines import make_engine
from detrkit.runtimes.predictor import Predictor
from detrkit.runtimes.verify import compare_golden, machine_name
from detrkit.threshold_file import Thresholds

GRAPH = "graph.onnx"
_GOLDEN_SIZES = ((240, 320), (60, 400), (320, 100))
_RUNS = 3


@dataclasses.dataclass(frozen=True)
class ExportResult:
    """What was written.

    Args:
        path: The bundle.
        manifest: Its content.
        difference: What differs between ONNX Runtime and torch in the golden pictures; None for raw outputs.
    """

    path: Path
    manifest: Manifest
    difference: Difference | None

    def lines(self) -> list[str]:
        """Return what people want to know."""
        size = sum(record.bytes for record in self.manifest.files.values()) / 1e6
        lines = [f"{self.manifest.name}: opset {self.manifest.graphs[0].opset}, {size:.1f} MB"]
        if self.difference is not None:
            report = self.manifest.report
            lines.append(
                f"{report['runtime']} finds what torch finds in {len(self.manifest.golden)} pictures: scores "
                f"within {self.difference.score:.1e}, boxes within {self.difference.box:.1e} pixels"
            )
        return [*lines, f"Written to {self.path}; check it anywhere with: detrkit verify {self.path}"]

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the golden detections, ready for JSON."""
        content = to_plain(self.manifest)
        return {"path": str(self.path), **{name: content[name] for name in content if name != "golden"}}


def write_bundle(
    built: BuiltModel,
    out: Path,
    *,
    name: str,
    opset: int,
    raw: bool = False,
    pictures: Sequence[np.ndarray] = (),
    thresholds: Thresholds | None = None,
    licence: str = "",
    source: str = "",
) -> ExportResult:
    """Export a model on the CPU in float32 and write its bundle, proved against torch first.

    Args:
        built: Model; it is left as it is.
        out: Folder, or a ``.zip`` file for all in one.
        name: Name of the model.
        opset: ONNX operator set.
        raw: Give out logits and boxes 0 to 1 instead of detections; such a bundle has no golden pictures.
        pictures: Golden pictures, uint8 ``[H, W, 3]``; some drawn ones are added.
        thresholds: Thresholds chosen for the model.
        licence: SPDX name of the weights' licence.
        source: Where the weights come from.

    Raises:
        UsageError: Something else lies at ``out``, or packages are missing.
        BundleError: ONNX Runtime does not find what torch finds, so that nothing is written.
    """
    # a place to write to, before the work
    is_file = out.suffix == ".zip"
    if is_file:
        check_free(out)
    else:
        make_folder(out, MANIFEST, GRAPH)
    # the graph
    built = dataclasses.replace(built, model=copy.deepcopy(built.model).cpu().float().eval())
    built.family.prepare_inference(built.model)
    start = time.perf_counter()
    graph = export_graph(built, opset=opset, raw=raw)
    seconds = time.perf_counter() - start
    # golden pictures and what torch finds
    images = [] if raw else [*pictures, *golden_pictures()]
    detector = make_detector(built, device="cpu")
    found = [detector.predict_batch([torch.from_numpy(image.copy()).permute(2, 0, 1)])[0] for image in images]
    files = {GRAPH: graph}
    golden = []
    for number, (image, detections) in enumerate(zip(images, found, strict=True)):
        file = f"golden/{number:03d}.png"
        files[file] = _png(image)
        golden.append(_golden(file, detections))
    # what is known of it all
    transforms, data = built.config.transforms, built.config.data
    manifest = Manifest(
        kind=KIND,
        version=VERSION,
        written_by=detrkit.__version__,
        name=name,
        classes=built.class_map.to_dict(),
        max_detections=built.config.train.max_detections,
        thresholds=None if thresholds is None else thresholds.to_dict(),
        licence=licence,
        provenance={
            "source": source,
            "model": built.config.model.model_dump(mode="json"),
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
        graphs=(GraphRecord(GRAPH, opset, outputs="raw" if raw else "detections"),),
        preprocessing=PreprocessingRecord(
            transforms.eval_size,
            transforms.max_size,
            transforms.mean,
            transforms.std,
            data.pixel_range,
            LEAST_SIDE,
            built.config.model.padding,
        ),
        golden=tuple(golden),
        report={},
        files={
            file: FileRecord(hashlib.sha256(content).hexdigest(), len(content)) for file, content in files.items()
        },
    )
    # the proof, on the very bytes that are written
    difference, report = None, {"export_s": round(seconds, 1)}
    if not raw:
        bundle = Bundle(manifest, built.class_map, thresholds, _InMemory(files))
        difference, measured = _prove(Predictor(bundle, make_engine(bundle.read_graph())), images[0])
        report |= measured
    content = seal_manifest(msgspec.structs.replace(manifest, report=report))
    _write(out, {**files, MANIFEST: content})
    return ExportResult(out, msgspec.json.decode(content, type=Manifest), difference)


def golden_pictures() -> list[np.ndarray]:
    """Return a few drawn pictures of several sizes, always the same."""
    pictures = []
    for number, (height, width) in enumerate(_GOLDEN_SIZES):
        scene, _ = draw_scene(np.random.Generator(np.random.PCG64(number)), max(height, width))
        pictures.append(scene[:height, :width])
    return pictures


@dataclasses.dataclass(frozen=True)
class _InMemory:
    """The files of a bundle that is not written yet."""

    files: Mapping[str, bytes]
    path: Path = Path("the new bundle")

    def read(self, name: str, _most: int) -> bytes:
        return self.files[name]


def _prove(predictor: Predictor, image: np.ndarray) -> tuple[Difference, dict[str, Any]]:
    """Compare with torch, and time; return the difference and what the report says of it.

    Raises:
        BundleError: The runtime finds something else.
    """
    difference = sum(compare_golden(predictor).values(), Difference())
    engine = predictor.engine
    runtime = f"{engine.name} {engine.version}"
    if difference.missing:
        raise BundleError(
            f"{runtime} does not find {difference.missing} of {difference.detections} detections that torch "
            "finds; nothing was written. Try another --opset, and report it"
        )
    times = []
    for _ in range(_RUNS):
        start = time.perf_counter()
        predictor.detect([image])
        times.append(1000 * (time.perf_counter() - start))
    return difference, {
        "runtime": runtime,
        "machine": machine_name(),
        "threads": engine.threads,
        "parity": to_plain(difference),
        "latency_ms": to_plain(Percentiles.of(times)),
    }


def _golden(file: str, found: ImageDetections) -> GoldenPicture:
    return GoldenPicture(
        file,
        tuple(tuple(box) for box in found.boxes_xyxy.astype(float).tolist()),
        tuple(found.scores.astype(float).tolist()),
        tuple(found.class_ids.tolist()),
    )


def _png(image: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(image).save(content, format="PNG")
    return content.getvalue()


def _write(out: Path, files: Mapping[str, bytes]) -> None:
    """Write files into a folder, the manifest last, or all into one zip file."""
    if out.suffix != ".zip":
        for name, content in files.items():
            with atomic_bytes(out / name) as file:
                file.write(content)
        return
    with atomic_bytes(out) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)  # without a date: the same model gives the same file
