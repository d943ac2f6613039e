"""The pictures of a run: apart from the loop, so that training itself imports nothing that draws."""

from __future__ import annotations

from detrkit.training.run import Drawings
from detrkit.visual.curves import plot_curves
from detrkit.visual.drawing import draw


def run_drawings() -> Drawings:
    """Return the usual drawings: curves and sample detections."""
    return Drawings(plot_curves, draw)
