"""Words and figures of an evaluation, for the terminal, the page and the summary alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from detrkit.evaluation.coco import UNDEFINED, CocoMetrics
from detrkit.files import read_facts
from detrkit.visual.text import shortened

if TYPE_CHECKING:
    from detrkit.evaluation.bootstrap import Interval

_TERMS = read_facts(__file__)
MEANINGS: Mapping[str, str] = _TERMS["metrics"]
ERROR_NAMES: Mapping[str, str] = _TERMS["errors"]
MORE_ERROR_NAMES: Mapping[str, str] = _TERMS["more_errors"]
LOSS_NAMES: Mapping[str, str] = _TERMS["losses"]


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
