"""The answers of a preflight as a page: verdict, results, loss curves, what the model will see."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from detrkit.config import Config
from detrkit.preflight.overfit_test import OverfitTest
from detrkit.preflight.report import PreflightReport
from detrkit.visual.chart import Chart, Series, make_lines
from detrkit.visual.interactive_charts import Charts
from detrkit.visual.page import Gallery, Picture, Section, Text, write_page
from detrkit.visual.table import Table, columns


def write_preflight_page(
    path: Path,
    config: Config,
    report: PreflightReport,
    pictures: Sequence[np.ndarray],
    overfit: OverfitTest | None,
) -> Path:
    """Write the page.

    Args:
        path: Of the HTML file.
        config: What was to be trained.
        report: What was found.
        pictures: The first training batch with its objects drawn, uint8 ``[H, W, 3]`` each.
        overfit: What came of training on a handful of images, if it came to that.
    """
    heads = columns("text", "outcome", "question or fault", "found", "what to do")
    rows = [[item.outcome.value, item.name, item.found, item.advice] for item in report.results]
    summary = Text(report.summary(), "plain" if report.ready else "warning")
    sections = [Section("Verdict", [summary, Table(heads, rows, "What was asked and found")])]
    if pictures:
        drawn = [Picture.of(picture, f"training image {number}") for number, picture in enumerate(pictures, 1)]
        note = "The first batch of the first epoch, after augmentation, with the boxes and names to be learnt."
        sections.append(Section("What the model will see", [Text(note), Gallery(drawn)]))
    if overfit is not None:
        sections.append(Section("Learning a handful of images", [Charts([_curves(overfit)])]))
    return write_page(path, "Preflight", f"{config.model.preset} on {config.data.root}", sections)


def _curves(overfit: OverfitTest) -> Chart:
    lines = {}
    for trial in (overfit.main, *overfit.slower):
        losses = np.array(trial.losses)
        steps = np.flatnonzero(np.isfinite(losses))
        lines[f"train.lr={trial.lr:g}"] = Series(steps + 1.0, losses[steps])
    images, _, height, width = overfit.batch.images.shape
    across = f"steps on {images} images of {height} x {width}"
    return Chart("Loss of a handful of images, by learning rate", across, lines=make_lines(lines), legend=True)
