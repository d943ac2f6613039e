"""Ids of images, annotations and categories, which may be texts, as the numbers that are used inside.

An id is a name: ``int("1_11")`` and ``int("111")`` are the same number, and two images. Texts are taken for
numbers only where every text of a kind of ids is one as JSON writes it; otherwise each gets a number of its own.
"""

from __future__ import annotations

import itertools
import posixpath
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec
import numpy as np

from detrkit.data.faults import Findings
from detrkit.data.table import IdTexts
from detrkit.errors import AnnotationError

IdKind = Literal["image", "annotation", "category"]

_INT64_MAX = 2**63 - 1
_PLAIN = re.compile("0|[1-9][0-9]{0,17}")


class IdNumbers:
    """The ids of one kind in a file: those of a list, and those by which other entries refer to it.

    First :meth:`take` is called for all of them, column by column, then :meth:`settle`.

    Args:
        kind: Entries that the ids are of.
        report: Takes up ids that are no integers.
    """

    def __init__(self, kind: IdKind, report: Findings):
        self.kind, self.report = kind, report
        self._listed: dict[int, str] = {}
        self._refs: dict[int, str] = {}
        self._where: dict[str, str] = {}

    def take(self, values: Sequence[Any], key: str, what: str, start: int = 0) -> np.ndarray:
        """Return ids as int64, 0 in place of texts.

        Args:
            values: The ids as parsed.
            key: Field that they come from; other than ``id``, they refer to entries of another list.
            what: Name of the list, for messages.
            start: Position of the first of them in that list.

        Raises:
            AnnotationError: An id is missing, or neither a text nor a whole number.
        """
        if set(map(type, values)) <= {int}:
            try:
                return np.array(values, dtype=np.int64)
            except OverflowError:
                pass
        texts = self._listed if key == "id" else self._refs
        numbers = np.zeros(len(values), dtype=np.int64)
        for row, value in enumerate(values):
            is_whole = type(value) is int or (isinstance(value, float) and value.is_integer())
            where = f"{what}[{start + row}]"
            if isinstance(value, str) and value:
                texts[start + row] = value
                self._where.setdefault(value, where)
            elif is_whole and abs(value) <= _INT64_MAX:
                numbers[row] = int(value)
            else:
                got = f"no {key}" if value is msgspec.UNSET else f"{key} {value!r}"
                raise AnnotationError(f"{where} has {got}, expected an integer or a text; correct the file")
            if isinstance(value, float):
                self.report.add("id_is_text", f"{where}: {key} {value!r}")
        return numbers

    def settle(
        self, listed: np.ndarray, refs: np.ndarray | None = None, names: Sequence[str] | None = None
    ) -> IdTexts:
        """Put the numbers of texts into columns, and return the text of each number that stands for one.

        Args:
            listed: Ids of the list, int64, changed in place.
            refs: Ids by which others refer to it, int64, changed in place.
            names: Names of the entries of the list, by which others may refer to it in place of ids.
        """
        if refs is not None and names is not None and (self._refs or not np.isin(refs, listed).any()):
            self._match_names(listed, refs, names)
        if not self._listed and not self._refs:
            return {}
        refs = np.zeros(0, dtype=np.int64) if refs is None else refs
        listed_numbers, ref_numbers = (
            set(np.delete(column, list(texts)).tolist())
            for column, texts in ((listed, self._listed), (refs, self._refs))
        )
        own = sorted(set(self._listed.values()))
        texts = [*own, *sorted(set(self._refs.values()) - set(own))]
        twice = [text for text in own if _PLAIN.fullmatch(text) and int(text) in listed_numbers]
        # all of them are numbers, in other clothes
        if all(map(_PLAIN.fullmatch, texts)) and not twice:
            self._fill(listed, refs, {text: int(text) for text in texts})
            for text in itertools.chain(self._listed.values(), self._refs.values()):
                self.report.add("id_is_text", f"{self._where[text]}: {self.kind} id {text!r}")
            return {}
        # numbers that nothing else has, in the order in which pycocotools sorts texts
        taken = listed_numbers | ref_numbers
        free = (number for number in itertools.count(1) if number not in taken)
        number_of = {text: next(free) for text in own}
        for text in texts[len(own) :]:
            is_number = _PLAIN.fullmatch(text) and int(text) in listed_numbers
            number_of[text] = int(text) if is_number else next(free)
        for number in ref_numbers - listed_numbers:  # a reference to 17 means the entry "17"
            if str(number) in number_of:
                refs[refs == number] = number_of[str(number)]
        self._fill(listed, refs, number_of)
        texts_of = {number: text for text, number in number_of.items() if number not in listed_numbers}
        for number, text in texts_of.items():
            self.report.add("ids_numbered", f"{self._where[text]}: {self.kind} {text!r} is {number} inside")
        for text in twice:
            self.report.add("ids_alike", f"{self.kind} {text!r}, a text, and {text}, a number")
        return texts_of

    def _match_names(self, listed: np.ndarray, refs: np.ndarray, names: Sequence[str]) -> None:
        """Put ids in place of names, ends of paths and ids with zeros, where no reference is an id."""
        own = [self._listed.get(row, str(number)) for row, number in enumerate(listed.tolist())]
        wanted = set(self._refs.values()) | set(map(str, np.delete(refs, list(self._refs)).tolist()))
        if wanted & set(own):
            return
        exact = [_matches(names, wanted, fold) for fold in (str, _last, _stem)]
        ways = exact if any(exact) else [_matches(kind, wanted, _number) for kind in (names, own)]
        found = max(ways, key=len, default={})
        if 2 * len(found) <= len(wanted) or any(way and way != found and len(way) == len(found) for way in ways):
            return
        for place, number in enumerate(refs.tolist()):
            text = self._refs.pop(place, str(number))
            if text in found:
                row = found[text]
                refs[place] = listed[row]
                self._where.setdefault(own[row], f"annotations[{place}]")
                self._refs |= {place: own[row]} if row in self._listed else {}
                self.report.add("id_by_name", f"annotations[{place}]: {text!r} is {self.kind} {own[row]}")
            elif text != str(number):
                self._refs[place] = text

    def _fill(self, listed: np.ndarray, refs: np.ndarray, number_of: Mapping[str, int]) -> None:
        for column, texts in ((listed, self._listed), (refs, self._refs)):
            for row, text in texts.items():
                column[row] = number_of[text]


def _matches(names: Sequence[str], wanted: Iterable[str], fold: Callable[[str], str]) -> dict[str, int]:
    """Return the row of the name that each wanted text is equal to when folded; of each only if it is one."""
    rows, texts = (defaultdict[str, list[Any]](list) for _ in range(2))
    for row, name in enumerate(names):
        rows[fold(name)].append(row)
    for text in wanted:
        texts[fold(text)].append(text)
    return {texts[key][0]: found[0] for key, found in rows.items() if key and len(found) == len(texts[key]) == 1}


def _last(name: str) -> str:
    return name.replace("\\", "/").rpartition("/")[2]


def _stem(name: str) -> str:
    return posixpath.splitext(_last(name))[0]


def _number(name: str) -> str:
    """Return a number without the zeros before it; empty for other names."""
    stem = _stem(name)
    return str(int(stem)) if stem.isdecimal() and len(stem) < 19 else ""
