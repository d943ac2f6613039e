"""Types of the arguments of public functions, checked by their annotations before any work."""

from __future__ import annotations

import functools
import inspect
import numbers
import os
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

from detrkit.errors import UsageError

P = ParamSpec("P")
T = TypeVar("T")
_ABSTRACT: Mapping[Any, Any] = {int: numbers.Integral, float: numbers.Real}  # NumPy's numbers are such too


@functools.cache
def checked(function: Callable[P, T]) -> Callable[P, T]:
    """Return a function that refuses arguments of a wrong type, which would fail deep inside.

    Annotations that only a type checker can read, and kinds not known here, are not checked.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            kind = _resolved(signature.parameters[name].annotation, function)
            if not _fits(value, kind):
                plain = re.sub(r"(typing|collections\.abc)\.", "", str(kind))
                expected = kind.__name__ if type(kind) is type else plain
                got = f"{name} is {repr(value)[:80]} ({type(value).__name__})"
                raise UsageError(f"{got}, expected {expected} in {function.__name__}()")
        return function(*args, **kwargs)

    return call


def _resolved(annotation: Any, function: Callable[..., Any]) -> Any:
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, function.__globals__)
    except NameError:
        return Any


def _fits(value: object, kind: Any) -> bool:
    """Return False where a value is certainly not of a kind."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is typing.Literal:
        return any(value is part or (type(value) is type(part) and value == part) for part in parts)
    if origin in (Sequence, list):
        if isinstance(value, str | os.PathLike) and _fits(value, parts[0]):
            return True  # one in place of several: the function knows better what to say
        return isinstance(value, Sequence) and all(_fits(entry, parts[0]) for entry in value)
    if kind is None:
        return value is None
    kind = origin or kind
    if kind in _ABSTRACT:
        return isinstance(value, _ABSTRACT[kind]) and not isinstance(value, bool)
    if not isinstance(kind, type) or kind in (Any, inspect.Parameter.empty):
        return True
    if getattr(kind, "_is_protocol", False):
        return all(hasattr(value, name) for name in kind.__annotations__)
    return isinstance(value, kind)
