"""What is seen of a picture that a model detects in: the picture's own values, and those of its detections.

Shapes: K detections of a picture.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from detrkit.detectors.detector import Detector, ErrorReport, weights_digest
from detrkit.errors import DataError, UsageError, counted
from detrkit.files import atomic_bytes, parse_json
from detrkit.ops.sources import list_folder
from detrkit.serving.sampling import RECORDS
from detrkit.threshold_file import Thresholds

_KIND = "detrkit observations"


class Observation(msgspec.Struct, frozen=True):
    """A picture and what was found in it.

    Args:
        brightness: Mean of its pixels, 0 to 1.
        side: Square root of its area in pixels.
        best: Highest score of all detections, 0 without any.
        scores: Scores of the detections from the threshold on, ``[K]``.
        sizes: Square root of each one's share of the picture, ``[K]``.
        class_ids: Classes, ``[K]``.
    """

    brightness: float
    side: float
    best: float
    scores: tuple[float, ...]
    sizes: tuple[float, ...]
    class_ids: tuple[int, ...]


class Reference(msgspec.Struct, frozen=True):
    """Content of ``reference.json``: what a model finds in the data that it was made for.

    Args:
        data: What people call the data.
        model: Hash of the model, its classes and thresholds: those of another would say nothing.
        pictures: The pictures.
        kind: Always :data:`_KIND`.
    """

    data: str
    model: str
    pictures: tuple[Observation, ...]
    kind: str = _KIND


class Observed(msgspec.Struct, frozen=True):
    """A picture, what is known of it, and where.

    Args:
        path: Its file.
        size_hw: Pixels, upright.
        observation: What is compared.
        boxes_xyxy: Boxes of the detections from the threshold on, float32 ``[K, 4]``.
        doubt: How unsure the model is, 0 to 1.
    """

    path: Path
    size_hw: tuple[int, int]
    observation: Observation
    boxes_xyxy: np.ndarray
    doubt: float


class _Record(msgspec.Struct):
    """What is read of a line of :data:`detrkit.serving.sampling.RECORDS`."""

    file: str
    time: str = ""
    model: str = ""
    version: str = ""


def read_samples(folder: Path) -> tuple[list[Path], list[str]]:
    """List the pictures that a server kept, or all of a folder of pictures.

    Returns:
        The files, and what people must know: what is missing, when they were sent, to which models.

    Raises:
        DataError: There is none.
        UsageError: There is no such folder.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder; give the one that detrkit serve --sample-dir wrote, or pictures")
    try:
        lines = (folder / RECORDS).read_bytes().splitlines()
    except FileNotFoundError:
        return list_folder(folder), []
    records: list[_Record] = []
    broken = lost = 0
    for line in lines:
        try:
            record = msgspec.json.decode(line, type=_Record)
        except (msgspec.DecodeError, UnicodeDecodeError):  # the last one of a server that was killed
            broken += 1
            continue
        # a record is no reason to read files elsewhere
        inside = Path(record.file).name == record.file and (folder / record.file).is_file()
        lost += not inside
        records += [record] if inside else []
    if not records:
        raise DataError(f"{folder / RECORDS} names no picture that is there, of {counted(len(lines), 'line')}")
    times = sorted(record.time for record in records)
    models = sorted({f"{record.model} {record.version[:12]}".strip() for record in records})
    notes = [f"{counted(len(records), 'picture')} sent from {times[0]} to {times[-1]}, to {', '.join(models)}"]
    left = len(list(folder.glob("*.img"))) - len({record.file for record in records})
    for count, what in (
        (broken, "of its lines cannot be read"),
        (lost, "of its lines name a picture that is not there"),
        (left, "of the pictures have no line"),
    ):
        notes += [f"{count} {what}, and are left out"] if count > 0 else []
    return [folder / record.file for record in records], notes


def choose(pictures: Sequence[Path], most: int, seed: int = 0) -> list[Path]:
    """Draw so many of the pictures, in their order; all if there are no more."""
    rows = np.random.default_rng(seed).permutation(len(pictures))[:most]
    return [pictures[row] for row in sorted(rows.tolist())]


def observe(
    detector: Detector,
    pictures: Sequence[Path],
    *,
    on_error: ErrorReport,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Observed]:
    """Detect in pictures, and tell what is seen of each that can be read.

    Args:
        detector: The model; its thresholds decide what is taken.
        pictures: Their files.
        on_error: Called with name and error of a picture that cannot be read, which is left out.
        progress: Called with pictures done and pictures in all.
    """
    limit = detector.resolve_threshold(None)
    stream = detector.stream(list(pictures), 0.0, on_error=on_error, keep_images=True, masks=False)
    for done, item in enumerate(stream, 1):
        assert item.image is not None
        # scores as they are shown, and the least that is taken of each class
        found, class_ids = item.detections, np.asarray(item.detections.class_id)
        scores, least = np.asarray(found.confidence, dtype=np.float64), np.full(len(found), 0.0)
        if isinstance(limit, Thresholds):
            scores = limit.calibrated(scores)
            least += np.array([entry.score for entry in limit.classes])[class_ids]
        else:
            least += limit
        taken, (height, width) = scores >= least, item.image.shape[:2]
        boxes = found.xyxy[taken]
        shares = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) / (height * width)
        observation = Observation(
            float(item.image.mean()) / 255,
            float(np.sqrt(height * width)),
            float(scores.max(initial=0)),
            tuple(scores[taken].tolist()),
            tuple(np.sqrt(np.maximum(shares, 0)).tolist()),
            tuple(class_ids[taken].tolist()),
        )
        yield Observed(Path(item.source), (height, width), observation, boxes, _doubt(scores, least))
        if progress is not None:
            progress(done, len(pictures))


def model_key(detector: Detector) -> str:
    """Return a hash of everything that a model's detections depend on."""
    limit = detector.resolve_threshold(None)
    parts: Any = [
        detector.settings,
        detector.class_map.to_dict(),
        limit.to_dict() if isinstance(limit, Thresholds) else limit,
        weights_digest(detector.model),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def write_reference(path: Path, reference: Reference) -> None:
    """Write ``reference.json``."""
    with atomic_bytes(path) as file:
        file.write(msgspec.json.encode(reference))


def read_reference(path: Path, detector: Detector) -> Reference:
    """Read ``reference.json`` of a model.

    Raises:
        DataError: It cannot be read.
        UsageError: It is another model's.
    """
    try:
        found: Reference = parse_json(path.read_bytes(), Reference)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is no reference of detrkit drift: {error}; write it anew with --data") from error
    if found.kind != _KIND or found.model != model_key(detector):
        raise UsageError(
            f"{path} is of another model, or of other thresholds, than {detector.name}; write it anew with --data"
        )
    return found


def _doubt(scores: np.ndarray, least: np.ndarray) -> float:
    """Return the mean doubt of detections of half their threshold or more: 1 at the threshold, 0 at 0 and 1."""
    near = (scores >= least / 2) & (scores > 0)
    if not near.any():
        return 0.0
    scores, least = scores[near], np.clip(least[near], 1e-6, 1 - 1e-6)
    return float(np.where(scores < least, scores / least, (1 - scores) / (1 - least)).clip(0, 1).mean())
