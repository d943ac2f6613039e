"""Where in a model values stop being finite: forward through its modules, and backward through its gradients.

Slow, for a step that is known to be bad: every value that enters or leaves a module is looked at.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.hooks import RemovableHandle

from detrkit.losses.criterion import Losses

FLOAT16_MAX = 65504.0
"""Largest number that float16 holds."""


@dataclasses.dataclass(frozen=True)
class Place:
    """A module in which values stopped being finite.

    Args:
        module: Its name, such as ``transformer.encoder.layers.0.linear1``; empty for the model itself.
        kind: Its class.
        weights: Those of its own that are not finite.
        entered: Largest absolute value that went in.
        bad: Values of its output that are not finite.
        values: Values of its output.
        largest: Largest absolute value among those that are finite.
        dtype: Of the output.
        exact: Largest absolute value of the output if it is computed in float32; None if that is not finite either
            or the output is float32 already.
    """

    module: str
    kind: str
    weights: tuple[str, ...]
    entered: float
    bad: int
    values: int
    largest: float
    dtype: str
    exact: float | None

    @property
    def overflows(self) -> bool:
        """Whether it is float16 that cannot hold the values."""
        return self.dtype == "float16" and self.exact is not None and self.exact > FLOAT16_MAX

    def __str__(self) -> str:
        name = f"{self.module or 'the model'} ({self.kind})"
        what = (
            f"{name} is the first module whose output is not finite while its input is: {self.bad:,} of "
            f"{self.values:,} values, {self.dtype}; largest value in {self.entered:.4g}, largest finite value out "
            f"{self.largest:.4g}"
        )
        if self.weights:
            return f"{what}; its own {', '.join(self.weights)} is not finite"
        if self.overflows:
            return (
                f"{what}; float16 overflows: its output reaches {self.exact:.4g}, float16 holds {FLOAT16_MAX:,.0f}"
            )
        return what


@dataclasses.dataclass(frozen=True)
class BackwardPlace:
    """Where a gradient was first not finite, on the way back from the loss.

    Args:
        where: The module, and what of it, in words.
        module: Its name.
        operation: The operation of autograd that gave it, such as ``SqrtBackward0``; empty if that is not known.
        line: The line of code whose backward that is; empty if that is not known.
        infinite: Whether the gradient was infinite, not NaN.
    """

    where: str
    module: str
    operation: str = ""
    line: str = ""
    infinite: bool = False

    def __str__(self) -> str:
        what = "infinite" if self.infinite else "NaN"
        by = f", by {self.operation}" if self.operation else ""
        line = f" of: {self.line}" if self.line else ""
        return f"the gradient is first {what} at {self.where}{by}{line}"


class ForwardWatch:
    """Looks at what enters and leaves every module while it is attached; see :func:`watch_forward`.

    Attributes:
        found: The first module whose output was not finite while its input was.
        input_rows: Rows of the model's first input that were not finite.
        largest: Largest absolute value that left a module in float16, and that module.
    """

    def __init__(self) -> None:
        self.found: Place | None = None
        self.input_rows: list[int] = []
        self.largest: tuple[float, str] = (0.0, "")
        self._inside = False

    def look(self, name: str, module: nn.Module, entered: Any, left: Any) -> None:
        """Compare what entered with what left."""
        if self._inside:
            return
        outputs, inputs = _floats(left), _floats(entered)
        halves = [tensor for tensor in outputs if tensor.dtype == torch.float16]
        if halves and (most := _largest(halves)) > self.largest[0]:
            self.largest = (most, name)
        if self.found is not None or _are_finite(outputs) or not _are_finite(inputs):
            return
        self._inside = True
        try:
            exact = _largest_in_float32(module, entered) if halves else None
        finally:
            self._inside = False
        self.found = Place(
            module=name,
            kind=type(module).__name__,
            weights=tuple(
                own for own, weight in module.named_parameters(recurse=False) if not _are_finite([weight])
            ),
            entered=_largest(inputs),
            bad=sum(int((~tensor.isfinite()).sum()) for tensor in outputs),
            values=sum(tensor.numel() for tensor in outputs),
            largest=_largest(outputs),
            dtype=str(outputs[0].dtype).removeprefix("torch."),
            exact=exact,
        )

    def look_at_input(self, images: Any) -> None:
        """See which images that enter the model are not finite."""
        if isinstance(images, Tensor) and images.is_floating_point() and not _are_finite([images]):
            self.input_rows = (~images.flatten(1).isfinite().all(1)).nonzero().flatten().tolist()


@contextlib.contextmanager
def watch_forward(model: nn.Module) -> Iterator[ForwardWatch]:
    """Look at every module of a model inside."""
    watch = ForwardWatch()
    handles: list[RemovableHandle] = [
        model.register_forward_pre_hook(lambda _module, args: watch.look_at_input(args[0] if args else None))
    ]
    for name, module in model.named_modules():

        def look(module: nn.Module, args: Any, kwargs: Any, output: Any, name: str = name) -> None:
            watch.look(name, module, (args, kwargs), output)

        handles.append(module.register_forward_hook(look, with_kwargs=True))
    try:
        yield watch
    finally:
        for handle in handles:
            handle.remove()


class BackwardWatch:
    """Notes the first gradient that is not finite, by the tensors that pass between modules."""

    def __init__(self) -> None:
        self.first: tuple[int, bool] | None = None
        self.first_weight: str | None = None
        self.made_by: dict[int, str] = {}
        self.taken_by: dict[int, list[str]] = {}
        self.sound: set[str] = set()
        self._kept: list[Tensor] = []  # or another tensor could get the same id
        self._labels: dict[int, int] = {}

    def pass_through(self, name: str, entered: Any, left: Any) -> None:
        """Note a module: what it takes and makes. To be called as modules finish, the inner before the outer."""
        for tensor in _floats(entered):
            self.taken_by.setdefault(self._watch(tensor), []).append(name)
        for tensor in _floats(left):
            label = self._watch(tensor)
            self.made_by.setdefault(label, name)

    def look_at_weight(self, name: str, gradient: Tensor) -> None:
        """See whether a weight's gradient is finite."""
        if self.first is None and self.first_weight is None and not _are_finite([gradient]):
            self.first_weight = name

    def _watch(self, tensor: Tensor) -> int:
        label = self._labels.setdefault(id(tensor), len(self._labels))
        if len(self._labels) > len(self._kept):
            self._kept.append(tensor)
            if tensor.requires_grad:
                tensor.register_hook(lambda gradient: self._look(label, gradient))  # type: ignore[no-untyped-call]
        return label

    def _look(self, label: int, gradient: Tensor) -> None:
        if _are_finite([gradient]):
            self.sound.add(self.made_by.get(label, ""))
        elif self.first is None and self.first_weight is None:
            self.first = (label, not bool(gradient.isnan().any()))

    def place(self) -> BackwardPlace | None:
        """Where it began: in the module that was given a sound gradient and handed on one that is not."""
        if self.first_weight is not None:
            module, _, weight = self.first_weight.rpartition(".")
            return BackwardPlace(f"the {weight} of {module or 'the model'}", module)
        if self.first is None:
            return None
        label, infinite = self.first
        made_by, takers = self.made_by.get(label), self.taken_by.get(label, [])
        # the inner come first; one around the tensor's maker has only passed it on
        blamed = next((name for name in takers if name in self.sound), None)
        if blamed is not None:
            return BackwardPlace(f"the input of {blamed}", blamed, infinite=infinite)
        if made_by is None:
            return BackwardPlace("the model's input", "", infinite=infinite)
        if made_by == "":
            return BackwardPlace("the model's outputs, in the loss", "", infinite=infinite)
        around = made_by.rpartition(".")[0]
        return BackwardPlace(f"the output of {made_by}, in {around or 'the model'}", around, infinite=infinite)


def trace_backward(
    model: nn.Module, forward: Callable[[], Losses], backward: Callable[[Tensor], Any]
) -> BackwardPlace | None:
    """Find where a gradient is first not finite; the loss must be finite. None if all of them are.

    Args:
        model: The detector; gradients add up in it.
        forward: Gives the losses.
        backward: Is given the total and goes backward from it.
    """
    device = next(model.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        place = _watch_backward(model, forward, backward)
    if place is None:
        return None
    operation, line = _detect_anomaly(forward, backward)
    return dataclasses.replace(place, operation=operation, line=line)


def _watch_backward(
    model: nn.Module, forward: Callable[[], Losses], backward: Callable[[Tensor], Any]
) -> BackwardPlace | None:
    """The module, by the gradients of what passes between modules."""
    watch = BackwardWatch()
    handles: list[RemovableHandle] = []
    for name, module in model.named_modules():

        def note(_module: nn.Module, args: Any, kwargs: Any, output: Any, name: str = name) -> None:
            watch.pass_through(name, (args, kwargs), output)

        handles.append(module.register_forward_hook(note, with_kwargs=True))
    try:
        losses = forward()
    finally:
        for handle in handles:
            handle.remove()  # before the backward pass, in which modules run again if activations are recomputed
    handles = [
        weight.register_hook(partial(watch.look_at_weight, name))  # type: ignore[no-untyped-call]
        for name, weight in model.named_parameters()
        if weight.requires_grad
    ]
    try:
        backward(losses.total)
    finally:
        for handle in handles:
            handle.remove()
    return watch.place()


def _detect_anomaly(forward: Callable[[], Losses], backward: Callable[[Tensor], Any]) -> tuple[str, str]:
    """The operation of autograd that gives the first NaN, and the line of code whose backward it is."""
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        try:
            with torch.autograd.detect_anomaly():
                backward(forward().total)
        except RuntimeError as error:
            found = re.search(r"Function '(\w+)' returned nan", str(error))
            if found is None:
                raise
            return found[1], _line_of([str(note.message) for note in notes])
    return "", ""


def bad_terms(losses: Losses) -> list[tuple[str, int | None]]:
    """Loss terms that are not finite and the decoder layer of each, from 0; None for a term without layers."""
    found: list[tuple[str, int | None]] = []
    for name, values in losses.layer_terms.items():
        found += [(name, layer) for layer, value in enumerate(values.tolist()) if value - value != 0]
    others = {name: value for name, value in losses.terms.items() if name not in losses.layer_terms}
    return found + [(name, None) for name, value in others.items() if not bool(value.isfinite())]


def _line_of(notes: Sequence[str]) -> str:
    """The innermost line of a model or loss in the traceback that anomaly detection gives as a warning."""
    lines = [line for note in notes if "Traceback of forward call" in note for line in note.splitlines()]
    found = ""
    for place, code in itertools.pairwise(lines):
        match = re.match(r'\s*File "(.*)", line (\d+), in (\w+)', place)
        if match and not re.search(r"[/\\](torch|lightning_fabric|detrkit[/\\]training)[/\\]", match[1]):
            short = re.split(r"[/\\]", match[1])[-1]
            found = f"{code.strip()} ({short}, line {match[2]})"
    return found


def _floats(values: Any) -> list[Tensor]:
    """Floating tensors in nested tuples, lists and dicts."""
    return [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _are_finite(tensors: Sequence[Tensor]) -> bool:
    return all(bool(tensor.detach().isfinite().all()) for tensor in tensors)


def _largest(tensors: Sequence[Tensor]) -> float:
    """Largest absolute value of those that are finite."""
    found = [0.0]
    for tensor in tensors:
        values = tensor.detach().float()
        if values.numel():
            found.append(float(torch.where(values.isfinite(), values.abs(), 0.0).max()))
    return max(found)


@torch.no_grad()
def _largest_in_float32(module: nn.Module, entered: Any) -> float | None:
    """Largest absolute value that a module would give in float32; None if there is an infinite one even then."""
    args, kwargs = pytree.tree_map(
        lambda leaf: leaf.detach().float() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf,
        entered,
    )
    device = next((leaf.device for leaf in _floats(entered)), torch.device("cpu"))
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.autocast(device.type, enabled=False):
        outputs = _floats(module.forward(*args, **kwargs))
    return _largest(outputs) if _are_finite(outputs) else None
