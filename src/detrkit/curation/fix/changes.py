"""What ``--fix`` changed, one record a change, and how it is written down."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detrkit.curation.check.kinds import KINDS
from detrkit.files import atomic_file


@dataclasses.dataclass(frozen=True)
class Change:
    """One change of a copy against its original.

    Args:
        split: Of the thing changed.
        kind: Finding that made it necessary.
        what: The thing, in words: an image, an annotation, a category.
        field: What of it; empty if it was left out as a whole.
        before: Value in the original.
        after: Value in the copy; None if it is not there any more.
    """

    split: str
    kind: str
    what: str
    field: str = ""
    before: Any = None
    after: Any = None

    def lines(self) -> list[str]:
        """The change as a diff."""
        if not self.field:
            before = "" if self.before is None else f": {json.dumps(self.before)}"
            return [f"- {self.split}: {self.what}{before}"]
        head = f"{self.split}: {self.what}: {self.field}"
        return [f"- {head} {json.dumps(self.before)}", f"+ {head} {json.dumps(self.after)}"]


def write_changes(folder: Path, source: Path, changes: Sequence[Change]) -> None:
    """Write ``changes.json`` for programs and ``changes.txt``, a diff by kind, for people."""
    with atomic_file(folder / "changes.json") as file:
        content = {"schema_version": 1, "source": str(source), "changes": [dataclasses.asdict(c) for c in changes]}
        json.dump(content, file, indent=1)
        file.write("\n")
    counts = Counter(change.kind for change in changes)
    with atomic_file(folder / "changes.txt") as file:
        file.write(f"{len(changes)} changes against {source}\n")
        for kind in (name for name in KINDS if counts[name]):
            file.write(f"\n@@ {kind}: {KINDS[kind].title} ({counts[kind]}); {KINDS[kind].repair} @@\n")
            for change in changes:
                if change.kind == kind:
                    file.writelines(f"{_one_line(line)}\n" for line in change.lines())


def _one_line(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)
