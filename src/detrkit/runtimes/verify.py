"""Proof that a bundle is whole and finds here what it found where it was written."""

from __future__ import annotations

import dataclasses
import os
import platform
from typing import Any

from detrkit.files import to_plain
from detrkit.ops.images import decode_pixels
from detrkit.runtimes.bundle import Bundle
from detrkit.runtimes.compare import TOLERANCES, Difference, Tolerance, compare_detections
from detrkit.runtimes.predictor import Predictor, load


@dataclasses.dataclass(frozen=True)
class Verification:
    """Outcome of :func:`verify_bundle`.

    Args:
        path: The bundle.
        runtime: Name of the runtime, and its version.
        machine: System and processor.
        files: Files whose hashes were checked.
        pictures: What differs, by the name of the golden picture.
        tolerance: What is held to be the same.
        written: What was measured when the bundle was written.
    """

    path: str
    runtime: str
    machine: str
    files: int
    pictures: dict[str, Difference]
    tolerance: Tolerance
    written: dict[str, Any]

    @property
    def total(self) -> Difference:
        """What differs in all pictures."""
        return sum(self.pictures.values(), Difference())

    @property
    def passed(self) -> bool:
        """Whether everything was found again."""
        return self.total.detections > 0 and not self.total.missing

    def lines(self) -> list[str]:
        """Return the verdict for people."""
        total = self.total
        lines = [f"{self.path}: {self.files} files as they were written"]
        for name, difference in self.pictures.items():
            if difference.missing:
                lines.append(f"{name}: {difference.missing} of {difference.detections} detections not found again")
        verdict = "the same detections as torch" if self.passed else "NOT the same detections as torch"
        lines.append(
            f"{self.runtime} on {self.machine}: {verdict} in {len(self.pictures)} pictures; scores within "
            f"{total.score:.1e} (allowed {self.tolerance.score:g}), boxes within {total.box:.1e} pixels "
            f"(allowed {self.tolerance.box:g})"
        )
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Return everything ready for JSON."""
        return {"passed": self.passed, **to_plain(self)}


def verify_bundle(path: str | os.PathLike[str], runtime: str = "", threads: int | None = None) -> Verification:
    """Check every file of a bundle, and detect in its golden pictures again.

    Args:
        path: Folder or zip file that ``detrkit export`` wrote.
        runtime: ``onnxruntime``, ``openvino`` or ``auto``; if empty, the first that runs the bundle.
        threads: Threads, as for :func:`detrkit.runtimes.predictor.load`.

    Raises:
        BundleError: The bundle is damaged, changed, of a newer version, or not to be trusted.
        UsageError: There is no such runtime, it is not installed, or the bundle gives raw outputs.
    """
    predictor = load(path, runtime, threads)
    predictor.bundle.check_files()
    engine = predictor.engine
    pictures = compare_golden(predictor)
    return Verification(
        os.fspath(path),
        f"{engine.name} {engine.version}",
        machine_name(),
        len(predictor.bundle.manifest.files) + 1,
        pictures,
        TOLERANCES[engine.name],
        predictor.bundle.manifest.report,
    )


def compare_golden(predictor: Predictor) -> dict[str, Difference]:
    """Detect in the golden pictures of a bundle, alone and two in a batch, and compare with what torch found."""
    tolerance = TOLERANCES[predictor.engine.name]
    golden = predictor.bundle.manifest.golden
    images = [golden_pixels(predictor.bundle, picture.file) for picture in golden]
    alone = [predictor.detect([image])[0] for image in images]
    found = list(zip(golden, alone, strict=True))
    if predictor.preprocessing.padding == "exact":
        for pair in range(0, len(images) - 1, 2):
            sizes = [(image.shape[0], image.shape[1]) for image in images[pair : pair + 2]]
            resized = [predictor.resize(image) for image in images[pair : pair + 2]]
            found += zip(golden[pair : pair + 2], predictor.detect_together(resized, sizes), strict=True)
    differences = {picture.file: Difference() for picture in golden}
    for picture, detections in found:
        differences[picture.file] += compare_detections(picture.detections, detections, tolerance)
    return differences


def golden_pixels(bundle: Bundle, name: str) -> Any:
    """Return a golden picture, uint8 ``[H, W, 3]``.

    Raises:
        BundleError: It is not listed or damaged.
    """
    return decode_pixels(bundle.read(name), None)[0]


def machine_name() -> str:
    """Return system and processor in words."""
    return f"{platform.system()} {platform.machine()}"
