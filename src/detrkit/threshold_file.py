"""From which score on detections are taken: per-class thresholds, calibrated scores, and their file.

Shapes: K detections.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np

from detrkit.classes import ClassMap
from detrkit.errors import DataError, UsageError
from detrkit.files import atomic_file

FILE_NAME = "thresholds.json"
_MODEL_FILES = (".pth", ".pt", ".safetensors")
CRITERIA = ("f1", "precision", "recall")
REPAIR = 'write it anew with "detrkit thresholds"'

_Value = TypeVar("_Value", str, bool, int)


@dataclasses.dataclass(frozen=True)
class ScoreScale:
    """Scores turned into probabilities: sigmoid(logit(score) / temperature + bias). It keeps their order.

    Args:
        temperature: Above 0; over 1 draws scores towards a half.
        bias: With one, this is Platt scaling, without, temperature scaling.
    """

    temperature: float = 1.0
    bias: float = 0.0

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """Scores 0 to 1 of any shape and dtype, scaled, float64."""
        if self == ScoreScale():
            return np.asarray(scores, dtype=np.float64)
        scaled: np.ndarray = 1 / (1 + np.exp(-(logits_of(scores) / self.temperature + self.bias)))
        return scaled


def logits_of(scores: np.ndarray) -> np.ndarray:
    """Log odds of scores 0 to 1, float64; finite at 0 and 1 too."""
    inside = np.clip(np.asarray(scores, dtype=np.float64), 1e-38, 1 - 1e-16)
    logits: np.ndarray = np.log(inside) - np.log1p(-inside)
    return logits


@dataclasses.dataclass(frozen=True)
class ClassThreshold:
    """From which score on detections of a class are taken.

    Args:
        name: Of the class.
        category_id: Of the class.
        score: Least score, 0 to 1, on the scale of ``Thresholds.scale``.
        objects: Annotated objects of the class where it was chosen.
        precision: Share of the taken detections that is correct there; None where none is taken.
        recall: Share of the objects that is found there; None without objects.
        own: False: too few objects, or none found, so that the threshold of all classes is used.
        reached: False: what was wished cannot be had at any score, and this comes nearest.
    """

    name: str
    category_id: int
    score: float
    objects: int = 0
    precision: float | None = None
    recall: float | None = None
    own: bool = True
    reached: bool = True


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """From which score on detections are taken, class by class, and how that was chosen: ``thresholds.json``.

    Args:
        classes: By the model's class id.
        default: For all classes together, and for those that have none of their own.
        criterion: ``f1`` (best F1), ``precision`` or ``recall``.
        wished: The precision or recall; None for ``f1``.
        iou: Least IoU of a correct detection.
        scale: What turns the model's scores into those that thresholds are compared with, and that are shown.
        data: Name of the data set they were chosen on.
        split: Of it.
        images: In the split.
        objects: In the split.
    """

    classes: tuple[ClassThreshold, ...]
    default: float
    criterion: str = "f1"
    wished: float | None = None
    iou: float = 0.5
    scale: ScoreScale = ScoreScale()
    data: str = ""
    split: str = ""
    images: int = 0
    objects: int = 0

    VERSION: ClassVar[int] = 1

    def apply(self, scores: np.ndarray, class_ids: np.ndarray) -> np.ndarray:
        """Which detections are taken, bool ``[K]``.

        Args:
            scores: The model's own, not calibrated, ``[K]``.
            class_ids: The model's, int ``[K]``.
        """
        least = np.array([entry.score for entry in self.classes], dtype=np.float64)
        keep: np.ndarray = self.scale(scores) >= least[class_ids]
        return keep

    def calibrated(self, scores: np.ndarray) -> np.ndarray:
        """The scores to show for the model's own; the same where nothing was calibrated. float64."""
        return self.scale(scores)

    def for_classes(self, class_map: ClassMap) -> Thresholds:
        """The same by the class ids of a model; classes that are new to it get the default.

        Raises:
            UsageError: It speaks of classes that the model does not have.
        """
        by_class = {(entry.name, entry.category_id): entry for entry in self.classes}
        by_name = {entry.name: entry for entry in reversed(self.classes)}
        unknown = [entry.name for entry in self.classes if entry.name not in class_map.names]
        if unknown:
            shown = ", ".join(repr(name) for name in unknown[:5]) + (", ..." if len(unknown) > 5 else "")
            raise UsageError(
                f"thresholds name {len(unknown)} classes that the model does not have ({shown}); choose them for "
                'this model with "detrkit thresholds"'
            )
        found = []
        for name, category_id in zip(class_map.names, class_map.category_ids, strict=True):
            known = by_class.get((name, category_id)) or by_name.get(name)
            entry = known or ClassThreshold(name, category_id, self.default, own=False)
            found.append(dataclasses.replace(entry, category_id=category_id))
        return dataclasses.replace(self, classes=tuple(found))

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        scale = fields.pop("scale")
        classes = [dataclasses.asdict(entry) for entry in fields.pop("classes")]
        return {"version": self.VERSION, **fields, **dataclasses.asdict(scale), "classes": classes}

    @classmethod
    def from_dict(cls, data: Any, where: str = "thresholds") -> Thresholds:
        """The inverse of :meth:`to_dict`, for files that people may have edited.

        Raises:
            DataError: Something is missing, unknown, no number, or out of range.
        """
        values = _Checked(data, where)
        version = values.get("version")
        if version != cls.VERSION:
            raise DataError(f"{where}: version is {version!r}, expected {cls.VERSION}; {REPAIR}")
        criterion = values.text("criterion")
        if criterion not in CRITERIA:
            raise DataError(
                f"{where}: criterion is {criterion!r}, expected one of {', '.join(CRITERIA)}; {REPAIR}"
            )
        entries = values.get("classes")
        if not isinstance(entries, list):
            raise DataError(f"{where}: classes is a {type(entries).__name__}, expected a list; {REPAIR}")
        temperature = values.number("temperature", 0, math.inf)
        if temperature == 0:
            raise DataError(f"{where}: temperature is 0, expected more; {REPAIR}")
        return cls(
            classes=tuple(
                _class_threshold(_Checked(entry, f"{where}: class {i}")) for i, entry in enumerate(entries)
            ),
            default=values.number("default"),
            criterion=criterion,
            wished=values.number_or_none("wished"),
            iou=values.number("iou"),
            scale=ScoreScale(temperature, values.number("bias", -math.inf, math.inf)),
            data=values.text("data"),
            split=values.text("split"),
            images=values.count("images"),
            objects=values.count("objects"),
        )


def read_thresholds(path: str | os.PathLike[str], class_map: ClassMap) -> Thresholds:
    """The thresholds of a file, by the class ids of a model.

    Raises:
        DataError: The file cannot be read, or something in it is not what it should be.
        UsageError: It speaks of classes that the model does not have.
    """
    try:
        data = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise DataError(f"cannot read thresholds {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON: {error}; {REPAIR}") from error
    try:
        return Thresholds.from_dict(data, str(path)).for_classes(class_map)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def write_thresholds(path: str | os.PathLike[str], thresholds: Thresholds) -> None:
    """Write ``thresholds.json``; it appears whole or not at all."""
    with atomic_file(Path(path)) as file:
        file.write(json.dumps(thresholds.to_dict(), indent=1, allow_nan=False) + "\n")


class _Checked:
    """Values of a JSON object, each checked as it is read.

    Args:
        data: The object.
        where: It lies, for messages.

    Raises:
        DataError: It is no object.
    """

    def __init__(self, data: Any, where: str):
        if not isinstance(data, Mapping):
            raise DataError(f"{where}: got a {type(data).__name__}, expected an object; {REPAIR}")
        self._data = data
        self.where = where

    def get(self, key: str) -> Any:
        if key not in self._data:
            raise DataError(f"{self.where}: {key} is missing; {REPAIR}")
        return self._data[key]

    def number(self, key: str, least: float = 0.0, most: float = 1.0) -> float:
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise DataError(f"{self.where}: {key} is {value!r}, expected a number")
        if not least <= value <= most:
            raise DataError(f"{self.where}: {key} is {value}, expected {least:g} to {most:g}")
        return float(value)

    def number_or_none(self, key: str) -> float | None:
        return None if self.get(key) is None else self.number(key)

    def count(self, key: str) -> int:
        return int(self.number(key, 0, math.inf))

    def text(self, key: str) -> str:
        return self._typed(key, str)

    def flag(self, key: str) -> bool:
        return self._typed(key, bool)

    def identity(self, key: str) -> int:
        return self._typed(key, int)

    def _typed(self, key: str, kind: type[_Value]) -> _Value:
        value = self.get(key)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise DataError(f"{self.where}: {key} is {value!r}, expected a {kind.__name__}; {REPAIR}")
        return value


def _class_threshold(values: _Checked) -> ClassThreshold:
    name = values.text("name")
    values.where = f"{values.where} ({name[:60]!r})"
    return ClassThreshold(
        name=name,
        category_id=values.identity("category_id"),
        score=values.number("score"),
        objects=values.count("objects"),
        precision=values.number_or_none("precision"),
        recall=values.number_or_none("recall"),
        own=values.flag("own"),
        reached=values.flag("reached"),
    )


def find_threshold_file(model: str | os.PathLike[str]) -> Path | None:
    """Return the file of thresholds in a model's folder, or beside its file; None where there is none."""
    file = threshold_path(Path(model).expanduser())
    return file if file.is_file() else None


def threshold_path(model: Path) -> Path:
    """Return ``thresholds.json`` in a model's folder, ``NAME.thresholds.json`` beside its file."""
    return model.with_suffix(f".{FILE_NAME}") if model.suffix in _MODEL_FILES else model / FILE_NAME
