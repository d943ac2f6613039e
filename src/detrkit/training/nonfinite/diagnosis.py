"""Result of the replay of a bad step, for people and for programs."""

from __future__ import annotations

import dataclasses
import math
import struct
from collections.abc import Mapping
from typing import Any

from detrkit.files import to_plain
from detrkit.training.nonfinite.trace import NonFiniteGradient, NonFiniteModule

_MOST_LISTED = 8


@dataclasses.dataclass(frozen=True)
class NumberPair:
    """A value as it was recorded, and as the replay gave it; None if it gave none."""

    recorded: float
    now: float | None

    @property
    def is_equal(self) -> bool:
        """True if both have the same bits as float32; one NaN is as good as another."""
        if self.now is None or math.isnan(self.recorded) or math.isnan(self.now):
            return self.now is not None and math.isnan(self.recorded) and math.isnan(self.now)
        return struct.pack("f", self.recorded) == struct.pack("f", self.now)


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """A step that was repeated.

    Args:
        file: path of the replay file.
        step: number of the step, from 1.
        epoch: number of its epoch, from 1.
        process: number of the process, from 0.
        image_ids: images that it was trained on.
        machine_then: machine it was made on.
        machine_now: machine it was repeated on.
        values: loss, terms and gradient norm, recorded and now.
        damaged_boxes: boxes that are not finite or have no area, in words.
        bad_weights: names of weights that were not finite before the step.
        bad_inputs: ids of images whose pixels were not finite.
        forward: first module whose output was not finite while its input was.
        bad_terms: loss terms that were not finite and the decoder layer of each, from 0.
        backward: place where a gradient was first not finite, if the loss was finite.
    """

    file: str
    step: int
    epoch: int
    process: int
    image_ids: tuple[int, ...]
    machine_then: str
    machine_now: str = ""
    values: Mapping[str, NumberPair] = dataclasses.field(default_factory=dict)
    damaged_boxes: tuple[str, ...] = ()
    bad_weights: tuple[str, ...] = ()
    bad_inputs: tuple[int, ...] = ()
    forward: NonFiniteModule | None = None
    bad_terms: tuple[tuple[str, int | None], ...] = ()
    backward: NonFiniteGradient | None = None

    @property
    def is_equal(self) -> bool:
        """True if every value is that of the training, bit for bit."""
        return all(pair.is_equal for pair in self.values.values())

    @property
    def cause(self) -> str:
        """Place where it began, in a sentence."""
        return self._finding()[0]

    @property
    def advice(self) -> str:
        """Advice on what to do about it."""
        return self._finding()[1]

    def _finding(self) -> tuple[str, str]:
        """Return cause and advice, by the earliest thing that was wrong."""
        calmer = "lower train.lr, set train.clip_norm=0.1, or set train.precision=32"
        if self.damaged_boxes:
            return self.damaged_boxes[0], "mend the annotations: detrkit data check DATA --fix OUT"
        if self.bad_weights:
            return f"the weight {self.bad_weights[0]} is not finite before the step", (
                "it was so before: start from sound weights; if an earlier step is saved, replay that one; lower "
                "train.lr or set train.clip_norm"
            )
        if self.bad_inputs:
            found = f"the pixels of image {_listed(self.bad_inputs)} are not finite"
            return found, "look at the image and its augmentation: detrkit data preview"
        if self.forward is not None:
            wider = "set train.precision=bf16, whose range is that of float32, or 32"
            return str(self.forward), wider if self.forward.overflows else calmer
        if self.bad_terms:
            term = _term(*self.bad_terms[0])
            return f"the loss: {term} is not finite, while all that goes into it is", ""
        if self.backward is not None:
            return str(self.backward), calmer
        return "nothing: every value and gradient is finite on this machine", ""

    def lines(self) -> list[str]:
        """Return the lines for people."""
        lines = [
            f"step {self.step} of epoch {self.epoch}, process {self.process}, images {_listed(self.image_ids)}",
            *(f"  {name:14} {pair.recorded:<14.8g} now {_shown(pair.now)}" for name, pair in self.values.items()),
        ]
        differs = (
            "NOT equal to the training: other hardware, another torch or another number of threads may change "
            f"the last bits. Then: {self.machine_then}; now: {self.machine_now}"
        )
        lines.append("Repeated bit for bit." if self.is_equal else differs)
        for title, found in (
            ("damaged boxes", self.damaged_boxes),
            ("weights not finite", self.bad_weights),
            ("images not finite", self.bad_inputs),
            ("loss terms not finite", tuple(_term(*term) for term in self.bad_terms)),
        ):
            if found:
                lines.append(f"{title}: {_listed(found)}")
        if self.forward is not None and (self.damaged_boxes or self.bad_weights or self.bad_inputs):
            lines.append(f"forward: {self.forward}")
        lines.append(f"Where it began: {self.cause}")
        if self.advice:
            lines.append(f"What to do: {self.advice}")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, which knows no NaN: those are texts."""
        plain = {
            **to_plain(self),
            "bad_terms": [{"term": name, "layer": layer} for name, layer in self.bad_terms],
            "overflow": self.forward is not None and self.forward.overflows,
            "equal": self.is_equal,
            "cause": self.cause,
            "advice": self.advice,
        }
        return {name: _without_nan(value) for name, value in plain.items()}


def _term(name: str, layer: int | None) -> str:
    return name if layer is None else f"{name} of decoder layer {layer}"


def _listed(items: tuple[Any, ...]) -> str:
    shown = ", ".join(map(str, items[:_MOST_LISTED]))
    return shown + (f" and {len(items) - _MOST_LISTED} more" if len(items) > _MOST_LISTED else "")


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.8g}"


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(inner) for name, inner in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
