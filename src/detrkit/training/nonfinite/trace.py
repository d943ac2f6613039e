"""Search for the place in a model where values stop being finite: forward through modules, backward in gradients.

Slow, for a step that is known to be bad: every value that enters or leaves a module is looked at.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from detrkit.losses.criterion import Losses


@dataclasses.dataclass(frozen=True)
class NonFiniteModule:
    """A module in which values stopped being finite.

    Args:
        module: name, such as ``transformer.encoder.layers.0.linear1``; empty for the model itself.
        kind: class of the module.
        weights: names of its own weights that are not finite.
        entered: largest absolute value that went in.
        bad: number of values of its output that are not finite.
        values: number of values of its output.
        largest: largest absolute value of the output among those that are finite.
        dtype: dtype of the output.
        overflows: True if float16 could not hold the output: infinite, while the input is finite.
    """

    module: str
    kind: str
    weights: tuple[str, ...]
    entered: float
    bad: int
    values: int
    largest: float
    dtype: str
    overflows: bool

    def __str__(self) -> str:
        what = (
            f"{self.module or 'the model'} ({self.kind}) is the first module whose output is not finite while "
            f"its input is: {self.bad:,} of {self.values:,} values, {self.dtype}; largest value in "
            f"{self.entered:.4g}, largest finite value out {self.largest:.4g}"
        )
        if self.weights:
            return f"{what}; its own {', '.join(self.weights)} is not finite"
        return f"{what}; float16 overflows, it holds 65,504" if self.overflows else what


@dataclasses.dataclass(frozen=True)
class NonFiniteGradient:
    """Place at which a gradient was first not finite, on the way back from the loss.

    Args:
        where: the module, and what of it, in words.
        module: name of the module; empty for the model itself and for the loss.
        operation: operation of autograd that gave the first NaN, such as ``SqrtBackward0``; empty if not known.
    """

    where: str
    module: str
    operation: str = ""

    def __str__(self) -> str:
        by = f", by {self.operation}" if self.operation else ""
        return f"the gradient is first not finite at {self.where}{by}"


@dataclasses.dataclass
class ForwardWatch:
    """Result of :func:`watch_forward`.

    Args:
        found: the first module whose output was not finite while its input was.
        input_rows: rows of the model's first input that were not finite.
    """

    found: NonFiniteModule | None = None
    input_rows: list[int] = dataclasses.field(default_factory=list)


@contextlib.contextmanager
def watch_forward(model: nn.Module) -> Iterator[ForwardWatch]:
    """Look at what enters and leaves every module of a model inside."""
    watch = ForwardWatch()

    def look_at_images(_module: nn.Module, args: Any) -> None:
        images = args[0] if args else None
        if isinstance(images, Tensor) and images.is_floating_point() and not _are_finite([images]):
            watch.input_rows = (~images.flatten(1).isfinite().all(1)).nonzero().flatten().tolist()

    def look(name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        outputs, inputs = _floats(output), _floats((args, kwargs))
        if watch.found is None and not _are_finite(outputs) and _are_finite(inputs):
            weights = module.named_parameters(recurse=False)
            watch.found = NonFiniteModule(
                module=name,
                kind=type(module).__name__,
                weights=tuple(own for own, weight in weights if not _are_finite([weight])),
                entered=_largest(inputs),
                bad=sum(int((~tensor.isfinite()).sum()) for tensor in outputs),
                values=sum(tensor.numel() for tensor in outputs),
                largest=_largest(outputs),
                dtype=str(outputs[0].dtype).removeprefix("torch."),
                overflows=any(tensor.dtype == torch.float16 and bool(tensor.isinf().any()) for tensor in outputs),
            )

    first = model.register_forward_pre_hook(look_at_images)
    with _hooks(model, look):
        try:
            yield watch
        finally:
            first.remove()


def trace_backward(
    model: nn.Module, forward: Callable[[], Losses], backward: Callable[[Tensor], Any]
) -> NonFiniteGradient | None:
    """Find where a gradient is first not finite; the loss must be finite. None if all of them are.

    Args:
        model: the detector; gradients add up in it.
        forward: function that gives the losses.
        backward: function that is given the total and goes backward from it.
    """
    device = next(model.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        found = _watch_backward(model, forward, backward)
    if found is None:
        return None
    return dataclasses.replace(found, operation=_detect_anomaly(forward, backward))


def _watch_backward(
    model: nn.Module, forward: Callable[[], Losses], backward: Callable[[Tensor], Any]
) -> NonFiniteGradient | None:
    """Find the module that was given a finite gradient and handed on one that is not."""
    bad_outputs: list[str] = []
    blamed: list[str] = []
    handles: list[Any] = []

    def on_output(name: str, gradient: Tensor) -> None:
        if not _are_finite([gradient]):
            bad_outputs.append(name)

    def on_input(name: str, gradient: Tensor) -> None:
        # what is bad so far must lie inside the module: otherwise it began elsewhere
        inside = f"{name}." if name else ""
        began_here = all(bad != name and bad.startswith(inside) for bad in bad_outputs)
        if not blamed and began_here and not _are_finite([gradient]):
            blamed.append(name)

    def attach(name: str, _module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        # hooks of one tensor run in this order, those of an inner module before those of the one around it
        for tensors, look in ((_floats(output), on_output), (_floats((args, kwargs)), on_input)):
            for tensor in tensors:
                if tensor.requires_grad:
                    handles.append(tensor.register_hook(partial(look, name)))  # type: ignore[no-untyped-call]

    # attached in the forward pass only: modules run again in the backward pass if activations are recomputed
    with _hooks(model, attach):
        losses = forward()
    try:
        backward(losses.total)
    finally:
        for handle in handles:
            handle.remove()
    if blamed:
        return NonFiniteGradient(f"the input of {blamed[0] or 'the model'}", blamed[0])
    if "" in bad_outputs:
        return NonFiniteGradient("the model's outputs, in the loss", "")
    if bad_outputs:
        around = bad_outputs[0].rpartition(".")[0]
        return NonFiniteGradient(f"the output of {bad_outputs[0]}, in {around or 'the model'}", around)
    for name, weight in model.named_parameters():
        if weight.grad is not None and not _are_finite([weight.grad]):
            module, _, own = name.rpartition(".")
            return NonFiniteGradient(f"the {own} of {module or 'the model'}", module)
    return None


def _detect_anomaly(forward: Callable[[], Losses], backward: Callable[[Tensor], Any]) -> str:
    """Return the operation of autograd that gives the first NaN; empty if none does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anomaly detection warns that it is slow, and gives its traceback
        try:
            with torch.autograd.detect_anomaly():
                backward(forward().total)
        except RuntimeError as error:
            found = re.search(r"Function '(\w+)' returned nan", str(error))
            if found is None:
                raise
            return found[1]
    return ""


def bad_terms(losses: Losses) -> list[tuple[str, int | None]]:
    """Return loss terms that are not finite and the decoder layer of each, from 0; None without layers."""
    found: list[tuple[str, int | None]] = []
    for name, values in losses.layer_terms.items():
        found += [(name, layer) for layer, value in enumerate(values.tolist()) if not math.isfinite(value)]
    others = {name: value for name, value in losses.terms.items() if name not in losses.layer_terms}
    return found + [(name, None) for name, value in others.items() if not bool(value.isfinite())]


@contextlib.contextmanager
def _hooks(model: nn.Module, hook: Callable[[str, nn.Module, Any, Any, Any], None]) -> Iterator[None]:
    """Call a hook after the forward of every module inside: name, module, args, kwargs, output."""
    modules = model.named_modules()
    handles = [module.register_forward_hook(partial(hook, name), with_kwargs=True) for name, module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _floats(values: Any) -> list[Tensor]:
    """Return the floating tensors in nested tuples, lists and dicts."""
    return [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _are_finite(tensors: Sequence[Tensor]) -> bool:
    return all(bool(tensor.detach().isfinite().all()) for tensor in tensors)


def _largest(tensors: Sequence[Tensor]) -> float:
    """Return the largest absolute value of those that are finite."""
    finite = [tensor.detach()[tensor.detach().isfinite()].abs().float() for tensor in tensors]
    return max((float(values.max()) for values in finite if values.numel()), default=0.0)
