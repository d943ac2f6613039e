"""The result of a comparison: each model's numbers, and each pair's differences with intervals."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from detrkit.classes import ClassMap
from detrkit.comparison.images import ImageDifferences
from detrkit.detectors.cost import Cost
from detrkit.evaluation.bootstrap import LEAST_IMAGES, Difference, Differences
from detrkit.evaluation.coco import CocoMetrics, known
from detrkit.evaluation.matching import Matches
from detrkit.files import to_plain
from detrkit.latency import Latency

MEASURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100")
VERSION = 1


@dataclasses.dataclass(frozen=True)
class ModelResult:
    """The result of one model.

    Args:
        name: Name for people; no two models have the same.
        source: Source as it was given.
        kind: Toolkit it comes from.
        metrics: Metrics on the classes that are compared.
        matches: Matches of its detections.
        latency: Latency; None where nothing was timed.
        cost: Cost; None for a file of detections.
        reused: Its detections were those of an earlier comparison.
        masks: Metrics of its masks; None without.
        panoptic: PQ, SQ and RQ over all classes of the data set; empty without panoptic pictures.
    """

    name: str
    source: str
    kind: str
    metrics: CocoMetrics
    matches: Matches
    latency: Latency | None
    cost: Cost | None
    reused: bool
    masks: CocoMetrics | None = None
    panoptic: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the content for JSON."""
        return {
            **{name: getattr(self, name) for name in ("name", "source", "kind", "reused")},
            **{measure: known(value) for measure, value in self.metrics.values.items()},
            "detections": self.metrics.detections,
            "masks": None if self.masks is None else {name: known(self.masks[name]) for name in MEASURES},
            "panoptic": {name: known(value) for name, value in self.panoptic.items()} or None,
            "latency": None if self.latency is None else self.latency.to_dict(),
            "cost": None if self.cost is None else self.cost.to_dict(),
        }


@dataclasses.dataclass(frozen=True)
class ClassDifference:
    """The difference of two models on one class.

    Args:
        name: Name of the class.
        objects: Objects in the data.
        first: AP of the first model, None where undefined.
        second: AP of the second.
        difference: Second less first, with its interval; None where too few images hold the class.
    """

    name: str
    objects: int
    first: float | None
    second: float | None
    difference: Difference | None

    @property
    def value(self) -> float | None:
        """Second less first, None where undefined."""
        return None if self.first is None or self.second is None else self.second - self.first

    def to_dict(self) -> dict[str, Any]:
        """Return the content for JSON."""
        numbers = {"reference_AP": self.first, "AP": self.second, "difference": self.value}
        interval = to_plain(self.difference)
        return {"name": self.name, "objects": self.objects, **numbers, "interval": interval}

    @property
    def beyond_chance(self) -> bool:
        """True if the interval leaves out zero."""
        return self.difference is not None and (self.difference.low > 0 or self.difference.high < 0)


@dataclasses.dataclass(frozen=True)
class PairwiseComparison:
    """A model against the reference, which all are compared with.

    Args:
        reference: The reference.
        model: The other; differences are what it has more.
        differences: Differences with intervals, of paired resamples of the images.
        images: Differences image by image.
    """

    reference: ModelResult
    model: ModelResult
    differences: Differences
    images: ImageDifferences

    @property
    def measures(self) -> dict[str, Difference | None]:
        """Differences of AP, AP50 and AP75, None where undefined; empty where too few images hold objects."""
        return {measure: _defined(entry) for measure, entry in self.differences.values.items()}

    @property
    def classes(self) -> list[ClassDifference]:
        """Classes with objects, greatest gain of the model first."""
        first, second = self.reference.metrics.per_class, self.model.metrics.per_class
        found = [
            ClassDifference(a.name, a.objects, known(a.AP), known(b.AP), _defined((each or {}).get("AP")))
            for a, b, each in zip(first, second, self.differences.per_class, strict=True)
            if a.objects
        ]
        return sorted(found, key=lambda entry: -(entry.value or 0.0))

    def verdict(self, measure: str = "AP", written: Callable[[str], str] = str) -> str:
        """Say in a sentence who is better and how sure that is.

        Args:
            measure: AP, AP50 or AP75.
            written: Function that writes names.
        """
        first, second = written(self.reference.name), written(self.model.name)
        difference = self.measures.get(measure)
        if difference is None:
            between, why = f"{second} and {first}", f"fewer than {LEAST_IMAGES} images hold objects"
            return f"how sure the difference between {between} is cannot be said: {why}"
        return difference_in_words(first, second, difference, self.differences.confidence, measure)

    def to_dict(self) -> dict[str, Any]:
        """Return the content for JSON."""
        sides = ((self.reference, self.images.first), (self.model, self.images.second))
        return {
            "reference": self.reference.name,
            "model": self.model.name,
            "verdict": self.verdict(),
            "differences": to_plain(self.measures),
            "per_class": [entry.to_dict() for entry in self.classes],
            "thresholds": {
                side.name: operation.threshold if math.isfinite(operation.threshold) else None
                for side, operation in sides
            },
        }


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Several models on the same images.

    Args:
        data: Path of the annotation file.
        split: Name of the split.
        images: Number of images.
        objects: Objects in them, of the classes compared.
        class_map: Classes compared.
        left_out: Classes of the data that are not compared.
        notes: Notes for readers, such as classes that a model does not know.
        models: Results in the order given.
        pairs: Each model but the reference against it, in that order.
        confidence: Confidence of the intervals.
        resamples: Resamples that they come from.
    """

    data: str
    split: str
    images: int
    objects: int
    class_map: ClassMap
    left_out: tuple[str, ...]
    notes: tuple[str, ...]
    models: tuple[ModelResult, ...]
    pairs: tuple[PairwiseComparison, ...]
    confidence: float
    resamples: int

    def __getattr__(self, name: str) -> Any:
        new = {"duels": "pairs", "contenders": "models"}.get(name)  # documented names of earlier builds
        raise AttributeError(f"{name} is called {new} now" if new else f"Comparison has no attribute {name!r}")

    @property
    def verdicts(self) -> list[str]:
        """One sentence for each model but the reference: which is better, and how sure that is."""
        return [pair.verdict() for pair in self.pairs]

    def to_dict(self) -> dict[str, Any]:
        """Return the content for JSON; shares are 0 to 1, what is undefined is None."""
        plain = ("data", "split", "images", "objects", "notes", "confidence", "resamples")
        return {
            "version": VERSION,
            **{name: to_plain(getattr(self, name)) for name in plain},
            "classes": list(self.class_map.names),
            "classes_left_out": list(self.left_out),
            "models": [model.to_dict() for model in self.models],
            "comparisons": [pair.to_dict() for pair in self.pairs],
        }


def difference_in_words(
    first: str, second: str, difference: Difference, confidence: float, measure: str = "AP"
) -> str:
    """Write ``B is better than A by 1.8 AP, 95 % interval 0.9 to 2.6``, or that it is no more than chance.

    Args:
        first: Name of the one compared with.
        second: Name of the other.
        difference: Second less first, 0 to 1.
        confidence: Confidence of the interval, 0 to 1.
        measure: AP, AP50 or AP75.
    """
    value, low, high = (100 * number for number in (difference.value, difference.low, difference.high))
    share = f"{100 * confidence:g} % interval"
    if low > 0:
        return f"{second} is better than {first} by {value:.1f} {measure}, {share} {low:.1f} to {high:.1f}"
    if high < 0:
        return f"{second} is worse than {first} by {-value:.1f} {measure}, {share} {-high:.1f} to {-low:.1f}"
    # what rounds to zero has no sign
    value, low, high = (number if abs(number) >= 0.05 else 0.0 for number in (value, low, high))
    signed = [f"{number:+.1f}" if number else "0.0" for number in (value, low, high)]
    told = f"{signed[0]} {measure}, {share} {signed[1]} to {signed[2]}"
    return f"no difference beyond chance between {second} and {first}: {told}"


def _defined(difference: Difference | None) -> Difference | None:
    """Return the difference, None where it is undefined."""
    if difference is None or not all(map(math.isfinite, (difference.value, difference.low, difference.high))):
        return None
    return difference
