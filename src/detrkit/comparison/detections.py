"""Detections of each detector, kept as COCO results, so that a comparison that was killed need not repeat them.

Detections are taken from an earlier comparison only if everything that they depend on is the same: the weights, to
the last bit, the settings, the images. The file itself is checked too.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from detrkit.data.split import Split
from detrkit.detectors.detector import weights_digest
from detrkit.detectors.encode import has_masks
from detrkit.detectors.on_split import EvalTarget, collect
from detrkit.detectors.results import ResultsFile
from detrkit.detectors.split_evaluator import Progress
from detrkit.detectors.stages import Stages
from detrkit.download import hash_of
from detrkit.errors import DataError
from detrkit.evaluation.evaluator import CocoEvaluator
from detrkit.evaluation.truth import CocoTruth
from detrkit.files import free_name, parse_json, write_json

FOLDER = "detections"

MANIFEST = "made_from.json"
_LONGEST_STEM = 80


class DetectionStore:
    """The folder with the detections of a comparison.

    Args:
        folder: Folder of the comparison.
        split: Images that were detected on.
    """

    def __init__(self, folder: Path, split: Split):
        self.folder = folder / FOLDER
        self.split = split
        self._images = _images_digest(split)

    def obtain(
        self, subject: EvalTarget, stem: str, truth: CocoTruth, batch_size: int | None, progress: Progress | None
    ) -> tuple[CocoEvaluator, bool, dict[str, float]]:
        """Return the evaluator with a subject's detections, and True if they are those of an earlier comparison.

        Last come PQ, SQ and RQ over all classes of the data set, where the subject makes panoptic pictures.

        Args:
            subject: Detector, bound to the split.
            stem: Name of its file, without the suffix.
            truth: Annotations to measure on; the file holds detections of all classes of the split.
            batch_size: Batch size, as for :meth:`EvalTarget.detect`.
            progress: Progress, as for :meth:`EvalTarget.detect`.
        """
        if subject.stages is None:
            found = collect(subject, self.split, truth=truth, progress=progress)
            return found, False, _panoptic(found)
        path = self.folder / f"{stem}.json"
        key = self._key(subject, subject.stages)
        kept = self._kept(path, key)
        if kept is not None:
            return collect(kept, self.split, truth=truth), True, self._manifest()[path.name].get("panoptic", {})
        everything = collect(subject, self.split, batch_size=batch_size, progress=progress)
        everything.write_results_json(path)
        panoptic = _panoptic(everything)
        self._note(path, key, subject, panoptic)
        # What is measured is what was written: the same numbers now and when the file is used.
        return collect(ResultsFile(path), self.split, truth=truth), False, panoptic

    def _key(self, subject: EvalTarget, stages: Stages) -> str:
        """Return a hash of everything that the detections depend on."""
        digest = hashlib.sha256()
        classes = json.dumps(subject.class_map.to_dict())
        versions = f"{importlib.metadata.version('detrkit')} {torch.__version__}"
        masks = f"masks {subject.has_masks and has_masks(self.split.index)}"
        for text in (versions, subject.kind, subject.settings, classes, self._images, masks):
            digest.update(f"{len(text)}:{text}".encode())
        digest.update(weights_digest(stages.network).encode())
        return digest.hexdigest()

    def _kept(self, path: Path, key: str) -> ResultsFile | None:
        entry = self._manifest().get(path.name, {})
        same = isinstance(entry, dict) and entry.get("key") == key and path.is_file()
        if not same or entry.get("sha256") != hash_of(path, "sha256"):
            return None
        try:
            return ResultsFile(path)
        except DataError:
            return None

    def _note(self, path: Path, key: str, subject: EvalTarget, panoptic: dict[str, float]) -> None:
        manifest = self._manifest()
        manifest[path.name] = {
            "model": subject.name,
            "kind": subject.kind,
            "data": str(self.split.files.annotations),
            "key": key,
            "sha256": hash_of(path, "sha256"),
            "panoptic": panoptic,
        }
        write_json(self.folder / MANIFEST, manifest)

    def _manifest(self) -> dict[str, Any]:
        try:
            content = parse_json((self.folder / MANIFEST).read_bytes())
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}


def _panoptic(found: CocoEvaluator) -> dict[str, float]:
    return dict(found.finish_panoptic().values) if found.has_panoptic else {}


def file_stems(names: Sequence[str]) -> list[str]:
    """Return a file name without its suffix for each detector, different ones even where case does not count."""
    stems: list[str] = []
    taken = {Path(MANIFEST).stem}
    for name in names:
        base = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[-_LONGEST_STEM:] or "model"
        number = free_name(base.lower(), taken).removeprefix(base.lower())
        taken.add(base.lower() + number)
        stems.append(base + number)
    return stems


def _images_digest(split: Split) -> str:
    """Return a hash of the list of images, and of the size and time of each file."""
    digest = hashlib.sha256()
    index, root = split.index, Path(split.files.images)
    digest.update(index.image_ids.tobytes())
    digest.update(index.name_bytes.tobytes())
    digest.update(json.dumps(index.class_map.to_dict()).encode())
    for row in range(len(index)):
        try:
            state = (root / index.file_name(row)).stat()
        except OSError:
            continue
        digest.update(f"{state.st_size} {state.st_mtime_ns};".encode())
    return digest.hexdigest()
