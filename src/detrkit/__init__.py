"""detrkit: from a folder of images to a DETR detector in production."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detrkit.api.benchmark import benchmark
    from detrkit.api.compare import compare
    from detrkit.api.profile import profile
    from detrkit.api.thresholds import choose_thresholds
    from detrkit.api.tune import lr_range, tune
    from detrkit.api.verbs import evaluate, export, load, predict, preflight, replay, resume, train
    from detrkit.classes import ClassMap
    from detrkit.config import Config
    from detrkit.detectors.detector import Detector
    from detrkit.errors import DetrkitError

__version__ = "0.1.0"

__all__ = [
    "ClassMap",
    "Config",
    "Detector",
    "DetrkitError",
    "__version__",
    "benchmark",
    "choose_thresholds",
    "compare",
    "evaluate",
    "export",
    "load",
    "lr_range",
    "predict",
    "preflight",
    "profile",
    "replay",
    "resume",
    "train",
    "tune",
]

# Public name -> module. Imported on first use, so that `import detrkit` and `--help` stay free of torch.
_HOMES = {
    "ClassMap": "detrkit.classes",
    "Config": "detrkit.config",
    "Detector": "detrkit.detectors.detector",
    "DetrkitError": "detrkit.errors",
    "choose_thresholds": "detrkit.api.thresholds",
    "compare": "detrkit.api.compare",
    "benchmark": "detrkit.api.benchmark",
    "evaluate": "detrkit.api.verbs",
    "export": "detrkit.api.verbs",
    "load": "detrkit.api.verbs",
    "lr_range": "detrkit.api.tune",
    "predict": "detrkit.api.verbs",
    "preflight": "detrkit.api.verbs",
    "profile": "detrkit.api.profile",
    "replay": "detrkit.api.verbs",
    "resume": "detrkit.api.verbs",
    "train": "detrkit.api.verbs",
    "tune": "detrkit.api.tune",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'detrkit' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
