"""detrkit: from a folder of images to a DETR detector in production."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detrkit.adapters.thresholds import choose_thresholds
    from detrkit.api import evaluate, export, load, predict, preflight, replay, resume, train
    from detrkit.comparison.verbs import compare
    from detrkit.config import Config
    from detrkit.errors import DetrkitError
    from detrkit.inference.predictor import Detector
    from detrkit.profiling.benchmark import benchmark
    from detrkit.profiling.verbs import profile
    from detrkit.tuning.verbs import lr_range, tune
    from detrkit.types import ClassMap

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
    "ClassMap": "detrkit.types",
    "Config": "detrkit.config",
    "Detector": "detrkit.inference.predictor",
    "DetrkitError": "detrkit.errors",
    "choose_thresholds": "detrkit.adapters.thresholds",
    "compare": "detrkit.comparison.verbs",
    "benchmark": "detrkit.profiling.benchmark",
    "evaluate": "detrkit.api",
    "export": "detrkit.api",
    "load": "detrkit.api",
    "lr_range": "detrkit.tuning.verbs",
    "predict": "detrkit.api",
    "preflight": "detrkit.api",
    "profile": "detrkit.profiling.verbs",
    "replay": "detrkit.api",
    "resume": "detrkit.api",
    "train": "detrkit.api",
    "tune": "detrkit.tuning.verbs",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'detrkit' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
