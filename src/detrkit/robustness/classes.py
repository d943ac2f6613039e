"""Matching of a data set's classes with a model's, by name, or as a person says.

A name must be the same to the letter; names that are only alike are suggested, never taken. Where several
classes on either side are said to be one, they are measured as one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from detrkit.classes import ClassMap
from detrkit.config import read_yaml
from detrkit.data.index import CocoIndex
from detrkit.errors import UsageError, listed, nearest
from detrkit.evaluation.coco import ImageResults
from detrkit.types import ImageDetections

ClassNames = Mapping[str, Sequence[str]]
"""The model's names for a data set's name; none: it has no counterpart, even if the model knows the name."""


@dataclasses.dataclass(frozen=True)
class ClassPair:
    """A class that the model and the data share.

    Args:
        class_id: Of the classes to measure.
        data: Names that the data set has for it.
        model: Names that the model has for it.
    """

    class_id: int
    data: tuple[str, ...]
    model: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class ClassMatch:
    """The classes that a model and a data set share, as classes to measure.

    Args:
        classes: Those to measure: the data set's, joined where several are one to the model.
        of_data: Class to measure of each class of the data set, int64.
        of_model: Class to measure of each class of the model, int64; -1 where there is none.
        pairs: Those that the model knows.
        model_only: Names of the model's other classes.
        data_only: Names of the data set's other classes.
        suggestions: A name of ``data_only`` and one of ``model_only`` that may mean the same.
    """

    classes: ClassMap
    of_data: np.ndarray
    of_model: np.ndarray
    pairs: tuple[ClassPair, ...]
    model_only: tuple[str, ...]
    data_only: tuple[str, ...]
    suggestions: tuple[tuple[str, str], ...]

    def matched(self) -> np.ndarray:
        """Return classes to measure that the model knows, ascending."""
        return np.unique(self.of_model[self.of_model >= 0])

    def index(self, index: CocoIndex) -> CocoIndex:
        """Return a data set's index with the classes to measure."""
        written = index.written and dataclasses.replace(index.written, labels=self.of_data[index.written.labels])
        labels = self.of_data[index.labels]
        return dataclasses.replace(index, labels=labels, class_map=self.classes, written=written)

    def translate(self, found: ImageDetections | ImageResults) -> ImageDetections | ImageResults:
        """Return the model's detections of an image as of classes to measure; others, and masks, are left out."""
        boxes, scores, class_ids = found[:3]
        measured = self.of_model[class_ids]
        kept = measured >= 0
        return type(found)(boxes[kept], scores[kept], measured[kept])

    def lines(self) -> list[str]:
        """List what people should know of it."""
        lines = []
        if self.data_only:
            lines.append(f"classes of the data that the model does not know: {listed(self.data_only)}")
        if self.model_only:
            lines.append(f"classes of the model that the data does not have: {listed(self.model_only)}")
        lines += [
            f"did you mean {ours!r} (the model's) by {theirs!r} (the data's)? Say so in a file: --classes FILE"
            for theirs, ours in self.suggestions
        ]
        return lines


def match_names(model: ClassMap, data: ClassMap, names: ClassNames | None = None) -> ClassMatch:
    """Match classes by name; see :class:`ClassMatch`.

    Args:
        model: The model's classes.
        data: The data set's.
        names: The model's names for the data set's where they differ.

    Raises:
        UsageError: ``names`` speaks of classes that are not there.
    """
    given = dict(names or {})
    _check_names(given, model, data)
    # classes of the model that each class of the data is linked to
    by_pair = {pair: i for i, pair in enumerate(zip(model.names, model.category_ids, strict=True))}
    links = []
    for pair in zip(data.names, data.category_ids, strict=True):
        wanted = given.get(pair[0], (pair[0],))
        named = [i for name in wanted for i, ours in enumerate(model.names) if ours == name]
        # of classes that share a name, the category id decides, as everywhere
        same = pair in by_pair and pair[0] not in given and data.names.count(pair[0]) > 1
        links.append([by_pair[pair]] if same else named)
    # groups of classes that are linked, by any way, are one class to measure
    group_of_data, group_of_model = _groups(links, len(model))
    numbers = {group: number for number, group in enumerate(dict.fromkeys(group_of_data))}
    labels, category_ids, pairs = [], [], []
    for group, number in numbers.items():
        members = [i for i, own in enumerate(group_of_data) if own == group]
        theirs = tuple(data.names[i] for i in members)
        ours = tuple(name for name, own in zip(model.names, group_of_model, strict=True) if own == group)
        # several classes of the data that are one to the model get its name
        distinct = tuple(dict.fromkeys(theirs))
        labels.append(ours[0] if len(distinct) > 1 and len(ours) == 1 else " + ".join(distinct))
        category_ids.append(min(data.category_ids[i] for i in members))
        if ours:
            pairs.append(ClassPair(number, theirs, ours))
    # names without a counterpart, and those that may be meant
    data_only = tuple(name for name, linked in zip(data.names, links, strict=True) if not linked)
    model_only = tuple(name for name, own in zip(model.names, group_of_model, strict=True) if own not in numbers)
    plain = {_plain(name): name for name in reversed(model_only)}
    suggestions = tuple(
        (name, plain[_plain(name)]) for name in data_only if name not in given and _plain(name) in plain
    )
    classes = ClassMap(tuple(labels), tuple(category_ids))
    of_data = np.array([numbers[group] for group in group_of_data], dtype=np.int64)
    of_model = np.array([numbers.get(group, -1) for group in group_of_model], dtype=np.int64)
    return ClassMatch(classes, of_data, of_model, tuple(pairs), model_only, data_only, suggestions)


def read_class_names(path: str | Path, data_sets: Sequence[str]) -> dict[str, dict[str, tuple[str, ...]]]:
    """Read a file of names: one map for all data sets, or one for each by its name.

    A map goes from a data set's class name to the model's: a name, a list of names, or nothing.

    Raises:
        UsageError: It is no such file, or speaks of a data set that is not there.
    """
    return resolve_class_names(read_yaml(path), data_sets, str(path))


def resolve_class_names(
    content: Any, data_sets: Sequence[str], where: str = "classes"
) -> dict[str, dict[str, tuple[str, ...]]]:
    """Resolve class names by data set; see :func:`read_class_names`.

    Raises:
        UsageError: It is something else, or speaks of a data set that is not there.
    """
    example = "expected {data set: {its class: model's class}} or {its class: model's class}"
    if not isinstance(content, Mapping) or not content:
        raise UsageError(f"{where} holds a {type(content).__name__}; {example}")
    nested = [isinstance(value, Mapping) for value in content.values()]
    if not any(nested):
        return dict.fromkeys(data_sets, _checked(content, where))
    if not all(nested):
        raise UsageError(f"{where} mixes maps of data sets with names of classes; {example}")
    unknown = [str(name) for name in content if name not in data_sets]
    if unknown:
        raise UsageError(f"{where} speaks of data {listed(unknown)}; there is {listed(data_sets)}")
    return {name: _checked(content[name], f"{where}: {name}") if name in content else {} for name in data_sets}


def _checked(names: Mapping[Any, Any], where: str) -> dict[str, tuple[str, ...]]:
    checked = {}
    for name, value in names.items():
        values = [] if value is None else value if isinstance(value, list | tuple) else [value]
        if not isinstance(name, str) or not all(isinstance(item, str) for item in values):
            raise UsageError(
                f"{where}: {name!r}: {value!r} is not a class name and the model's name for it, a list of such, "
                "or nothing; put numbers into quotes"
            )
        checked[name] = tuple(values)
    return checked


def _check_names(given: ClassNames, model: ClassMap, data: ClassMap) -> None:
    ours = [name for names in given.values() for name in names]
    for whose, named, there in (("data", given, data.names), ("model", ours, model.names)):
        unknown = next((name for name in named if name not in there), None)
        if unknown is not None:
            hint = nearest(unknown, there, f"it has {listed(there)}")
            raise UsageError(f"the {whose} has no class {unknown!r}; {hint}")


def _groups(links: Sequence[Sequence[int]], model_classes: int) -> tuple[list[int], list[int]]:
    """Return a number for each class of the data and of the model, the same for all that are linked."""
    pairs = [(class_id, len(links) + ours) for class_id, linked in enumerate(links) for ours in linked]
    rows, columns = zip(*pairs, strict=True) if pairs else ((), ())
    size = len(links) + model_classes
    graph = sparse.coo_array((np.ones(len(pairs)), (rows, columns)), shape=(size, size))  # type: ignore[no-untyped-call]
    groups = connected_components(graph, directed=False)[1].tolist()
    return groups[: len(links)], groups[len(links) :]


def _plain(name: str) -> str:
    """Return a name without what people spell differently: case, separators, a plural."""
    letters = "".join(character for character in name.casefold() if character.isalnum())
    return letters.removesuffix("s") if len(letters) > 3 else letters
