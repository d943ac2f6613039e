"""The classes of a data set, free of torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from detrkit.errors import DataError, listed
from detrkit.files import read_facts

SizeHW = tuple[int, int]
"""Height and width in pixels."""

SIZE_LIMITS = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, math.inf)}
"""Areas of objects in pixels, as COCO's: from, and up to."""


_COCO = read_facts(__file__, "coco.toml")
COCO_NAMES: tuple[str, ...] = tuple(_COCO["names"])
"""Names of COCO's 80 categories, in the order of their ids."""
COCO_SPELLINGS: Mapping[str, str] = _COCO["spellings"]
"""COCO's names of its classes by other spellings of them."""
COCO_STUFF: Mapping[int, str] = {int(number): name for number, name in _COCO["stuff"].items()}
"""Names of the 53 stuff categories of COCO panoptic by id."""
COCO_CATEGORY_IDS = tuple(sorted(set(range(1, 91)) - {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}))
"""Category ids of COCO's 80 categories; ten numbers below 91 were never used."""


_JSON_KEYS = {"logit_index": "slots", "num_labels": "num_slots"}
"""What checkpoints and ``classes.json`` call fields that had other names when they were first written."""


@dataclasses.dataclass(frozen=True)
class ClassMap:
    """The classes of a data set: contiguous ids inside, the data set's own ids and names at the edges.

    ``class_id`` is the position in ``names`` (0 to C-1). ``category_ids[class_id]`` is the id that the
    data set's annotation file uses. ``logit_index[class_id]`` is the row of the class head that scores the class:
    the same as ``class_id``, except for heads like the published DETR's, whose 91 rows are raw COCO ids.

    Args:
        names: One name per class, as the data set spells it.
        category_ids: One id per class; any distinct integers, gaps and zero allowed.
        logit_index: One row of the head per class; ``range(C)`` when not given.
        num_labels: Rows of the head without no-object; ``C`` when not given.
        guessed: Why the classes are called so, where nothing that was read says it; empty where it is known.
        stuff: Class ids of what has no number, such as sky: in a panoptic picture one segment a class.

    Raises:
        DataError: The lengths differ, or ids or logit indices repeat.
    """

    names: tuple[str, ...]
    category_ids: tuple[int, ...]
    logit_index: tuple[int, ...] = ()
    num_labels: int = 0
    guessed: str = dataclasses.field(default="", compare=False)
    stuff: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        count = len(self.names)
        if len(self.category_ids) != count:
            raise DataError(f"a class map has {count} names but {len(self.category_ids)} category ids")
        if len(set(self.category_ids)) != count:
            raise DataError(f"category ids repeat: {sorted(self.category_ids)}; every class needs its own")
        if not self.logit_index:
            object.__setattr__(self, "logit_index", tuple(range(count)))
        if not self.num_labels:
            object.__setattr__(self, "num_labels", max(self.logit_index, default=-1) + 1)
        if len(self.logit_index) != count or len(set(self.logit_index)) != count:
            raise DataError(
                f"a class map of {count} classes needs {count} distinct logit indices, got {self.logit_index}"
            )
        if any(not 0 <= class_id < count for class_id in self.stuff):
            raise DataError(f"stuff must be class ids, 0 to {count - 1}, got {self.stuff}")
        if any(not 0 <= index < self.num_labels for index in self.logit_index):
            raise DataError(f"logit indices must lie in 0 to {self.num_labels - 1}, got {self.logit_index}")

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def from_categories(cls, categories: Sequence[Mapping[str, Any]]) -> ClassMap:
        """Make the class map of a COCO ``categories`` list, ordered by category id."""
        ordered = sorted(categories, key=lambda category: int(category["id"]))
        return cls(
            names=tuple(str(category["name"]) for category in ordered),
            category_ids=tuple(int(category["id"]) for category in ordered),
            stuff=tuple(place for place, category in enumerate(ordered) if not category.get("isthing", 1)),
        )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ClassMap:
        """Make the map again of what :meth:`to_dict` gave.

        Raises:
            DataError: A key is missing, or of another type.
        """
        try:
            named = {name: data[key] for name, key in _JSON_KEYS.items() if key in data}
            return msgspec.convert({**data, **named}, cls)
        except (msgspec.ValidationError, AttributeError, TypeError) as error:
            raise DataError(f"not a class map: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        values = {
            _JSON_KEYS.get(name, name): value
            for name, value in vars(self).items()
            if value or name not in ("guessed", "stuff")
        }
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def class_id_by_name(self) -> dict[str, int]:
        """Return a map from class name to contiguous class id (the first, where a name repeats)."""
        return {name: class_id for class_id, name in reversed(list(enumerate(self.names)))}

    def select(self, class_ids: Sequence[int]) -> ClassMap:
        """Return the map of some classes, renumbered in the order given."""
        stuff = tuple(place for place, class_id in enumerate(class_ids) if class_id in self.stuff)
        names = tuple(self.names[i] for i in class_ids)
        return ClassMap(names, tuple(self.category_ids[i] for i in class_ids), stuff=stuff)


def take_names(model_classes: ClassMap, data_classes: ClassMap) -> ClassMap:
    """Return a model's classes under the data set's names, where its own are guessed.

    Labels of a head without names are the category ids that it was trained on, as in the authors' training script.
    Where the guessed names are the data's too, but at other ids, only a person knows.

    Raises:
        DataError: Ids and names make different classes of the model's rows.
    """
    own = dict(zip(model_classes.category_ids, model_classes.names, strict=True))
    data = dict(zip(data_classes.category_ids, data_classes.names, strict=True))
    if not model_classes.guessed or not data.keys() <= own.keys():
        return model_classes
    elsewhere = [(name, number) for number, name in data.items() if name in own.values() and own[number] != name]
    if elsewhere:
        name, number = elsewhere[0]
        raise DataError(
            f"{model_classes.guessed}. The data set calls {name!r} what has id {number}, where these have "
            f"{own[number]!r}: say whose names hold, --as classes=coco or --as classes=ANNOTATIONS.json"
        )
    agreed = all(own[number] == name for number, name in data.items())
    names = own if agreed else {number: data.get(number, f"class_{number}") for number in own}
    return dataclasses.replace(model_classes, names=tuple(names.values()), guessed="")


def match_classes(model_classes: ClassMap, data_classes: ClassMap) -> np.ndarray:
    """Return the data set's class id for each class id of a model, int64 ``[model classes]``; -1 where none.

    Names decide; where one repeats, the category id does.

    Raises:
        DataError: Not one class is shared, which means the wrong data set or names in another language.
    """
    by_name = data_classes.class_id_by_name()
    repeated = {
        name for names in (model_classes.names, data_classes.names) for name in names if names.count(name) > 1
    }
    by_pair = {pair: i for i, pair in enumerate(zip(data_classes.names, data_classes.category_ids, strict=True))}
    matched = [
        by_pair.get((name, category_id), -1) if name in repeated else by_name.get(name, -1)
        for name, category_id in zip(model_classes.names, model_classes.category_ids, strict=True)
    ]
    if matched and data_classes.names and max(matched) < 0:
        raise DataError(
            f"no class of the model is in the data set: the model knows {listed(model_classes.names)}, "
            f"the annotations {listed(data_classes.names)}; evaluate on data with the same class names"
        )
    return np.array(matched, dtype=np.int64)
