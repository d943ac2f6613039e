"""The list of class names beside YOLO labels, such as ``classes.txt``: the number of a class is its line, from 0.

People number the lines, leave blank ones, and write comments; tools that count lines then take every class behind
one for another. What labels use decides, or nothing does, and the list is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from detrkit.data.faults import Findings
from detrkit.data.formats.base import read_text
from detrkit.data.formats.yolo.lines import is_comment
from detrkit.errors import AnnotationError, DataError, listed

_NUMBERED = re.compile(r"(\d{1,6})\s*([:=]|[\s,;])\s*(\S.*)")


def read_names(path: Path, used: Callable[[], Collection[int]], found: Findings | None = None) -> dict[int, str]:
    """Read a file with a class name a line.

    Args:
        path: The file.
        used: Gives the class numbers that labels use.
        found: Takes up lines that are no plain name.

    Raises:
        AnnotationError: It cannot be read, or its lines can be counted in two ways.
        DataError: It holds none.
    """
    written = [line.strip() for line in read_text(path, found=found).rstrip().splitlines()]
    if not any(written):
        raise DataError(f"{path}: holds no class names; expected one a line")
    said = {row: f"{name[:60]!r}, a comment" for row, name in enumerate(written) if is_comment(name)}
    if len(said) == sum(map(bool, written)):  # classes called #1, #2
        said = {}
    plain = {row: name for row, name in enumerate(written) if row not in said}
    names = _numbered([name for name in plain.values() if name])
    if names:
        said |= {row: f"{name[:60]!r} has a number" for row, name in plain.items() if name}
    else:
        names = _counted(path, list(plain.values()), bool(said), used)
        said |= {row: "blank" for row, name in plain.items() if not name}
    if found is not None:
        for row, words in said.items():
            found.add("class_list_lines", f"{path.name} line {row + 1}: {words}")
    return names


def _numbered(lines: Sequence[str]) -> dict[int, str]:
    """Return names by the numbers before them; none unless every line has one."""
    matches = [match for line in lines if (match := _NUMBERED.fullmatch(line))]
    names = {int(match[1]): match[3] for match in matches}
    is_sure = all(match[2] in ":=" for match in matches) or (  # 1 cent and 2 cent are names
        sorted(names) == list(range(len(names))) and len(set(names.values())) == len(names)
    )
    return names if is_sure and len(names) == len(lines) else {}


def _counted(
    path: Path, lines: Sequence[str], has_comments: bool, used: Callable[[], Collection[int]]
) -> dict[int, str]:
    """Return names by their line; a blank one that labels use is called by its number.

    Raises:
        AnnotationError: Labels use numbers as if blank lines were not there, or comments were names.
    """
    blank = [number for number, name in enumerate(lines) if not name]
    numbers = used() if blank or has_comments else ()
    most, unnamed = max(numbers, default=-1), [number for number in blank if number in numbers]
    if (has_comments and most >= len(lines)) or (unnamed and most < len(lines) - len(blank)):
        which = "comments" if has_comments else "blank lines"
        raise AnnotationError(
            f"{path}: has {which} among the names, and labels use the classes {listed(sorted(numbers))}: do these "
            "lines count or not? Remove them, or write names: {0: NAME, 1: NAME} into data.yaml"
        )
    return {n: name or f"class_{n}" for n, name in enumerate(lines) if name or n in unnamed}
