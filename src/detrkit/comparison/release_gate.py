"""The decision whether a new model may follow a released one: checks on the numbers of a comparison."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from detrkit.comparison.result import ClassDifference, Comparison, ModelResult
from detrkit.evaluation.bootstrap import LEAST_IMAGES
from detrkit.evaluation.coco import UNDEFINED
from detrkit.files import to_plain
from detrkit.visual.text import printable


@dataclasses.dataclass(frozen=True)
class GateRule:
    """What a new model has to hold.

    Args:
        min_ap: Least AP on every data set, in points; None for none.
        max_loss: AP points that the new model may have less at the worse end of the interval; None stops only a
            model that is worse beyond chance.
        max_slowdown: Percent that the median time of an image may be longer; None leaves the speed unchecked.
    """

    min_ap: float | None = None
    max_loss: float | None = None
    max_slowdown: float | None = 10.0


@dataclasses.dataclass(frozen=True)
class GateCheck:
    """A check on a data set.

    Args:
        data: What people call the data set.
        what: AP, least AP or speed.
        passed: The new model holds it.
        reason: Figures, for people.
    """

    data: str
    what: str
    passed: bool
    reason: str


@dataclasses.dataclass(frozen=True)
class GateResult:
    """The decision on a new model.

    Args:
        new: The new model, as it was given.
        old: The released one; None for a first release.
        checks: All checks, each data set's together.
        notes: What people must know and what stops nothing, such as classes that became worse.
        metrics: The new model's metrics by data set, as ``detrkit eval`` has them.
    """

    new: str
    old: str | None
    checks: tuple[GateCheck, ...]
    notes: tuple[str, ...]
    metrics: Mapping[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """True if every check was passed."""
        return all(check.passed for check in self.checks)

    def lines(self) -> list[str]:
        """Return checks, notes and decision for people."""
        lines = [f"{_word(check)}  {check.data}, {check.what}: {check.reason}" for check in self.checks]
        return [printable(line) for line in [*lines, *(f"note: {note}" for note in self.notes), self._decision()]]

    def markdown(self) -> str:
        """Return the same for a pull request."""
        rows = [
            f"| {_word(check)} | {_cell(check.data)} | {check.what} | {_cell(check.reason)} |"
            for check in self.checks
        ]
        notes = [f"- {_cell(note)}" for note in self.notes]
        parts = [f"### {_cell(self._decision())}", "", "| | data | check | |", "|---|---|---|---|", *rows]
        return "\n".join([*parts, *(["", *notes] if notes else []), ""])

    def to_dict(self) -> dict[str, Any]:
        """Return the content for JSON."""
        return {"passed": self.passed, **to_plain(self)}

    def _decision(self) -> str:
        failed = sum(not check.passed for check in self.checks)
        if failed:
            return f"stopped: {self.new} fails {failed} of {len(self.checks)} checks"
        return f"passed: {self.new} may {'be released' if self.old is None else f'follow {self.old}'}"


def check_comparison(data: str, comparison: Comparison, rule: GateRule) -> tuple[list[GateCheck], list[str]]:
    """Check the second model of a comparison against the first.

    Args:
        data: What people call the data set.
        comparison: Old and new model, in this order.
        rule: What the new one has to hold.

    Returns:
        The checks, and notes.
    """
    old, new = comparison.models
    [pair] = comparison.pairs
    checks = [GateCheck(data, "AP", *_accuracy(pair.measures.get("AP"), pair.verdict(), rule))]
    checks += check_least_ap(data, new.metrics["AP"], rule)
    notes = [*comparison.notes, *_worse_classes(data, pair.classes)]
    for what, before in _of_masks(old).items():
        after = _of_masks(new).get(what, 0.0)
        reason = f"{100 * after:.1f} points, {100 * before:.1f} before"
        if rule.max_loss is None:
            notes.append(f"{data}: {what} {reason}; it has no interval here, and is held by --max-loss alone")
        else:
            reason += f"; {rule.max_loss:g} less may be, without an interval"
            checks.append(GateCheck(data, what, 100 * (before - after) <= rule.max_loss, reason))
    if rule.max_slowdown is not None:
        checks.append(GateCheck(data, "speed", *_speed(old, new, rule.max_slowdown)))
    return checks, notes


def _of_masks(model: ModelResult) -> dict[str, float]:
    """Return AP of masks and PQ, as far as the model and the data have such."""
    found = {
        "mask AP": UNDEFINED if model.masks is None else model.masks["AP"],
        "PQ": model.panoptic.get("PQ", UNDEFINED),
    }
    return {name: value for name, value in found.items() if value != UNDEFINED}


def check_least_ap(data: str, ap: float, rule: GateRule) -> list[GateCheck]:
    """Check the least AP, if there is one."""
    if rule.min_ap is None:
        return []
    # an AP that is no number, as of data without objects, is not enough
    reason = f"{100 * ap:.1f} points, expected {rule.min_ap:g} or more"
    return [GateCheck(data, "least AP", 100 * ap >= rule.min_ap, reason)]


def _accuracy(difference: Any, verdict: str, rule: GateRule) -> tuple[bool, str]:
    """Decide on the difference of AP; one that cannot be told proves nothing, and does not pass."""
    if difference is None:
        return False, f"{verdict}; give {LEAST_IMAGES} images with objects or more"
    worst = -100 * difference.low
    if rule.max_loss is None:
        return difference.high >= 0, f"{verdict}; a loss of {max(worst, 0):.1f} points is not ruled out"
    return worst <= rule.max_loss, f"{verdict}; at worst {max(worst, 0):.1f} points less, {rule.max_loss:g} may be"


def _speed(old: ModelResult, new: ModelResult, most: float) -> tuple[bool, str]:
    """Decide on medians of runs in turn, of which those of the slower machine's moments are alike in both."""
    if old.latency is None or new.latency is None:
        names = " and ".join(model.name for model in (old, new) if model.latency is None)
        return False, f"{names} cannot be timed; leave the speed out with --max-slowdown -1"
    before, after = old.latency.total.p50, new.latency.total.p50
    slower = 100 * (after / before - 1)
    return slower <= most, f"{after:.1f} ms an image, {before:.1f} before: {slower:+.0f} %, {most:g} % may be"


def _worse_classes(data: str, classes: Sequence[ClassDifference]) -> list[str]:
    """Name classes that became worse, each beyond chance when looked at alone: of many, some do by chance."""
    return [
        f"{data}: class {entry.name} has {-100 * entry.value:.1f} AP less, of {entry.objects} objects"
        for entry in reversed(classes)
        if entry.value is not None and entry.value < 0 and entry.beyond_chance
    ]


def _word(check: GateCheck) -> str:
    return "ok" if check.passed else "STOP"


def _cell(text: str) -> str:
    return printable(text).replace("|", "\\|").replace("<", "&lt;")
