"""Masks and panoptic pictures in the report: tables, and a section of the page."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from detrkit.evaluation.coco import UNDEFINED, known
from detrkit.evaluation.panoptic import LOSSES, PanopticMetrics
from detrkit.evaluation.report.tables import metrics_table
from detrkit.evaluation.report.terms import LOSS_NAMES
from detrkit.visual.page import Block, Gallery, Section, Text
from detrkit.visual.table import Column, Table, Value, columns

if TYPE_CHECKING:
    from detrkit.evaluation.analysis import Evaluation, Panoptic
    from detrkit.evaluation.bootstrap import Interval


def panoptic_table(metrics: PanopticMetrics, interval: Interval | None = None) -> Table:
    """Return PQ, SQ and RQ of all classes, things and stuff, in percent."""
    values = metrics.values
    rows: list[list[Value]] = []
    for name, suffix in (("all", ""), ("things", "_th"), ("stuff", "_st")):
        counted = [
            entry
            for entry in metrics.per_class
            if entry.PQ != UNDEFINED and (not suffix or entry.is_thing == (suffix == "_th"))
        ]
        counts = [
            len(counted),
            *(sum(getattr(entry, kind) for entry in counted) for kind in ("found", "missed", "false")),
        ]
        rows.append([name, *(known(values[key + suffix]) for key in ("PQ", "SQ", "RQ")), *counts])
    notes = []
    if interval is not None:
        low, high = 100 * interval.low, 100 * interval.high
        notes.append(f"PQ of all: 95 % interval {low:.1f} to {high:.1f}, by resampling the images")
    heads = [
        Column("classes"),
        *columns("points", "PQ", "SQ", "RQ"),
        *columns("count", "number", "found", "missed", "false"),
    ]
    return Table(heads, rows, "Panoptic quality, in percent; segments", notes)


def losses_table(found: Panoptic) -> Table:
    """Return what each kind of error takes from PQ, dearest first."""
    rows: list[list[Value]] = [
        [kind, found.losses[kind], *found.counts[kind], LOSS_NAMES[kind]]
        for kind in sorted(LOSSES, key=lambda kind: -found.losses[kind])
    ]
    heads = [
        Column("lost to"),
        Column("PQ", "points", bar=True),
        *columns("count", "annotated", "found"),
        Column("what it is"),
    ]
    return Table(heads, rows, "What PQ lacks to 100, in points: the kinds add up to it")


def mask_tables(evaluation: Evaluation) -> list[Table]:
    """Return the tables of masks and of panoptic pictures, as far as there are any."""
    tables = []
    if evaluation.masks is not None:
        found = metrics_table(evaluation.masks, evaluation.mask_intervals)
        tables.append(dataclasses.replace(found, title="Masks"))
    if evaluation.panoptic is not None:
        tables.append(panoptic_table(evaluation.panoptic.metrics, evaluation.panoptic.interval))
        tables += [losses_table(evaluation.panoptic)] if evaluation.panoptic.losses else []
    return tables


def mask_sections(evaluation: Evaluation) -> list[Section]:
    """Return the section of the page on masks and on panoptic pictures, if there are any."""
    blocks: list[Block] = [*mask_tables(evaluation)]
    overlaps, panoptic = evaluation.mask_overlaps, evaluation.panoptic
    if overlaps is not None and overlaps.mean != UNDEFINED and evaluation.overlaps is not None:
        text = (
            f"Masks that found their object overlap it by {overlaps.mean:.3f} on average, boxes by "
            f"{evaluation.overlaps.mean:.3f}. Small, medium and large are by the area of the mask, as where "
            "results have no boxes. Errors, thresholds and failures of the other sections are of boxes."
        )
        blocks.insert(1, Text(text))
    if panoptic is not None and panoptic.pictures:
        text = (
            "The images of the lowest PQ, beside what is annotated and what was found. Colours are classes; "
            "edged in red: annotated segments that were not found, and found ones that are wrong."
        )
        blocks += [Text(text), Gallery(panoptic.pictures, wide=True)]
    return [Section("Masks", blocks)] if blocks else []
