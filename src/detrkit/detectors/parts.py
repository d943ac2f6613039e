"""Detections of more pictures than one run may finish: in parts, each a file that is whole or not there.

The list of pictures is cut into parts of the same length. What a part holds depends on the plan alone, so that
parts may be made in any order, on any machine, and again; a run that was killed goes on with what is missing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from detrkit.detectors.detector import Detector, weights_digest
from detrkit.errors import DataError, UsageError, listed
from detrkit.files import atomic_bytes, atomic_file, check_free, parse_json
from detrkit.threshold_file import Thresholds

PARTS = "parts"
PLAN = "plan.json"
KIND = "detrkit predictions in parts"
VERSION = 1


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that detections depend on, and how the pictures are shared out.

    Args:
        kind: Always :data:`KIND`.
        version: Version of the format.
        model: Hash of the model's weights, settings and classes.
        threshold: Least score, or thresholds by class.
        batch_size: Images that the model sees at once.
        pictures: Number of pictures.
        names: Hash of their names, in order, and of size and time of those that are files here.
        part_size: Pictures of a part.
    """

    kind: str
    version: int
    model: str
    threshold: Any
    batch_size: int
    pictures: int
    names: str
    part_size: int

    @property
    def parts(self) -> int:
        """Number of parts."""
        return -(-self.pictures // self.part_size)

    def rows(self, part: int) -> range:
        """Return the positions of a part's pictures in the list."""
        return range(part * self.part_size, min((part + 1) * self.part_size, self.pictures))


class PictureResult(msgspec.Struct, frozen=True):
    """A line of a part: a picture and its detections in COCO's result format, or why it could not be read."""

    source: str
    detections: list[dict[str, Any]] = []
    error: str = ""


@dataclasses.dataclass(frozen=True)
class Merged:
    """What all parts hold together.

    Args:
        pictures: Pictures that were read.
        objects: Detections.
        failures: Why the others could not be read.
    """

    pictures: int
    objects: int
    failures: list[str]


def make_plan(
    detector: Detector, sources: Sequence[str], threshold: float | Thresholds, batch_size: int, part_size: int
) -> Plan:
    """Return the plan for pictures."""
    names = hashlib.sha256()
    for source in sources:
        names.update(f"{source}\0{_state_of(source)}\0".encode("utf-8", "surrogateescape"))
    plain = threshold.to_dict() if isinstance(threshold, Thresholds) else threshold
    return Plan(
        KIND, VERSION, model_digest(detector), plain, batch_size, len(sources), names.hexdigest(), part_size
    )


def model_digest(detector: Detector) -> str:
    """Return a hash of all that a model's detections depend on."""
    facts = [detector.settings, weights_digest(detector.model), detector.class_map.to_dict()]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def begin(folder: Path, plan: Plan) -> list[int]:
    """Write the plan, or find it the same as that of the parts that are there; return those that are missing.

    Raises:
        UsageError: The parts are of another model, list or threshold, or were changed since.
    """
    path = folder / PLAN
    check_free(path)
    if path.exists():
        try:
            before = parse_json(path.read_bytes(), Plan)
        except ValueError as error:
            raise UsageError(f"{path} is no plan of detrkit's: {error}; give another folder") from error
        now = msgspec.json.decode(msgspec.json.encode(plan), type=Plan)  # thresholds as JSON has them
        fields = [name for name in Plan.__struct_fields__ if getattr(before, name) != getattr(now, name)]
        if fields:
            raise UsageError(
                f"{folder} holds parts of other detections: {listed(fields)} changed since; give another folder, "
                "or what they were begun with"
            )
    else:
        with atomic_file(path) as file:
            file.write(msgspec.json.format(msgspec.json.encode(plan)).decode() + "\n")
    return [part for part in range(plan.parts) if not _is_whole(folder, part)]


def write_part(folder: Path, part: int, results: Sequence[PictureResult]) -> None:
    """Write a part, whole or not at all."""
    with atomic_bytes(folder / part_name(part)) as file:
        file.writelines(msgspec.json.encode(result) + b"\n" for result in results)


def part_name(part: int) -> str:
    """Return the name of a part's file."""
    return f"part-{part:06d}.jsonl"


def merge(folder: Path, plan: Plan, sources: Sequence[str], out: Path) -> Merged:
    """Write all parts as one COCO result list, as ``detrkit predict`` writes it.

    Raises:
        DataError: A part does not hold each of its pictures exactly once.
    """
    pictures = objects = 0
    failures: list[str] = []
    with atomic_file(out) as file:
        file.write("[")
        for part in range(plan.parts):
            results = list(_read_part(folder / part_name(part)))
            if [result.source for result in results] != [sources[row] for row in plan.rows(part)]:
                raise DataError(
                    f"{folder / part_name(part)} holds other pictures than its own; delete it, run again"
                )
            failures += [result.error for result in results if result.error]
            pictures += sum(not result.error for result in results)
            for entry in (entry for result in results for entry in result.detections):
                file.write((",\n" if objects else "\n") + json.dumps(entry))
                objects += 1
        file.write("\n]\n")
    return Merged(pictures, objects, failures)


def _is_whole(folder: Path, part: int) -> bool:
    """Return whether a part is there; it is renamed into its place when all of it is written.

    Raises:
        UsageError: Something else lies there.
    """
    check_free(folder / part_name(part))
    return (folder / part_name(part)).exists()


def _read_part(path: Path) -> Iterator[PictureResult]:
    try:
        for line in path.read_bytes().splitlines():
            yield parse_json(line, PictureResult)
    except ValueError as error:
        raise DataError(f"{path} is damaged: {error}; delete it, and run again") from error


def _state_of(source: str) -> str:
    """Return size and time of a file; empty for what is none here."""
    try:
        found = Path(source).stat()
    except (OSError, ValueError):
        return ""
    return f"{found.st_size} {found.st_mtime_ns}"
