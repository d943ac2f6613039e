"""Writing of a bundle: the graph, golden pictures with what torch finds in them, and the proof that both agree."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import datetime
import hashlib
import io
import platform
import subprocess
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from PIL import Image

import detrkit
from detrkit.classes import ClassMap
from detrkit.curation.synthetic import draw_scene
from detrkit.detections import ImageDetections
from detrkit.detectors.accuracy import AccuracyData, measure_accuracy, read_accuracy_split
from detrkit.detectors.bundle import predictor_detector
from detrkit.detectors.detector import Detector
from detrkit.detectors.load import make_detector
from detrkit.errors import BundleError, UsageError
from detrkit.export.formats import GRAPH, ProgramEngine, for_layout, program_file, write_graphs
from detrkit.export.graph import LEAST_SIDE, GraphOptions, round_to_half
from detrkit.families.family import BuiltModel
from detrkit.files import atomic_bytes, check_free, results_folder, to_plain
from detrkit.machine import usable_cpus
from detrkit.runtimes.bundle import (
    KIND,
    VERSION,
    Bundle,
    FileRecord,
    GoldenPicture,
    Manifest,
    MasksRecord,
    PreprocessingRecord,
    Provenance,
    seal_manifest,
)
from detrkit.runtimes.cold_start import measure_cold_start
from detrkit.runtimes.compare import Difference, Tolerance, compare_detections, compared
from detrkit.runtimes.contents import MANIFEST
from detrkit.runtimes.predictor import Predictor, check_fits, make_inputs, make_predictor, split_outputs
from detrkit.runtimes.report import Accuracy, BundleReport, differing_masks
from detrkit.runtimes.resize import resize_pixels
from detrkit.runtimes.verify import measure
from detrkit.threshold_file import Thresholds

_GOLDEN_SIZES = ((240, 320), (60, 400), (320, 100))
_GIT_S = 10
HALF = Tolerance(0.01, 1.0)
"""How far detections of weights in float16 are looked for around those of float32."""


@dataclasses.dataclass(frozen=True)
class ExportResult:
    """What was written.

    Args:
        path: The bundle.
        manifest: Its content.
        difference: What differs between ONNX Runtime and torch in the golden pictures; None for raw outputs.
        moved: What differs in torch between weights in float16 and in float32; None for float32.
    """

    path: Path
    manifest: Manifest
    difference: Difference | None
    moved: Difference | None = None

    def lines(self) -> list[str]:
        """Return what people want to know."""
        size = sum(record.bytes for record in self.manifest.files.values()) / 1e6
        report = self.manifest.report
        lines = [f"{self.manifest.name}: opset {self.manifest.graphs[0].opset}, {size:.1f} MB"]
        if self.difference is not None:
            lines.append(
                f"{report.runtime} finds what torch finds in {len(self.manifest.golden)} pictures: scores "
                f"within {self.difference.score:.1e}, boxes within {self.difference.box:.1e} pixels"
                + (f", masks within {self.difference.mask:.1e} of a picture" if self.manifest.masks else "")
            )
            if self.moved is not None:
                moved = self.moved
                lines.append(
                    f"float16 weights: {moved.detections - moved.missing} of {moved.detections} detections lie "
                    f"within {HALF.score:g} and {HALF.box:g} pixels of float32's, which move by up to "
                    f"{moved.score:.1e} and {moved.box:.1e} pixels"
                )
        if self.manifest.golden:
            lines += report.lines()
            if report.accuracy is None:
                lines.append("AP was not measured; --data DATA does that")
        return [*lines, f"Written to {self.path}; check it anywhere with: detrkit verify {self.path}"]

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the golden detections, ready for JSON."""
        content = to_plain(self.manifest)
        return {"path": str(self.path), **{name: content[name] for name in content if name != "golden"}}


@dataclasses.dataclass(frozen=True)
class NewBundle:
    """A bundle that is not written yet.

    Args:
        manifest: What is known of it; its report is still to come.
        files: Content of its other files.
    """

    manifest: Manifest
    files: Mapping[str, bytes]
    path: Path = Path("the new bundle")

    @classmethod
    def of(cls, manifest: Manifest, files: Mapping[str, bytes]) -> NewBundle:
        """Return a bundle whose manifest knows its files."""
        records = {
            name: FileRecord(hashlib.sha256(content).hexdigest(), len(content)) for name, content in files.items()
        }
        return cls(msgspec.structs.replace(manifest, files=records), files)

    def read(self, name: str, _most: int) -> bytes:
        """Return the content of a file."""
        return self.files[name]

    def predictor(self, class_map: ClassMap, thresholds: Thresholds | None) -> Predictor:
        """Return it at work in the runtime that usually runs it."""
        return make_predictor(Bundle(self.manifest, class_map, thresholds, self))

    def write(self, out: Path, report: BundleReport, cold_start: bool = True) -> Manifest:
        """Write it with its report, of which a fresh process is measured first, and return the manifest."""
        if cold_start:
            with tempfile.TemporaryDirectory() as folder:
                _write_files(Path(folder), {**self.files, MANIFEST: seal_manifest(self.manifest)})
                measured = measure_cold_start(folder, report.runtime, report.threads)
            report = msgspec.structs.replace(report, cold_start=measured)
        content = seal_manifest(msgspec.structs.replace(self.manifest, report=report))
        _write_files(out, {**self.files, MANIFEST: content})
        return msgspec.json.decode(content, type=Manifest)


def write_bundle(
    built: BuiltModel,
    out: Path,
    *,
    name: str,
    options: GraphOptions,
    layout: str = "bundle",
    pictures: Sequence[np.ndarray] = (),
    thresholds: Thresholds | None = None,
    licence: str = "",
    source: str = "",
    accuracy: AccuracyData | None = None,
    cold_start: bool = True,
) -> ExportResult:
    """Export a model on the CPU in float32 and write its bundle, proved against torch first.

    Args:
        built: Model; it is left as it is.
        out: Folder, or a ``.zip`` file for all in one; see :func:`prepared_place`.
        name: Name of the model.
        options: What the graph is like; a bundle with raw outputs has no golden pictures.
        layout: ``bundle`` for ONNX, ``openvino``, or ``tensorrt`` for ONNX with a script that builds engines.
        pictures: Golden pictures, uint8 ``[H, W, 3]``; some drawn ones are added.
        thresholds: Thresholds chosen for the model.
        licence: SPDX name of the weights' licence.
        source: Where the weights come from.
        accuracy: Data to measure AP on, of the bundle and in torch.
        cold_start: Measure a fresh process too.

    Raises:
        UsageError: Options exclude each other, or packages are missing.
        DataError: The data cannot be read.
        BundleError: ONNX Runtime does not find what torch finds, so that nothing is written.
    """
    # data to measure on and pictures that fit, before the work
    options, raw = for_layout(options, layout), options.raw
    if raw and accuracy is not None:
        raise UsageError("AP is of detections, which --raw does not give; leave one of the two out")
    built = dataclasses.replace(built, model=copy.deepcopy(built.model).cpu().float().eval())
    detector = make_detector(built, device="cpu")
    part = None if accuracy is None else read_accuracy_split(detector, accuracy)
    preprocessing = preprocessing_of(built, options)
    images = [] if raw else golden_pictures(pictures, preprocessing)
    # the graph
    built.family.prepare_inference(built.model)
    exported = built
    if options.half:
        exported = dataclasses.replace(built, model=copy.deepcopy(built.model))
        round_to_half(exported.model)
    start = time.perf_counter()
    files, graphs = write_graphs(exported, options, layout)
    seconds = time.perf_counter() - start
    # what torch finds in the golden pictures, and what is known of it all
    found = _detect(make_detector(exported, device="cpu"), images)
    moved = None if not options.half else _compare(_detect(detector, images), found)
    names = [f"golden/{number:03d}.png" for number in range(len(images))]
    masks: MasksRecord | msgspec.UnsetType = msgspec.UNSET
    if len(graphs) > 1:
        masks = MasksRecord(**built.config.masks.model_dump())
    manifest = Manifest(
        kind=KIND,
        version=VERSION if masks else 1,
        written_by=detrkit.__version__,
        name=name,
        classes=built.class_map.to_dict(),
        max_detections=built.config.train.max_detections,
        thresholds=None if thresholds is None else thresholds.to_dict(),
        licence=licence,
        provenance=_provenance(built, source),
        graphs=graphs,
        preprocessing=preprocessing,
        golden=tuple(
            golden_picture(*pair, built.config.masks.threshold) for pair in zip(names, found, strict=True)
        ),
        report=BundleReport.here(),
        files={},
        masks=masks,
    )
    new = NewBundle.of(manifest, {**files, **dict(zip(names, map(_png, images), strict=True))})
    # the proof, on the very bytes that are written
    difference, report = None, manifest.report
    if not raw:
        predictor = new.predictor(built.class_map, thresholds)
        difference, report = _prove(predictor)
        if part is not None and accuracy is not None:
            exported_detector = predictor_detector(predictor, name)
            measured = measure_accuracy(exported_detector, part, accuracy, torch_detector=detector)
            _check_accuracy(measured, report.allowed_loss)
            report = msgspec.structs.replace(report, accuracy=measured)
        del predictor  # before another process loads the same
    report = msgspec.structs.replace(report, export_s=round(seconds, 1))
    return ExportResult(out, new.write(out, report, cold_start and not raw), difference, moved)


@contextlib.contextmanager
def prepared_place(out: Path) -> Iterator[None]:
    """Make the folder of a bundle, or check that its ``.zip`` file can be written; an empty one does not stay.

    Raises:
        UsageError: Something else lies there.
    """
    if out.suffix == ".zip":
        check_free(out)
        yield
    else:
        with results_folder(out, MANIFEST, GRAPH):
            yield


def write_program(
    built: BuiltModel, out: Path, options: GraphOptions, pictures: Sequence[np.ndarray] = ()
) -> Difference:
    """Export a model as a file for ``torch.export.load``, and return what differs once it is loaded again.

    Raises:
        UsageError: Something else lies at ``out``, which should be a ``.pt2`` file.
        BundleError: The program does not find what the model finds, so that nothing is written.
    """
    if out.suffix != ".pt2":
        raise UsageError(f"{out} should be a .pt2 file, since a program is one file")
    check_free(out)
    built = dataclasses.replace(built, model=copy.deepcopy(built.model).cpu().float().eval())
    preprocessing = preprocessing_of(built, options)
    images = [] if options.raw else golden_pictures(pictures, preprocessing)
    built.family.prepare_inference(built.model)
    content = program_file(built, options)
    # the proof, of the very bytes that are written
    engine, difference = ProgramEngine(content, usable_cpus()), Difference()
    for image, expected in zip(images, _detect(make_detector(built, device="cpu"), images), strict=True):
        size = (image.shape[0], image.shape[1])
        resized = resize_pixels(image, preprocessing.rule.resized_size_hw(size))
        found = split_outputs(engine.run(make_inputs([resized], [size], preprocessing))[:3])[0]
        difference += compare_detections(expected, found, Tolerance())
    if difference.missing:
        raise BundleError(
            f"the program does not find {difference.missing} of {difference.detections} detections that the model "
            "finds; nothing was written. Report it"
        )
    with atomic_bytes(out) as file:
        file.write(content)
    return difference


def golden_pictures(given: Sequence[np.ndarray], preprocessing: PreprocessingRecord) -> list[np.ndarray]:
    """Return pictures and a few drawn ones, always the same, of several sizes that the graph takes.

    Raises:
        UsageError: A given picture does not fit the graph's fixed shape, or none of the shape's own proportions.
    """
    fixed = preprocessing.fixed_hw
    sizes = [*_GOLDEN_SIZES]
    if fixed is not None:
        for picture in (*given, np.empty((*fixed, 3), dtype=np.uint8)):
            check_fits(preprocessing.rule.resized_size_hw((picture.shape[0], picture.shape[1])), fixed)
        sides = [preprocessing.rule.resized_size_hw(size) for size in sizes]
        fits = [height <= fixed[0] and width <= fixed[1] for height, width in sides]
        sizes = [fixed, *(size for size, fit in zip(sizes, fits, strict=True) if fit)]
    drawn = []
    for number, (height, width) in enumerate(sizes):
        scene = draw_scene(np.random.Generator(np.random.PCG64(number)), max(height, width))
        drawn.append(scene.pixels[:height, :width])
    return [*given, *drawn]


def preprocessing_of(built: BuiltModel, options: GraphOptions) -> PreprocessingRecord:
    """Return what is done to an image before a graph.

    Raises:
        UsageError: The graph would have to be padded, which changes what the model finds.
    """
    transforms, padding = built.config.transforms, built.config.model.padding
    if padding != "exact" and options.shape_hw is not None:
        raise UsageError(
            f"model.padding is {padding}, so that padding an image to a fixed shape would change what is found; "
            "leave --shape out"
        )
    return PreprocessingRecord(
        transforms.eval_size,
        transforms.max_size,
        transforms.mean,
        transforms.std,
        built.config.data.pixel_range,
        LEAST_SIDE,
        padding,
        options.layout,
        options.shape_hw,
        options.fixed_batch,
        transforms.keep_aspect,
    )


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
    if failures := differing_masks(accuracy.masks, accuracy.torch_masks, allowed):
        raise BundleError(f"masks are not torch's: {'; '.join(failures)}; nothing was written")


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


def _detect(detector: Detector, images: Sequence[np.ndarray]) -> list[ImageDetections]:
    return [detector.predict_batch([torch.from_numpy(image.copy()).permute(2, 0, 1)])[0] for image in images]


def _compare(ones: Sequence[ImageDetections], others: Sequence[ImageDetections]) -> Difference:
    pairs = zip(ones, others, strict=True)
    return sum((compare_detections(one, other, HALF) for one, other in pairs), Difference())


def golden_picture(file: str, found: ImageDetections, mask_threshold: float = 0.5) -> GoldenPicture:
    """Return the record of a golden picture and what was found in it."""
    masks: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    if found.masks is not None:
        first = found.masks.take(np.arange(compared(found)))
        masks = tuple(mask["counts"] for mask in first.encode(mask_threshold))
    return GoldenPicture(
        file,
        tuple(tuple(box) for box in found.boxes_xyxy.astype(float).tolist()),
        tuple(found.scores.astype(float).tolist()),
        tuple(found.class_ids.tolist()),
        masks,
    )


def _png(image: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(image).save(content, format="PNG")
    return content.getvalue()


def _write_files(out: Path, files: Mapping[str, bytes]) -> None:
    """Write files into a folder, the manifest last, or all into one zip file."""
    if out.suffix != ".zip":
        for name, content in files.items():
            with atomic_bytes(out / name) as file:
                file.write(content)
        return
    with atomic_bytes(out) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)  # without a date: the same model gives the same file
