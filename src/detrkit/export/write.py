"""Writing of a bundle: the graph, golden pictures with what torch finds in them, and the proof that both agree."""

from __future__ import annotations

import copy
import dataclasses
import datetime
import hashlib
import io
import os
import platform
import subprocess
import tempfile
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
from detrkit.detectors.accuracy import Progress, measure_accuracy, read_accuracy_split
from detrkit.detectors.bundle import predictor_detector
from detrkit.detectors.load import make_detector
from detrkit.errors import BundleError, UsageError
from detrkit.export.graph import LEAST_SIDE, export_graph
from detrkit.families.family import BuiltModel
from detrkit.files import atomic_bytes, check_free, make_folder, to_plain
from detrkit.runtimes.bundle import (
    KIND,
    VERSION,
    Bundle,
    FileRecord,
    GoldenPicture,
    GraphRecord,
    Manifest,
    PreprocessingRecord,
    Provenance,
    seal_manifest,
)
from detrkit.runtimes.cold_start import measure_cold_start
from detrkit.runtimes.compare import Difference
from detrkit.runtimes.contents import MANIFEST
from detrkit.runtimes.engines import make_engine
from detrkit.runtimes.predictor import Predictor
from detrkit.runtimes.report import Accuracy, BundleReport, ColdStart
from detrkit.runtimes.verify import measure
from detrkit.threshold_file import Thresholds

GRAPH = "graph.onnx"
_GOLDEN_SIZES = ((240, 320), (60, 400), (320, 100))
_GIT_S = 10


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
        report = self.manifest.report
        lines = [f"{self.manifest.name}: opset {self.manifest.graphs[0].opset}, {size:.1f} MB"]
        if self.difference is not None:
            lines.append(
                f"{report.runtime} finds what torch finds in {len(self.manifest.golden)} pictures: scores "
                f"within {self.difference.score:.1e}, boxes within {self.difference.box:.1e} pixels"
            )
            lines += report.lines()
            if report.accuracy is None:
                lines.append("AP was not measured; --data DATA does that")
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
    data: str | os.PathLike[str] | None = None,
    split: str = "val",
    progress: Progress | None = None,
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
        data: Data set to measure AP on, of the bundle and in torch.
        split: Its split.
        progress: Receives how far that is.

    Raises:
        UsageError: Something else lies at ``out``, or packages are missing.
        DataError: The data cannot be read.
        BundleError: ONNX Runtime does not find what torch finds, so that nothing is written.
    """
    # a place to write to and data to measure on, before the work
    if raw and data is not None:
        raise UsageError("AP is of detections, which --raw does not give; leave one of the two out")
    is_file = out.suffix == ".zip"
    if is_file:
        check_free(out)
    else:
        make_folder(out, MANIFEST, GRAPH)
    built = dataclasses.replace(built, model=copy.deepcopy(built.model).cpu().float().eval())
    detector = make_detector(built, device="cpu")
    part = None if data is None else read_accuracy_split(detector, data, split)
    # the graph
    built.family.prepare_inference(built.model)
    start = time.perf_counter()
    graph = export_graph(built, opset=opset, raw=raw)
    seconds = time.perf_counter() - start
    # golden pictures and what torch finds
    images = [] if raw else [*pictures, *golden_pictures()]
    found = [detector.predict_batch([torch.from_numpy(image.copy()).permute(2, 0, 1)])[0] for image in images]
    files = {GRAPH: graph}
    golden = []
    for number, (image, detections) in enumerate(zip(images, found, strict=True)):
        file = f"golden/{number:03d}.png"
        files[file] = _png(image)
        golden.append(_golden(file, detections))
    # what is known of it all
    transforms = built.config.transforms
    manifest = Manifest(
        kind=KIND,
        version=VERSION,
        written_by=detrkit.__version__,
        name=name,
        classes=built.class_map.to_dict(),
        max_detections=built.config.train.max_detections,
        thresholds=None if thresholds is None else thresholds.to_dict(),
        licence=licence,
        provenance=_provenance(built, source),
        graphs=(GraphRecord(GRAPH, opset, outputs="raw" if raw else "detections"),),
        preprocessing=PreprocessingRecord(
            transforms.eval_size,
            transforms.max_size,
            transforms.mean,
            transforms.std,
            built.config.data.pixel_range,
            LEAST_SIDE,
            built.config.model.padding,
        ),
        golden=tuple(golden),
        report=BundleReport.here(),
        files={
            file: FileRecord(hashlib.sha256(content).hexdigest(), len(content)) for file, content in files.items()
        },
    )
    # the proof, on the very bytes that are written
    difference, report = None, manifest.report
    if not raw:
        bundle = Bundle(manifest, built.class_map, thresholds, _InMemory(files))
        predictor = Predictor(bundle, make_engine(bundle.read_graph()))
        difference, report = _prove(predictor)
        if part is not None and data is not None:
            accuracy = measure_accuracy(
                predictor_detector(predictor, name),
                part,
                data=data,
                split=split,
                torch_detector=detector,
                progress=progress,
            )
            _check_accuracy(accuracy, report.allowed_loss)
            report = msgspec.structs.replace(report, accuracy=accuracy)
        del predictor  # before another process loads the same
        report = msgspec.structs.replace(report, cold_start=_cold_start(manifest, files, report))
    report = msgspec.structs.replace(report, export_s=round(seconds, 1))
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


def _prove(predictor: Predictor) -> tuple[Difference, BundleReport]:
    """Compare with torch, and time; return the difference and all that was measured.

    Raises:
        BundleError: The runtime finds something else.
    """
    pictures, report = measure(predictor)
    difference = sum(pictures.values(), Difference())
    if difference.missing:
        raise BundleError(
            f"{report.runtime} {report.version} does not find {difference.missing} of {difference.detections} "
            "detections that torch finds; nothing was written. Try another --opset, and report it"
        )
    return difference, report


def _check_accuracy(accuracy: Accuracy, allowed: float) -> None:
    """Refuse a bundle whose AP is not its model's.

    Raises:
        BundleError: It is not.
    """
    if accuracy.torch_ap is not None and abs(accuracy.ap - accuracy.torch_ap) > allowed:
        raise BundleError(f"{accuracy.line()}: they may lie {allowed:g} apart; nothing was written")


def _cold_start(manifest: Manifest, files: Mapping[str, bytes], report: BundleReport) -> ColdStart | None:
    """Measure a fresh process on the files that are going to be written."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bundle"
        for name, content in {**files, MANIFEST: seal_manifest(manifest)}.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
        return measure_cold_start(path, report.runtime, report.threads)


def _provenance(built: BuiltModel, source: str) -> Provenance:
    """Return where a model comes from, as far as that can be known here."""
    command = ["git", "--no-optional-locks", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_GIT_S)
        commit = ran.stdout.strip()
    except (OSError, subprocess.SubprocessError):  # no git here, or no commit
        commit = ""
    return Provenance(
        source,
        built.config.model_dump(mode="json"),
        commit,
        datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        str(torch.__version__),
        platform.python_version(),
    )


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
