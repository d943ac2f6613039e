"""Finding the files of the image names that annotations list: as written, or by a rule that all of a split follow.

Names come wrong by rules: from Windows with backslashes, from another machine as absolute paths, from macOS with
decomposed letters, from a conversion with the old suffix. A rule only ever leads to a file in the image folder.
"""

from __future__ import annotations

import dataclasses
import functools
import posixpath
import re
import unicodedata
import urllib.parse
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from detrkit.data.index import leads_out, list_folder
from detrkit.files import IMAGE_SUFFIXES, format_of_suffix, walk_files

SHARE = 0.5
"""Of the listed names that a rule has to explain if it may hit another picture by chance, as by another suffix."""

_PREFIX = re.compile(r"(?:(?<=/)|^)[0-9a-f]{8}-(?=[^/]+$)")
_DRIVE = re.compile(r"[A-Za-z]:[\\/]|\\\\")

Fold = Callable[[str], str]
Keys = Callable[[str], Iterable[str]]


@dataclasses.dataclass(frozen=True)
class FoundNames:
    """The files of listed names, relative to the image folder.

    Args:
        files: File of each name; None where there is none.
        rules: Rule by which it was found, in words; empty as written.
        guesses: Files of names without one that a rule would give a name alone, by row: not read, but repaired.
        unclear: Files that a name without one may mean equally, by row.
    """

    files: Sequence[str | None]
    rules: Sequence[str]
    guesses: Mapping[int, str]
    unclear: Mapping[int, Sequence[str]]

    def fault(self, row: int, name: str) -> str:
        """Return the kind of fault of a name; empty if it is the file's."""
        is_found = self.files[row] is not None
        if is_found and not self.rules[row]:
            return ""
        if leads_out(name) or _DRIVE.match(name):
            return "escaping_file_name" if posixpath.normpath(name).startswith("..") else "absolute_file_name"
        if self.rules[row] == _CASE:
            return "file_name_case"
        return "file_name_rule" if is_found else "missing_image"

    def words(self, row: int, name: str) -> str:
        """Describe a name that is not the file's."""
        if self.rules[row]:
            return f"{name} is {self.files[row]} ({self.rules[row]})"
        if row in self.guesses:
            return f"{name}: {self.guesses[row]} exists"
        unclear = sorted(self.unclear.get(row, ()))[:3]
        return f"{name}: may be {' or '.join(unclear)}" if unclear else name


def find_names(names: Sequence[str], images: Path, *, elsewhere: bool = True) -> FoundNames:
    """Find the files of listed names in an image folder; what is not there as written, by rules.

    A rule that only spells a name otherwise counts for every name that it gives exactly one file, which no other
    name has; one that could hit another picture counts if it explains most of the split.

    Args:
        names: Names of one split.
        images: Its image folder.
        elsewhere: Whether to look for files with another suffix or in another folder than is written.
    """
    entries = functools.cache(lambda folder: list_folder(images / folder))
    found: dict[str, tuple[str, str]] = {}
    for name in dict.fromkeys(names):
        normal = posixpath.normpath(name)
        folder, _, base = normal.rpartition("/")
        if not leads_out(name) and base in entries(folder):
            found[name] = (normal, "")
    guesses: dict[str, str] = {}
    unclear: dict[str, Sequence[str]] = {}
    left = [name for name in dict.fromkeys(names) if name not in found]
    if left:
        listed, as_written = len(left) + len(found), bool(found)
        free = {name for name in walk_files(images, *IMAGE_SUFFIXES) if (images / name).is_file()}
        free.difference_update(file for file, _ in found.values())
        # of a part of the pictures, which has only some of the listed ones, most have to be explained
        most = SHARE * listed if as_written else min(SHARE * listed, max(2, SHARE * len(free)))
        for rule in _RULES if elsewhere else _SPELLINGS:
            matches, several = _match(left, free, rule)
            least = 0 if rule.is_spelling else most
            if len(matches) >= least:
                found.update({name: (file, rule.words_of(name)) for name, file in matches.items()})
                free.difference_update(matches.values())
                left = [name for name in left if name not in matches]
            elif rule.is_for_one:
                guesses = {**matches, **guesses}
            if len(matches) + len(several) >= least:
                unclear = {**several, **unclear}
    rows = [found.get(name, (None, "")) for name in names]
    return FoundNames(
        [file for file, _ in rows],
        [rule for _, rule in rows],
        {row: guesses[name] for row, name in enumerate(names) if name in guesses and name not in found},
        {row: unclear[name] for row, name in enumerate(names) if name in unclear and name not in found},
    )


@dataclasses.dataclass(frozen=True)
class _Rule:
    """One way in which names differ from those of the files.

    Args:
        words: What it is, for people.
        fold: Gives names and files that it takes for equal the same text.
        listed: Keys that a folded name is looked up by, the best first.
        held: Keys of a folded file.
        is_spelling: Whether it only spells the same path otherwise.
        is_for_one: Whether it may be believed for a name alone, where a person asks for a repair.
    """

    words: str
    fold: Fold
    listed: Keys = lambda path: (path,)
    held: Keys = lambda path: (path,)
    is_spelling: bool = False
    is_for_one: bool = True

    def words_of(self, name: str) -> str:
        """Return its words for a name; that it has backslashes is said even where more is wrong with it."""
        return self.words if self.is_spelling or "\\" not in name else f"{self.words}, {_BACKSLASHES}"


def _match(names: Sequence[str], files: set[str], rule: _Rule) -> tuple[dict[str, str], dict[str, Sequence[str]]]:
    """Return the file of each name that a rule gives exactly one that is no other name's, and what is unclear."""
    held: defaultdict[str, list[str]] = defaultdict(list)
    for file in files:
        for key in rule.held(rule.fold(file)):
            held[key].append(file)
    found = {}
    for name in names:
        found[name] = next((held[key] for key in rule.listed(rule.fold(name)) if key in held), [])
    claims: defaultdict[str, list[str]] = defaultdict(list)
    for name, fits in found.items():
        for file in fits:
            claims[file].append(name)
    matches = {name: fits[0] for name, fits in found.items() if len(fits) == 1 and len(claims[fits[0]]) == 1}
    return matches, {name: fits for name, fits in found.items() if len(fits) > 1}


def _slashes(name: str) -> str:
    return posixpath.normpath(name.replace("\\", "/"))


def _decoded(name: str) -> str:
    return _slashes(
        urllib.parse.unquote(
            re.sub(r"^[A-Za-z][A-Za-z0-9+.-]+://([^?#]*).*", r"/\1", name), errors="surrogateescape"
        )
    )


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", _decoded(name))


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", _composed(name).casefold())


def _without_suffix(name: str) -> str:
    folded = _folded(name)
    return posixpath.splitext(folded)[0] if format_of_suffix(folded) else folded


def without_prefix(name: str) -> str:
    """Return a file name without the eight digits that Label Studio puts before it."""
    return _PREFIX.sub("", name)


def _ends(path: str) -> list[str]:
    """Return a path and its ends, the longest first: ``a/b/c``, ``b/c``, ``c``."""
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    return ["/".join(parts[start:]) for start in range(len(parts))]


_BACKSLASHES = "backslashes for slashes"
_CASE = "upper and lower case differ"
_SUFFIX = "another suffix"
_SPELLINGS = (
    _Rule(_BACKSLASHES, _slashes, is_spelling=True),
    _Rule("percent-encoded, or a URL", _decoded, is_spelling=True),
    _Rule("Unicode letters composed otherwise", _composed, is_spelling=True),
    _Rule(_CASE, _folded, is_spelling=True),
)
_RULES = (
    *_SPELLINGS,
    _Rule("the end of the path", _folded, _ends),
    _Rule(_SUFFIX, _without_suffix),
    _Rule(f"the end of the path, {_SUFFIX}", _without_suffix, _ends),
    _Rule("Label Studio's eight digits", lambda name: without_prefix(_folded(name)), _ends, is_for_one=False),
    _Rule("in another folder", _folded, _ends, _ends, is_for_one=False),
    _Rule(f"in another folder, {_SUFFIX}", _without_suffix, _ends, _ends, is_for_one=False),
)
"""From the surest to the loosest; each of the spellings forgives what those before it do."""
