"""Finding COCO panoptic JSON files and their folders of PNG files."""

from __future__ import annotations

import functools
from pathlib import Path

from detrkit.data.formats.base import (
    PANOPTIC_FILE,
    SplitCandidate,
    SplitCandidates,
    SplitFiles,
    canonical_split,
    relative,
    split_of_folder,
)
from detrkit.data.formats.coco.find import find_image_folder
from detrkit.errors import DataError


def find_panoptic(root: Path) -> SplitCandidates:
    """Find splits in COCO panoptic JSON files with a folder of PNG files."""
    for folder in ("annotations/", "", "*/"):
        found: SplitCandidates = {}
        for file in sorted(root.glob(f"{folder}panoptic_*.json"), key=lambda file: (len(file.stem), file)):
            match = PANOPTIC_FILE.match(file.stem)
            if match and file.is_file() and (split_of_folder(match[1]) or segments_folder(file)):
                candidate = SplitCandidate(file, functools.partial(panoptic_files, file, root))
                found.setdefault(canonical_split(match[1]), candidate)
        if found:
            return found
    return {}


def panoptic_files(file: Path, root: Path, images: Path | None = None) -> SplitFiles:
    """Describe a COCO panoptic JSON file, its images and its PNG files.

    Raises:
        DataError: The folder of PNG files is not there.
    """
    segments = segments_folder(file)
    if segments is None:
        raise DataError(
            f"{file}: the folder of its PNG files is missing; expected {file.with_suffix('')} (for COCO, unpack "
            f"{file.stem}.zip there)"
        )
    reason = f"{relative(file, root)} is COCO panoptic, PNG files in {relative(segments, root)}"
    folder = images or find_image_folder(file, root)
    return SplitFiles(file, folder, "COCO panoptic", reason, "panoptic", (segments,))


def segments_folder(file: Path) -> Path | None:
    """Return the folder of the PNG files of a panoptic file; None if there is none."""
    candidates = (file.with_suffix(""), file.parent / "masks")
    return next((folder for folder in candidates if folder.is_dir()), None)
