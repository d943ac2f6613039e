"""Arguments of a wrong type are named before any work, whatever the public function."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import detrkit
from detrkit.arguments import checked
from detrkit.detectors.detector import Detector
from detrkit.errors import DetrkitError, UsageError
from detrkit.hardware import resolve_device

WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("load", {"source": 5}, "source is 5"),
    ("load", {"source": "x", "device": 0}, "device is 0"),
    ("load", {"source": "x", "precision": 16}, "precision is 16"),
    ("load", {"source": "x", "padding": "none"}, "padding is 'none'"),
    ("predict", {"model": "x", "images": "y", "threshold": "0.5"}, "threshold is '0.5'"),
    ("predict", {"model": "x", "images": "y", "threshold": True}, "threshold is True"),
    ("predict", {"model": "x", "images": "y", "batch_size": 2.0}, "batch_size is 2.0"),
    ("predict", {"model": "x", "images": "y", "batch_size": "2"}, "batch_size is '2'"),
    ("predict", {"model": "x", "images": "y", "out": 3}, "out is 3"),
    ("evaluate", {"model": "x", "data": ["y"]}, "data is"),
    ("evaluate", {"model": "x", "resamples": 10.0}, "resamples is 10.0"),
    ("evaluate", {"model": "x", "split": 3}, "split is 3"),
    ("train", {"data": 5}, "data is 5"),
    ("train", {"epochs": 1.5}, "epochs is 1.5"),
    ("train", {"epochs": "3"}, "epochs is '3'"),
    ("train", {"batch_size": "all"}, "batch_size is 'all'"),
    ("train", {"lr": "1e-4"}, "lr is '1e-4'"),
    ("train", {"changes": ["train.lr=1"]}, "changes is"),
    ("train", {"say": "loud"}, "say is 'loud'"),
    ("resume", {"run": None}, "run is None"),
    ("compare", {"models": ["a", 3]}, "models is"),
    ("benchmark", {"models": "a", "batch_sizes": [1.5]}, "batch_sizes is"),
    ("benchmark", {"models": "a", "sizes": 640}, "sizes is 640"),
    ("choose_thresholds", {"model": "a", "precision": "0.9"}, "precision is '0.9'"),
    ("export", {"model": "a", "out": "b", "layout": "onnx"}, "layout is 'onnx'"),
    ("profile", {"steps": None}, "steps is None"),
    ("preflight", {"seconds": "60"}, "seconds is '60'"),
    ("tune", {"trials": 2.0}, "trials is 2.0"),
    ("lr_range", {"steps": "20"}, "steps is '20'"),
]


@pytest.mark.parametrize(("name", "arguments", "message"), WRONG)
def test_a_wrong_type_is_named(name: str, arguments: dict[str, Any], message: str):
    with pytest.raises(UsageError, match=f"{message}.*expected .* in {name}"):
        getattr(detrkit, name)(**arguments)


def test_every_argument_of_every_public_function_is_refused_what_it_cannot_be():
    """Of no type that any function takes; what is left unchecked is named here."""
    left = set()
    for name in detrkit.__all__:
        function = getattr(detrkit, name)
        if inspect.isfunction(function):
            for parameter, kind in inspect.signature(function).parameters.items():
                if kind.kind is kind.VAR_KEYWORD:  # names of a class's fields, refused by name
                    continue
                others = [p.name for p in inspect.signature(function).parameters.values() if p.default is p.empty]
                try:
                    function(**{**dict.fromkeys(others, "x"), parameter: 1j})
                except DetrkitError as error:
                    if f"{parameter} is 1j" not in str(error):
                        left.add((name, parameter))
    # preset: its layout is named first; progress: the bundle is
    assert left <= {("predict", "images"), ("export", "preset"), ("verify", "progress")}


def test_right_types_pass_and_the_function_keeps_its_name_and_signature():
    @checked
    def f(number: int, share: float = 0.5, path: str | Path = "", *, flag: bool = False) -> tuple[Any, ...]:
        """Doc."""
        return number, share, path, flag

    for good in ((1, 1, "a"), (np.int64(1), np.float32(0.5), Path("a")), (np.int8(3), np.float64(1), "b")):
        assert f(*good) == (*good, False)
    assert f.__doc__ == "Doc."
    assert list(inspect.signature(f).parameters) == ["number", "share", "path", "flag"]
    assert detrkit.predict is detrkit.predict
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        f(1, colour=2)  # type: ignore[call-arg]


def test_a_detector_names_a_wrong_type_too():
    detector = object.__new__(Detector)
    with pytest.raises(UsageError, match=r"threshold is '0\.5'"):
        detector.predict(np.zeros((8, 8, 3), np.uint8), threshold="0.5")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"batch_size is 2\.0"):
        detector.stream([], batch_size=2.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("device", ["mps", "cuda", "cuda:63", "xpu", "meta", "gpu7", "", None, [1]])
def test_a_device_that_is_not_there_is_one_clear_line(device: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UsageError, match="device") as caught:
        resolve_device(device)
    assert "\n" not in str(caught.value)
    assert "cpu" in str(caught.value)
