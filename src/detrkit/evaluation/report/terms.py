"""Words and figures of an evaluation, for the terminal, the page and the summary alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

from detrkit.evaluation.coco import UNDEFINED, CocoMetrics
from detrkit.visual.text import shortened

if TYPE_CHECKING:
    from detrkit.evaluation.bootstrap import Interval

MEANINGS = {
    "AP": "IoU 0.50 to 0.95",
    "AP50": "IoU 0.50",
    "AP75": "IoU 0.75",
    "APs": "small objects, under 32² pixels",
    "APm": "medium objects, 32² to 96²",
    "APl": "large objects, over 96²",
    "AR1": "best detection per class and image",
    "AR10": "best 10",
    "AR100": "best {max_detections}",
    "ARs": "small objects",
    "ARm": "medium objects",
    "ARl": "large objects",
}

ERROR_NAMES = {
    "classification": "well placed, but called another class",
    "localization": "right class, but badly placed (IoU 0.1 to 0.5)",
    "both": "wrong class and badly placed",
    "duplicate": "the object was found already, with a higher score",
    "background": "nothing is annotated there",
    "missed": "an object that no detection comes near",
}

MORE_ERROR_NAMES = {
    "false_positives": "all wrong detections",
    "false_negatives": "all objects that were not found",
}


def percent(value: float | None) -> str:
    """Return ``42.0`` for 0.42, ``-`` where undefined."""
    return "-" if value is None or value == UNDEFINED else f"{100 * value:.1f}"


def range_of(interval: Interval | None) -> str:
    """Return ``41.2 to 42.8``, ``-`` where there is none."""
    return "-" if interval is None else f"{100 * interval.low:.1f} to {100 * interval.high:.1f}"


def label_of(name: str, metrics: CocoMetrics) -> str:
    """Return the name of a metric with the number of detections that really counted."""
    return f"AR{metrics.max_detections}" if name == "AR100" else name


def quoted(name: str) -> str:
    """Return a class name as it stands inside a sentence."""
    return f'"{shortened(name, 40)}"'
