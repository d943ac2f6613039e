"""Results of a study, each written down when it is there, so that a study that was killed goes on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from detrkit.data.split import Split
from detrkit.detectors.detector import weights_digest
from detrkit.detectors.on_split import EvalTarget
from detrkit.errors import DataError, UsageError
from detrkit.files import parse_json, sync_folder

Values = Mapping[str, float | None]
"""Numbers of a result, such as the twelve of COCO, 0 to 1; None where there is nothing to measure."""


class Journal:
    """Results of a study, each written down when it is there, so that a study that was killed goes on.

    Args:
        path: File with a line for the study and one for each result, made with the first; None keeps no file.
        study: All that results depend on; another study's file is refused.

    Raises:
        UsageError: The file holds results of another study.
        DataError: It is no such file.
    """

    def __init__(self, path: Path | None, study: Mapping[str, Any]):
        self.path = path
        self.results: dict[str, Values] = {}
        self._head = json.dumps({"study": study}, sort_keys=True)
        if path is None or not os.path.lexists(path):
            return
        content = path.read_bytes() if path.is_file() else b""
        if path.is_symlink() or not content.startswith(b'{"study": '):
            raise DataError(f"{path} holds no results of a study; give another folder (--out)")
        whole = content[: content.rfind(b"\n") + 1]  # a kill leaves half a line
        for number, line in enumerate(whole.splitlines(), start=1):
            if number == 1:
                self._check(line, study)
                continue
            try:
                entry: _Entry = parse_json(line, _Entry)
            except ValueError as error:
                raise DataError(f"{path}: line {number} is damaged; delete the file to start again") from error
            self.results[entry.name] = entry.result
        os.truncate(path, len(whole))

    def add(self, name: str, result: Values) -> None:
        """Write a result down; it is on the disk when this returns."""
        self.results[name] = result
        if self.path is None:
            return
        with self.path.open("ab") as file:
            new = file.tell() == 0
            line = json.dumps({"name": name, "result": result}, allow_nan=False)
            file.write((f"{self._head}\n{line}\n" if new else f"{line}\n").encode())
            file.flush()
            os.fsync(file.fileno())
        if new:
            sync_folder(self.path.parent)

    def _check(self, line: bytes, study: Mapping[str, Any]) -> None:
        try:
            before = parse_json(line, dict[str, dict[str, Any]])["study"]
        except (ValueError, KeyError) as error:
            raise DataError(f"{self.path} holds no results of a study; give another folder (--out)") from error
        if before != study:
            other = ", ".join(key for key in study if before.get(key) != study[key]) or "settings"
            kind = f"results of another study (other {other})"
            raise UsageError(f"{self.path} holds {kind}; give another folder (--out), or delete it")


class _Entry(msgspec.Struct):
    """A line of a journal."""

    name: str
    result: dict[str, float | None]


def study_of(subject: EvalTarget, split: Split) -> dict[str, Any]:
    """Return what every result of a model that runs on a split depends on."""
    index = split.index
    images = hashlib.sha256()
    for array in (index.image_ids, index.boxes_xyxy, index.labels, index.iscrowd, index.name_bytes):
        images.update(np.ascontiguousarray(array).tobytes())
    assert subject.stages is not None
    return {
        "model": subject.name,
        "settings": subject.settings,
        "weights": weights_digest(subject.stages.network),
        "data": str(split.files.annotations),
        "annotations": images.hexdigest(),
    }
