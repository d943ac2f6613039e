"""Score thresholds of detections: per-class thresholds, calibrated scores, and their file.

Shapes: K detections.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import msgspec
import numpy as np

from detrkit.classes import ClassMap
from detrkit.detections import ImageDetections
from detrkit.errors import DataError, UsageError, listed
from detrkit.files import parse_json, to_plain, write_json

FILE_NAME = "thresholds.json"
_MODEL_FILES = (".pth", ".pt", ".safetensors")
REPAIR = 'write it anew with "detrkit thresholds"'

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Count = Annotated[int, msgspec.Meta(ge=0)]


@dataclasses.dataclass(frozen=True)
class ScoreScale:
    """Scores turned into probabilities: sigmoid(logit(score) / temperature + bias). It keeps their order.

    Args:
        temperature: Above 0; over 1 draws scores towards a half.
        bias: With one, this is Platt scaling, without, temperature scaling.
    """

    temperature: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    bias: float = 0.0

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """Scale scores 0 to 1 of any shape and dtype; float64."""
        if self == ScoreScale():
            return np.asarray(scores, dtype=np.float64)
        scaled: np.ndarray = 1 / (1 + np.exp(-(logits_of(scores) / self.temperature + self.bias)))
        return scaled


def logits_of(scores: np.ndarray) -> np.ndarray:
    """Return log odds of scores 0 to 1, float64; finite at 0 and 1 too."""
    inside = np.clip(np.asarray(scores, dtype=np.float64), 1e-38, 1 - 1e-16)
    logits: np.ndarray = np.log(inside) - np.log1p(-inside)
    return logits


@dataclasses.dataclass(frozen=True)
class ClassThreshold:
    """The score from which detections of a class are taken.

    Args:
        name: Name of the class.
        category_id: Category id of the class.
        score: Least score, 0 to 1, on the scale of ``Thresholds.scale``.
        objects: Annotated objects of the class where it was chosen.
        precision: Share of the taken detections that is correct there; None where none is taken.
        recall: Share of the objects that is found there; None without objects.
        own: False: too few objects, or none found, so that the threshold of all classes is used.
        reached: False: what was wished cannot be had at any score, and this comes nearest.
    """

    name: str
    category_id: int
    score: Share
    objects: Count = 0
    precision: Share | None = None
    recall: Share | None = None
    own: bool = True
    reached: bool = True


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """The score from which detections are taken, class by class, and how it was chosen: ``thresholds.json``.

    Args:
        classes: Thresholds by the model's class id.
        default: Threshold of all classes together, and for those that have none of their own.
        criterion: ``f1`` (best F1), ``precision`` or ``recall``.
        wished: Precision or recall; None for ``f1``.
        iou: Least IoU of a correct detection.
        scale: Scale from the model's scores to those that thresholds are compared with, and that are shown.
        data: Name of the data set they were chosen on.
        split: Name of the split.
        images: Images in the split.
        objects: Objects in the split.
        panoptic_score: Queries of a higher score take part in a panoptic picture, as ``masks.panoptic_score`` of
            the config; None where none was chosen.
    """

    classes: tuple[ClassThreshold, ...]
    default: Share
    criterion: Literal["f1", "precision", "recall"] = "f1"
    wished: Share | None = None
    iou: Share = 0.5
    scale: ScoreScale = ScoreScale()
    data: str = ""
    split: str = ""
    images: Count = 0
    objects: Count = 0
    panoptic_score: Share | None = None

    VERSION: ClassVar[int] = 1

    def apply(self, scores: np.ndarray, class_ids: np.ndarray) -> np.ndarray:
        """Tell which detections are taken, bool ``[K]``.

        Args:
            scores: The model's own, not calibrated, ``[K]``.
            class_ids: The model's, int ``[K]``.
        """
        least = np.array([entry.score for entry in self.classes], dtype=np.float64)
        keep: np.ndarray = self.scale(scores) >= least[class_ids]
        return keep

    def calibrated(self, scores: np.ndarray) -> np.ndarray:
        """Return the scores to show for the model's own; the same where nothing was calibrated. float64."""
        return self.scale(scores)

    def for_classes(self, class_map: ClassMap) -> Thresholds:
        """Return the same by the class ids of a model; classes that are new to it get the default.

        Raises:
            UsageError: It speaks of classes that the model does not have.
        """
        by_class = {(entry.name, entry.category_id): entry for entry in self.classes}
        by_name = {entry.name: entry for entry in reversed(self.classes)}
        unknown = [entry.name for entry in self.classes if entry.name not in class_map.names]
        if unknown:
            raise UsageError(
                f"thresholds name {len(unknown)} classes that the model does not have "
                f"({listed([repr(name) for name in unknown], 5)}); choose them for "
                'this model with "detrkit thresholds"'
            )
        found = []
        for name, category_id in zip(class_map.names, class_map.category_ids, strict=True):
            known = by_class.get((name, category_id)) or by_name.get(name)
            entry = known or ClassThreshold(name, category_id, self.default, own=False)
            found.append(dataclasses.replace(entry, category_id=category_id))
        return dataclasses.replace(self, classes=tuple(found))

    def to_dict(self) -> dict[str, Any]:
        """Return what the file holds, ready for JSON."""
        content: dict[str, Any] = to_plain(self)
        classes, scale = content.pop("classes"), content.pop("scale")
        return {"version": self.VERSION, **content, **scale, "classes": classes}

    @classmethod
    def from_dict(cls, data: Any, where: str = "thresholds") -> Thresholds:
        """Take back what :meth:`to_dict` gave, of files that people may have edited.

        Raises:
            DataError: Something is missing, no number, or out of range.
        """
        if not isinstance(data, Mapping):
            raise DataError(f"{where}: got a {type(data).__name__}, expected an object; {REPAIR}")
        if data.get("version") != cls.VERSION:
            raise DataError(f"{where}: version is {data.get('version')!r}, expected {cls.VERSION}; {REPAIR}")
        scale = {field.name: data[field.name] for field in dataclasses.fields(ScoreScale) if field.name in data}
        content = {**data, "scale": scale}
        try:
            found = msgspec.convert(content, cls)
        except msgspec.ValidationError as error:
            raise DataError(f"{where}: {_explained(error, content)}; {REPAIR}") from error
        # nothing may be left to a default: a file without its temperature would show other scores
        parts: list[tuple[Mapping[str, Any], type, str]] = [(content, cls, ""), (scale, ScoreScale, "")]
        parts += [(entry, ClassThreshold, f"classes[{i}].") for i, entry in enumerate(data["classes"])]
        for part, kind, place in parts:
            for field in dataclasses.fields(kind):
                if field.name not in part and field.name != "panoptic_score":  # which older files lack
                    raise DataError(f"{where}: {place}{field.name} is missing; {REPAIR}")
        return found


def _explained(error: msgspec.ValidationError, content: Any) -> str:
    """Return the field, what it is and what was expected."""
    expected, _, path = str(error).partition(" - at ")
    for key in re.findall(r"\w+", path):
        content = content[int(key)] if isinstance(content, list | tuple) else content[key]
    got = "" if isinstance(content, Mapping) else f" is {content!r}"
    return f"{path.strip('`$.')}{got}: {expected}".removeprefix(": ")


def take_detections(found: ImageDetections, threshold: float | Thresholds) -> ImageDetections:
    """Keep detections from the threshold on, with the scores to be shown."""
    return found.take(*apply_threshold(found, threshold))


def apply_threshold(found: ImageDetections, threshold: float | Thresholds) -> tuple[np.ndarray, np.ndarray]:
    """Return True for detections from the threshold on, and the scores to be shown of all."""
    if isinstance(threshold, Thresholds):
        keep = threshold.apply(found.scores, found.class_ids)
        return keep, threshold.calibrated(found.scores).astype(np.float32)
    return found.scores >= threshold, found.scores


def read_thresholds(path: str | os.PathLike[str], class_map: ClassMap) -> Thresholds:
    """Read the thresholds of a file, by the class ids of a model.

    Raises:
        DataError: The file cannot be read, or something in it is not what it should be.
        UsageError: It speaks of classes that the model does not have.
    """
    try:
        data = parse_json(Path(path).read_bytes(), Any)
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
    write_json(Path(path), thresholds.to_dict())


def find_threshold_file(model: str | os.PathLike[str]) -> Path | None:
    """Return the file of thresholds in a model's folder, or beside its file; None where there is none."""
    file = threshold_path(Path(model).expanduser())
    return file if file.is_file() else None


def threshold_path(model: Path) -> Path:
    """Return ``thresholds.json`` in a model's folder, ``NAME.thresholds.json`` beside its file."""
    return model.with_suffix(f".{FILE_NAME}") if model.suffix in _MODEL_FILES else model / FILE_NAME
