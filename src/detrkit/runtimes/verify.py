"""Proof that a bundle is whole and finds here what it found where it was written."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from detrkit.errors import BundleError, UsageError, listed
from detrkit.files import to_plain
from detrkit.latency import Percentiles
from detrkit.runtimes.bundle import Bundle
from detrkit.runtimes.cold_start import measure_cold_start
from detrkit.runtimes.compare import Difference, Tolerance, compare_detections, tolerance_of
from detrkit.runtimes.predictor import DEFAULT_THRESHOLD, Predictor, load
from detrkit.runtimes.report import BundleReport, differing_masks
from detrkit.threshold_file import take_detections

_LEAST_RUNS = 9
_MOST_RUNS = 100
_TIME_S = 2.0


@dataclasses.dataclass(frozen=True)
class Verification:
    """Outcome of :func:`verify_bundle`.

    Args:
        path: The bundle.
        files: Files whose hashes were checked.
        pictures: What differs, by the name of the golden picture.
        tolerance: What is held to be the same.
        report: What was measured here.
        written: What was measured when the bundle was written.
        masks: There are masks, which were compared too.
    """

    path: str
    files: int
    pictures: dict[str, Difference]
    tolerance: Tolerance
    report: BundleReport
    written: BundleReport
    masks: bool = False

    @property
    def total(self) -> Difference:
        """What differs in all pictures."""
        return sum(self.pictures.values(), Difference())

    @property
    def failures(self) -> list[str]:
        """What is not as it was, in words; empty if everything is."""
        found = golden_failures(self.pictures, self.tolerance)
        here, then = self.report.accuracy, self.written.accuracy
        if here is None or then is None or here.sha256 != then.sha256:
            return found
        found += differing_masks(here.masks, then.torch_masks or then.masks, self.report.allowed_loss)
        before = then.ap if then.torch_ap is None or self.report.precision == "int8" else then.torch_ap
        if abs(here.ap - before) > self.report.allowed_loss:
            found.append(
                f"AP {here.ap:.4f} on {here.data}, {here.split}, expected {before:.4f} "
                f"within {self.report.allowed_loss:g}"
            )
        return found

    @property
    def warnings(self) -> list[str]:
        """What is other than where the bundle was written, in words."""
        found = self.report.changes(self.written)
        here, then = self.report.accuracy, self.written.accuracy
        if here is not None and then is not None and here.sha256 != then.sha256:
            found.append(f"data: other annotations than when it was written ({then.data}, {then.split})")
        return found

    @property
    def _origin(self) -> str:
        return "those where it was written" if self.report.precision == "int8" else "torch"

    @property
    def passed(self) -> bool:
        """Whether everything was found again."""
        return not self.failures

    @property
    def verdict(self) -> Literal["verified", "verified with warnings", "failed"]:
        """``verified with warnings``: the same results, with another runtime, on another machine or data."""
        if not self.passed:
            return "failed"
        return "verified with warnings" if self.warnings else "verified"

    def lines(self) -> list[str]:
        """Return everything for people, the verdict last."""
        total, masks = self.total, self.masks
        same = f"{'' if total.within(self.tolerance) else 'NOT '}the same detections as {self._origin}"
        if total.missing and self.tolerance.missing:
            same += f" but for {total.missing} of {total.detections} (allowed {self.tolerance.missing:.0%})"
        lines = [
            f"{self.path}: {self.files} files as they were written",
            f"{same} in {len(self.pictures)} pictures: scores within {total.score:.1e} (allowed "
            f"{self.tolerance.score:g}), boxes within {total.box:.1e} pixels (allowed {self.tolerance.box:g})"
            + (f", masks within {total.mask:.1e} of a picture (allowed {self.tolerance.mask:g})" if masks else ""),
            *self.report.lines(),
            *(f"when it was written: {line}" for line in self.written.lines()),
            *(f"WARNING: {line}" for line in self.warnings),
            *(f"FAILED: {line}" for line in self.failures),
        ]
        return [*lines, self.verdict.upper()]

    def to_dict(self) -> dict[str, Any]:
        """Return everything ready for JSON."""
        words = {"passed": self.passed, "verdict": self.verdict}
        return {**words, "warnings": self.warnings, "failures": self.failures, **to_plain(self)}


def verify_bundle(
    path: str | os.PathLike[str], runtime: str = "", threads: int | None = None, *, cold_start: bool = True
) -> Verification:
    """Check every file of a bundle, detect in its golden pictures again, and time that.

    Args:
        path: Folder or zip file that ``detrkit export`` wrote.
        runtime: ``onnxruntime``, ``openvino``, ``openvino-bf16`` or ``auto``; if empty, the first that runs the
            bundle.
        threads: Threads, as for :func:`detrkit.runtimes.predictor.load`.
        cold_start: Measure a fresh process too.

    Raises:
        BundleError: The bundle is damaged, changed, of a newer version, or not to be trusted.
        UsageError: There is no such runtime, it is not installed, or the bundle gives raw outputs.
    """
    predictor = _load_whole(path, runtime, threads)
    bundle = predictor.bundle
    pictures, report = measure(predictor)
    if cold_start:
        measured = measure_cold_start(path, predictor.engine.name, predictor.engine.threads)
        report = msgspec.structs.replace(report, cold_start=measured)
    return Verification(
        os.fspath(path),
        len(bundle.manifest.files) + 1,
        pictures,
        tolerance_of(predictor.engine.name, bundle.manifest.graphs[0].precision),
        report,
        bundle.manifest.report,
        bool(bundle.manifest.masks),
    )


def golden_failures(pictures: Mapping[str, Difference], tolerance: Tolerance) -> list[str]:
    """Return what of the golden pictures was not found again, in words; empty if everything was."""
    found = []
    total = sum(pictures.values(), Difference())
    if not total.within(tolerance):
        found = [
            f"{name}: {difference.missing} of {difference.detections} detections are not found again"
            for name, difference in pictures.items()
            if difference.missing
        ]
    if not total.detections:
        found.append("no detection to compare")
    return found


def load_verified(path: str | os.PathLike[str], runtime: str = "", threads: int | None = None) -> Predictor:
    """Load a bundle, as :func:`detrkit.runtimes.predictor.load`, that is whole and finds what it found.

    Raises:
        BundleError: The bundle is damaged, changed, newer, not to be trusted, or finds something else.
        UsageError: There is no such runtime, it is not installed, or there is nothing to compare with.
    """
    predictor = _load_whole(path, runtime, threads)
    tolerance = tolerance_of(predictor.engine.name, predictor.bundle.manifest.graphs[0].precision)
    if failures := golden_failures(compare_golden(predictor), tolerance):
        raise BundleError(f"{path} does not find what it found: {listed(failures, 3)}; run detrkit verify")
    return predictor


def _load_whole(path: str | os.PathLike[str], runtime: str, threads: int | None) -> Predictor:
    """Load a bundle whose files are all as they were written, and which has pictures to compare with."""
    predictor = load(path, runtime, threads)
    predictor.bundle.check_files()
    if not predictor.bundle.manifest.golden:
        raise UsageError(f"{path} has no golden pictures to detect in again; export it anew")
    return predictor


def measure(predictor: Predictor) -> tuple[dict[str, Difference], BundleReport]:
    """Compare a bundle with torch in its golden pictures, and time it; return what differs by picture, and all."""
    pictures = compare_golden(predictor)
    images = _golden_images(predictor.bundle)
    threshold = predictor.bundle.thresholds or DEFAULT_THRESHOLD
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < _LEAST_RUNS or (len(times) < _MOST_RUNS and time.perf_counter() - start < _TIME_S):
        before = time.perf_counter()
        [found] = predictor.detect([images[len(times) % len(images)]])
        taken = take_detections(found, threshold)
        if taken.masks is not None:
            taken.masks.pixels()
        times.append(1000 * (time.perf_counter() - before))
    graph = predictor.bundle.manifest.graphs[0]
    precision = predictor.engine.precision
    if graph.precision != "32":
        precision = graph.precision
    elif graph.weights == "16" and precision == "float32":
        precision = "float16"
    report = BundleReport.here(predictor.engine, precision)
    return pictures, msgspec.structs.replace(
        report, parity=sum(pictures.values(), Difference()), latency=Percentiles.of(times), runs=len(times)
    )


def compare_golden(predictor: Predictor) -> dict[str, Difference]:
    """Detect in the golden pictures of a bundle, alone and two in a batch, and compare with what torch found."""
    tolerance = tolerance_of(predictor.engine.name, predictor.bundle.manifest.graphs[0].precision)
    golden = predictor.bundle.manifest.golden
    images = _golden_images(predictor.bundle)
    alone = [predictor.detect([image])[0] for image in images]
    found = list(zip(golden, alone, strict=True))
    if predictor.preprocessing.padding == "exact":
        for pair in range(0, len(images) - 1, 2):
            sizes = [(image.shape[0], image.shape[1]) for image in images[pair : pair + 2]]
            resized = [predictor.resize(image) for image in images[pair : pair + 2]]
            found += zip(golden[pair : pair + 2], predictor.detect_together(resized, sizes), strict=True)
    differences = {picture.file: Difference() for picture in golden}
    how = predictor.bundle.manifest.masks
    mask_threshold = how.threshold if how else 0.5
    for picture, detections in found:
        differences[picture.file] += compare_detections(
            picture.detections, detections, tolerance, picture.masks or (), mask_threshold
        )
    return differences


def _golden_images(bundle: Bundle) -> list[Any]:
    return [bundle.picture(picture.file) for picture in bundle.manifest.golden]
