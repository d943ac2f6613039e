"""What a comparison found."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from detrkit.classes import ClassMap
from detrkit.comparison.images import ImageDifferences
from detrkit.detectors.cost import Cost
from detrkit.evaluation.bootstrap import LEAST_IMAGES, Difference, Differences
from detrkit.evaluation.coco import UNDEFINED, CocoMetrics
from detrkit.evaluation.matching import Matches
from detrkit.latency import Latency

MEASURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100")
VERSION = 1


@dataclasses.dataclass(frozen=True)
class Contender:
    """One of the detectors.

    Args:
        name: What people call it; no two have the same.
        source: As it was given.
        kind: The toolkit it comes from.
        metrics: On the classes that are compared.
        matches: What became of its detections.
        latency: None where nothing was timed.
        cost: None for a file of detections.
        reused: Its detections were those of an earlier comparison.
    """

    name: str
    source: str
    kind: str
    metrics: CocoMetrics
    matches: Matches
    latency: Latency | None
    cost: Cost | None
    reused: bool

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "name": self.name,
            "source": self.source,
            "kind": self.kind,
            **{measure: known(self.metrics[measure]) for measure in self.metrics.values},
            "detections": self.metrics.detections,
            "latency": None if self.latency is None else self.latency.to_dict(),
            "cost": None if self.cost is None else self.cost.to_dict(),
            "reused": self.reused,
        }


@dataclasses.dataclass(frozen=True)
class ClassDifference:
    """How one class fares with two detectors.

    Args:
        name: Of the class.
        objects: In the data.
        first: AP of the first detector, None where undefined.
        second: AP of the second.
        difference: What the second has more, with its interval; None where too few images hold the class.
    """

    name: str
    objects: int
    first: float | None
    second: float | None
    difference: Difference | None

    @property
    def value(self) -> float | None:
        """What the second has more, None where undefined."""
        return None if self.first is None or self.second is None else self.second - self.first

    @property
    def beyond_chance(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.difference is not None and is_certain(self.difference)


@dataclasses.dataclass(frozen=True)
class Duel:
    """A detector against the one that all are compared with.

    Args:
        reference: The one that all are compared with.
        challenger: The other; differences are what it has more.
        differences: With intervals, of paired resamples of the images.
        images: Image by image.
    """

    reference: Contender
    challenger: Contender
    differences: Differences
    images: ImageDifferences

    @property
    def classes(self) -> list[ClassDifference]:
        """Greatest gain of the challenger first, classes without objects left out."""
        first, second = self.reference.metrics.per_class, self.challenger.metrics.per_class
        found = [
            ClassDifference(
                a.name, a.objects, known(a.AP), known(b.AP), usable(each["AP"]) if each is not None else None
            )
            for a, b, each in zip(first, second, self.differences.per_class, strict=True)
            if a.objects
        ]
        return sorted(found, key=lambda entry: -(entry.value or 0.0))

    def verdict(self, measure: str = "AP", written: Callable[[str], str] = str) -> str:
        """In a sentence, who is better and how sure that is.

        Args:
            measure: Which difference.
            written: How names are written.
        """
        names = (written(self.reference.name), written(self.challenger.name))
        difference = usable(self.differences.values.get(measure))
        if difference is None:
            return (
                f"how sure the difference between {names[1]} and {names[0]} is cannot be said: fewer than "
                f"{LEAST_IMAGES} images hold objects"
            )
        return difference_in_words(*names, difference, self.differences.confidence, measure)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        values = self.differences.values
        return {
            "reference": self.reference.name,
            "model": self.challenger.name,
            "verdict": self.verdict(),
            "differences": {measure: difference_to_dict(usable(values[measure])) for measure in values},
            "per_class": [
                {
                    "name": entry.name,
                    "objects": entry.objects,
                    "reference_AP": entry.first,
                    "AP": entry.second,
                    "difference": entry.value,
                    "interval": difference_to_dict(entry.difference),
                }
                for entry in self.classes
            ],
            "thresholds": {
                self.reference.name: finite(self.images.first.threshold),
                self.challenger.name: finite(self.images.second.threshold),
            },
        }


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Several detectors on the same images.

    Args:
        data: The annotation file.
        split: Name of the split.
        images: How many.
        objects: In them, of the classes compared.
        class_map: The classes compared.
        left_out: Classes of the data that are not compared.
        notes: What a reader must know, such as classes that a detector does not know.
        contenders: In the order given.
        duels: Of each but the reference, in that order.
        confidence: Of the intervals.
        resamples: That they come from.
    """

    data: str
    split: str
    images: int
    objects: int
    class_map: ClassMap
    left_out: tuple[str, ...]
    notes: tuple[str, ...]
    contenders: tuple[Contender, ...]
    duels: tuple[Duel, ...]
    confidence: float
    resamples: int

    @property
    def verdicts(self) -> list[str]:
        """Who is better than the reference, one sentence for each of the others."""
        return [duel.verdict() for duel in self.duels]

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON; shares are 0 to 1, what is undefined is None."""
        return {
            "version": VERSION,
            "data": self.data,
            "split": self.split,
            "images": self.images,
            "objects": self.objects,
            "classes": list(self.class_map.names),
            "classes_left_out": list(self.left_out),
            "notes": list(self.notes),
            "confidence": self.confidence,
            "resamples": self.resamples,
            "models": [contender.to_dict() for contender in self.contenders],
            "comparisons": [duel.to_dict() for duel in self.duels],
        }


def difference_in_words(
    first: str, second: str, difference: Difference, confidence: float, measure: str = "AP"
) -> str:
    """``B is better than A by 1.8 AP, 95 % interval 0.9 to 2.6``, or that it is no more than chance.

    Args:
        first: Name of the one compared with.
        second: Name of the other.
        difference: What the second has more, 0 to 1.
        confidence: Of the interval, 0 to 1.
        measure: What was measured.
    """
    value, low, high = (100 * number for number in (difference.value, difference.low, difference.high))
    share = f"{100 * confidence:g} % interval"
    if low > 0:
        return f"{second} is better than {first} by {value:.1f} {measure}, {share} {low:.1f} to {high:.1f}"
    if high < 0:
        return f"{second} is worse than {first} by {-value:.1f} {measure}, {share} {-high:.1f} to {-low:.1f}"
    return (
        f"no difference beyond chance between {second} and {first}: {signed(value)} {measure}, {share} "
        f"{signed(low)} to {signed(high)}"
    )


def is_certain(difference: Difference) -> bool:
    """Whether the interval leaves out zero."""
    return difference.low > 0 or difference.high < 0


def difference_to_dict(difference: Difference | None) -> dict[str, float] | None:
    """Ready for JSON."""
    return None if difference is None else dataclasses.asdict(difference)


def usable(difference: Difference | None) -> Difference | None:
    """The difference, None where it is undefined."""
    if difference is None or not all(map(math.isfinite, (difference.value, difference.low, difference.high))):
        return None
    return difference


def best_of(contenders: Sequence[Contender]) -> int:
    """Place of the one with the highest AP; of equals the first."""
    return max(range(len(contenders)), key=lambda place: (contenders[place].metrics["AP"], -place))


def signed(value: float) -> str:
    """``+1.8`` or ``-0.3``; what rounds to zero has no sign."""
    text = f"{value:+.1f}"
    return "0.0" if float(text) == 0 else text


def known(value: float) -> float | None:
    """The value, None where undefined."""
    return None if value == UNDEFINED else value


def finite(value: float) -> float | None:
    """The value, None where it is infinite or NaN."""
    return value if math.isfinite(value) else None


def unique_names(sources: Sequence[str]) -> list[str]:
    """A name for each source, numbered where one is given twice."""
    found: list[str] = []
    for source in sources:
        name, number = source, 2
        while name in found:
            name, number = f"{source} ({number})", number + 1
        found.append(name)
    return found
