"""Formats of annotations that are not read, recognised by what their files hold, by the table ``foreign.toml``."""

from __future__ import annotations

import dataclasses
import itertools
import re
from pathlib import Path

from detrkit.data.formats.base import file_names, relative, subfolders
from detrkit.files import read_facts

_HEAD_BYTES = 1 << 16
_DEPTH, _FOLDERS, _FILES = 4, 200, 10


@dataclasses.dataclass(frozen=True)
class ForeignFormat:
    """One format that is not read.

    Args:
        name: Name for people.
        suffixes: Ends of the names of its files, or what they hold before a number.
        pattern: What the beginning of a file holds.
        advice: How to make something of it that is read.
    """

    name: str
    suffixes: tuple[str, ...]
    pattern: re.Pattern[str]
    advice: str


FOREIGN_FORMATS = tuple(
    ForeignFormat(name, tuple(row["suffixes"]), re.compile(row["pattern"], re.DOTALL), row["advice"])
    for name, row in read_facts(__file__).items()
)


def describe_foreign(path: Path) -> str:
    """Name the format of a file that is none of those that are read, and what to do; empty if it is not known."""
    # TFRecords end in .tfrecord-00000-of-00010
    kinds = [foreign for foreign in FOREIGN_FORMATS if any(end in path.name.lower() for end in foreign.suffixes)]
    if not kinds or path.name.startswith("."):
        return ""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES).decode("utf-8-sig", "replace").lstrip()
    except OSError:
        return ""
    found = next((foreign for foreign in kinds if foreign.pattern.search(head)), None)
    return f"this looks like {found.name}, which detrkit does not read: {found.advice}" if found else ""


def find_foreign(root: Path) -> str:
    """Name a file of a foreign format in a folder or inside it, the nearest first; empty if there is none."""
    folders = [root]
    for _ in range(_DEPTH):
        for folder in folders[:_FOLDERS]:
            tried: dict[str, int] = {}
            for name in file_names(folder):
                suffix = name[name.rfind(".") :].lower()
                tried[suffix] = tried.get(suffix, 0) + 1
                said = describe_foreign(folder / name) if tried[suffix] <= _FILES else ""
                if said:
                    return f"{relative(folder / name, root)}: {said}"
        folders = list(itertools.chain.from_iterable(map(subfolders, folders[:_FOLDERS])))
    return ""
