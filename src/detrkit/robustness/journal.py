"""Results of a long study, written down one by one, so that a study that was killed goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detrkit.errors import DataError, UsageError
from detrkit.files import sync_folder


class Journal:
    """A file with a line for what is studied, and a line for each result.

    Args:
        path: The file; it is made with the first result.
        study: What results depend on; another study's file is refused.

    Raises:
        UsageError: The file holds results of another study.
        DataError: It is no such file.
    """

    def __init__(self, path: Path, study: Mapping[str, Any]):
        self.path = path
        self.results: dict[str, Any] = {}
        self._head = json.dumps({"study": study}, sort_keys=True)
        if not path.exists():
            return
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]  # a kill leaves half a line
        lines = whole.decode("utf-8", errors="replace").splitlines()
        if lines:
            self._check(lines[0], study)
            for number, line in enumerate(lines[1:], start=2):
                self._take(line, number)
        with path.open("r+b") as file:
            file.truncate(len(whole))

    def add(self, name: str, result: Any) -> None:
        """Write a result down; it is on the disk when this returns."""
        new = not self.path.exists() or self.path.stat().st_size == 0
        lines = [self._head] if new else []
        lines.append(json.dumps({"name": name, "result": result}, allow_nan=False))
        with self.path.open("ab") as file:
            file.write("".join(f"{line}\n" for line in lines).encode())
            file.flush()
            os.fsync(file.fileno())
        if new:
            sync_folder(self.path.parent)
        self.results[name] = result

    def _check(self, line: str, study: Mapping[str, Any]) -> None:
        try:
            before = json.loads(line)["study"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{self.path} holds no results of a study; give another folder (--out)") from error
        now = json.loads(self._head)["study"]
        if before != now:
            differing = ", ".join(
                key for key in now if not isinstance(before, dict) or before.get(key) != now[key]
            )
            raise UsageError(
                f"{self.path} holds results of another study (other {differing or 'settings'}); give another "
                "folder (--out), or delete it"
            )

    def _take(self, line: str, number: int) -> None:
        try:
            entry = json.loads(line)
            self.results[str(entry["name"])] = entry["result"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{self.path}: line {number} is damaged; delete the file to start again") from error
