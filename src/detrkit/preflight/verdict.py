"""What a preflight says: one judgement per question, and a verdict."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any


class Outcome(enum.StrEnum):
    """How a question was answered, the worst first."""

    FAULT = "fault"
    WARNING = "warning"
    NOTE = "note"
    OK = "ok"


@dataclasses.dataclass(frozen=True)
class Judgement:
    """The answer to one question.

    Args:
        name: Stable name of what was found, such as ``labels_shuffled``, or of the question if all is well.
        outcome: ``fault`` means that training would fail or learn the wrong thing.
        found: What was seen, with figures.
        advice: What to do; empty if nothing.
        figures: The same for programs.
    """

    name: str
    outcome: Outcome
    found: str
    advice: str = ""
    figures: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def line(self) -> str:
        """For people."""
        mark = {
            Outcome.FAULT: "FAULT  ",
            Outcome.WARNING: "WARNING",
            Outcome.NOTE: "note   ",
            Outcome.OK: "ok     ",
        }
        advice = f" -> {self.advice}" if self.advice else ""
        return f"{mark[self.outcome]} {self.name}: {self.found}{advice}"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """All judgements of a preflight."""

    judgements: tuple[Judgement, ...]

    @property
    def ready(self) -> bool:
        """Whether no fault was found."""
        return not self.of(Outcome.FAULT)

    def of(self, outcome: Outcome) -> tuple[Judgement, ...]:
        """The judgements of one outcome."""
        return tuple(judgement for judgement in self.judgements if judgement.outcome == outcome)

    def summary(self) -> str:
        """The verdict in a sentence, with its reasons."""
        faults, warnings = self.of(Outcome.FAULT), self.of(Outcome.WARNING)
        doubts = f"; {len(warnings)} to look at: {_names(warnings)}" if warnings else ""
        if faults:
            return f"NOT READY: {_names(faults)}{doubts}"
        return f"READY{doubts}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "schema_version": 1,
            "ready": self.ready,
            "summary": self.summary(),
            "judgements": [
                {**dataclasses.asdict(judgement), "outcome": judgement.outcome.value}
                for judgement in self.judgements
            ],
        }


def _names(judgements: tuple[Judgement, ...]) -> str:
    return ", ".join(dict.fromkeys(judgement.name for judgement in judgements))
