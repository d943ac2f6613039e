"""How pictures of curves look that stand alone, on white, in PNG files."""

from __future__ import annotations

import warnings
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from detrkit.files import atomic_bytes

COLORS = (
    "#1f5fbf",
    "#d9480f",
    "#2b8a3e",
    "#862e9c",
    "#0b7285",
    "#c2255c",
    "#5c940d",
    "#e67700",
    "#495057",
    "#3b5bdb",
)
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "font.size": 10,
    "text.parse_math": False,
}
"""For ``matplotlib.style.context``; names of classes and runs are never read as mathematics."""


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG, whole or not at all."""
    path = Path(path)
    FigureCanvasAgg(figure)
    with warnings.catch_warnings(), atomic_bytes(path, durable=False) as file:
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a box in a name is no reason to fail
        figure.savefig(file, format="png", dpi=130)
    return path
