"""detrkit: from a folder of images to a DETR detector in production."""

from __future__ import annotations

import importlib
import sys
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

from detrkit.arguments import checked
from detrkit.files import read_facts

if TYPE_CHECKING:
    from detrkit.api.benchmark import benchmark
    from detrkit.api.compare import compare
    from detrkit.api.deploy import deploy
    from detrkit.api.drift import drift
    from detrkit.api.evaluate import evaluate, panoptic_quality
    from detrkit.api.export import export
    from detrkit.api.gate import gate
    from detrkit.api.load import load
    from detrkit.api.optimize import optimize
    from detrkit.api.predict import predict, predict_video
    from detrkit.api.preflight import preflight
    from detrkit.api.profile import profile
    from detrkit.api.release import release, rollback
    from detrkit.api.replay import replay
    from detrkit.api.resume import resume
    from detrkit.api.serve import serve
    from detrkit.api.thresholds import choose_thresholds
    from detrkit.api.train import train
    from detrkit.api.tune import lr_range, tune
    from detrkit.api.verify import verify
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
    "deploy",
    "drift",
    "evaluate",
    "export",
    "gate",
    "load",
    "lr_range",
    "optimize",
    "panoptic_quality",
    "predict",
    "predict_video",
    "preflight",
    "profile",
    "release",
    "replay",
    "resume",
    "rollback",
    "serve",
    "train",
    "tune",
    "verify",
]

# Public name -> module, where it is not that of a verb (``train`` is in ``detrkit.api.train``).
# Imported late, so that `import detrkit` and `--help` stay free of torch.
_HOMES = {
    "ClassMap": "detrkit.classes",
    "Config": "detrkit.config",
    "Detector": "detrkit.detectors.detector",
    "DetrkitError": "detrkit.errors",
    "choose_thresholds": "detrkit.api.thresholds",
    "lr_range": "detrkit.api.tune",
    "panoptic_quality": "detrkit.api.evaluate",
    "predict_video": "detrkit.api.predict",
    "rollback": "detrkit.api.release",
}


# Documented modules of 0.1's first builds -> where their content is now; to go with the next release.
_MOVED = read_facts(__file__, "moved.toml")


class _Moved:
    """The first finder of modules: name where one has moved to, though its empty folder may lie there still."""

    @staticmethod
    def find_spec(name: str, _path: object = None, _target: object = None) -> None:
        if name in _MOVED:
            raise ModuleNotFoundError(f"{name} has moved; import {_MOVED[name]}", name=name)


sys.meta_path.insert(0, _Moved)


class _Package(ModuleType):
    """The package itself, in which a verb such as ``preflight`` goes before the sub-package of its name.

    Importing ``detrkit.preflight.run`` would otherwise put that sub-package in the place of the function.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'detrkit' has no attribute {name!r}")
    found = getattr(importlib.import_module(_HOMES.get(name, f"detrkit.api.{name}")), name)
    return checked(found) if isinstance(found, FunctionType) else found


def __dir__() -> list[str]:
    return sorted(__all__)
