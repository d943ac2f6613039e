"""Exported models without torch: ``detrkit.runtime.load(BUNDLE).predict(images)``."""

from detrkit.runtimes.predictor import Predictor, load

__all__ = ["Predictor", "load"]
