"""The answers of a preflight as a page: verdict, judgements, loss curves, what the model will see."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from detrkit.config import Config
from detrkit.preflight.overfit_test import Rehearsal, Trial
from detrkit.preflight.verdict import Verdict
from detrkit.visual.page import Block, Column, Gallery, Picture, Plots, Section, Table, Text, write_page
from detrkit.visual.plots import Plot, svg_plot


def write_preflight_page(
    path: Path, config: Config, verdict: Verdict, pictures: Sequence[np.ndarray], rehearsal: Rehearsal | None
) -> Path:
    """Write the page.

    Args:
        path: Of the HTML file.
        config: What was to be trained.
        verdict: What was found.
        pictures: The first training batch with its objects drawn, uint8 ``[H, W, 3]`` each.
        rehearsal: What came of training on a handful of images, if it came to that.
    """
    columns = [Column("outcome"), Column("question or fault"), Column("found"), Column("what to do")]
    rows = [[item.outcome.value, item.name, item.found, item.advice] for item in verdict.judgements]
    blocks: list[Block] = [
        Text(verdict.summary(), "plain" if verdict.ready else "warning"),
        Table(columns, rows, "What was asked and found"),
    ]
    sections = [Section("Verdict", blocks)]
    if pictures:
        drawn = [
            Picture.of(picture, f"training image {number}") for number, picture in enumerate(pictures, start=1)
        ]
        note = Text(
            "The first batch of the first epoch, after augmentation, with the boxes and names to be learnt."
        )
        sections.append(Section("What the model will see", [note, Gallery(drawn)]))
    if rehearsal is not None:
        sections.append(Section("Learning a handful of images", [Plots([_curves(rehearsal)])]))
    return write_page(path, "Preflight", f"{config.model.preset} on {config.data.root}", sections)


def _curves(rehearsal: Rehearsal) -> Plot:
    trials: list[Trial] = [rehearsal.main, *rehearsal.slower]

    def draw(axes: Axes) -> None:
        for trial, style in zip(trials, ("-", "--", ":"), strict=True):
            axes.plot(np.arange(1, len(trial.losses) + 1), trial.losses, style, label=f"train.lr={trial.lr:g}")
        axes.set_xlabel(f"steps on {rehearsal.images} images of {rehearsal.size_hw[0]} x {rehearsal.size_hw[1]}")
        axes.set_ylabel("loss")
        axes.legend()

    return svg_plot("Loss of a handful of images, by learning rate", draw, height=3.2)
