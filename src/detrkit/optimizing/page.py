"""Page and picture of the frontier."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from detrkit.comparison.page import latency_chart
from detrkit.optimizing.bench import Point
from detrkit.optimizing.result import Optimization
from detrkit.visual.chart import Chart, Line, Series
from detrkit.visual.interactive_charts import Charts
from detrkit.visual.page import Block, Card, Cards, Section, Text, write_page

HOW = (
    "Variants of one trained model: its first decoder layers, its most used queries, smaller images, other "
    "runtimes; nothing is trained again. Each was timed in turns with the whole model, from pixels in memory to "
    "detections; its time is the share that it took of the whole model's, times the whole model's median."
)
CAUTION = (
    "The point was chosen on these images, so its AP is a little flattered; measure the bundle once on images "
    "that had no say: detrkit eval BUNDLE --data DATA --split test."
)


def write_frontier(folder: Path, found: Optimization) -> None:
    """Write ``optimize.html`` and ``optimize.png``."""
    from detrkit.visual.picture import draw_charts

    chart = frontier_chart(found)
    draw_charts([chart], folder / "optimize.png", title=found.model)
    knee = found.knee
    cards = [Card("whole model", f"{found.milliseconds(found.whole):.1f} ms", f"AP {100 * found.whole.ap:.1f}")]
    if knee is not None:
        cards.append(Card("recommended", f"{found.milliseconds(knee):.1f} ms", f"AP {100 * knee.ap:.1f}"))
        cards.append(Card("times as fast", f"{1 / knee.share:.2f}", knee.name))
    blocks: list[Block] = [Cards(cards), *(Text(f"{line}.") for line in (*found.verdict(), *found.refused))]
    sections = [
        Section("Result", [*blocks, Text(CAUTION)]),
        Section("AP against latency", [Charts([chart]), Text(HOW)]),
        Section("Points", [found.table(), *(Text(f"{line}.") for line in found.throughput_lines())]),
    ]
    subtitle = f"{found.data}, {found.split}: {found.images:,} images; {found.machine}"
    write_page(folder / "optimize.html", f"{found.model}: accuracy against latency", subtitle, sections)


def frontier_chart(found: Optimization) -> Chart:
    """Return a chart of all points, the frontier as a line."""
    timed = [point for point in found.points if np.isfinite(point.share)]
    labelled = [found.whole.name, *([found.knee.name] if found.knee is not None else [])]
    chart = latency_chart(_series(found, timed), [point.name for point in timed])
    return dataclasses.replace(chart, lines=[Line("frontier", 0, _series(found, found.front))], labelled=labelled)


def _series(found: Optimization, points: list[Point]) -> Series:
    times = np.array([found.milliseconds(point) for point in points])
    return Series(times, np.array([100 * point.ap for point in points]))
