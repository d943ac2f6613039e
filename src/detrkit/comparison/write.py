"""The files of a comparison: for people, for programs, for spreadsheets, for a pull request."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from detrkit.comparison.page import comparison_sections, detector_row
from detrkit.comparison.result import MEASURES, Comparison, ModelResult
from detrkit.data.split import Split
from detrkit.files import atomic_file
from detrkit.visual.page import write_page
from detrkit.visual.table import Value, write_csv
from detrkit.visual.text import markdown_name, markdown_text

FILES = ("compare.html", "compare.json", "compare.md", "compare.csv", "classes.csv", "images.csv")

_MOST_CLASSES = 5
_CLASS_HEAD = ("detector", "reference", "class", "objects", "AP", "reference_AP", "difference", "low", "high")
_IMAGE_HEAD = (
    *("detector", "reference", "image_id", "file_name", "objects", "disagreement", "fewer_mistakes"),
    *("missed", "false", "reference_missed", "reference_false"),
)


def write_comparison(comparison: Comparison, folder: Path, split: Split) -> None:
    """Write :data:`FILES`."""
    with atomic_file(folder / "compare.json") as file:
        json.dump(comparison.to_dict(), file, indent=1, allow_nan=False)
        file.write("\n")
    with atomic_file(folder / "compare.md") as file:
        file.write(markdown(comparison))
    head = ["detector", "kind", *MEASURES, "median_ms", "p95_ms", "parameters_m", "gflops", "memory_mb"]
    write_csv(folder / "compare.csv", head, (detector_row(model) for model in comparison.models))
    write_csv(folder / "classes.csv", _CLASS_HEAD, _class_rows(comparison))
    write_csv(folder / "images.csv", _IMAGE_HEAD, _image_rows(comparison, split))
    subtitle = f"{comparison.data}: {comparison.images:,} images, {len(comparison.class_map)} classes"
    write_page(
        folder / "compare.html", "Comparison of detectors", subtitle, comparison_sections(comparison, split)
    )


def markdown(comparison: Comparison) -> str:
    """A summary for a pull request; names mean nothing to Markdown in it."""
    most = comparison.models[0].metrics.max_detections
    head = [
        "detector",
        "AP",
        "AP50",
        "AP75",
        "APs",
        "APm",
        "APl",
        f"AR{most}",
        "median ms",
        "p95 ms",
        "M",
        "GFLOPs",
    ]
    lines = [
        "## Comparison of detectors",
        "",
        f"{markdown_name(comparison.data)}: {comparison.images:,} images, {comparison.objects:,} objects, "
        f"{len(comparison.class_map)} classes.",
        "",
        *(f"- {pair.verdict(written=markdown_name)}" for pair in comparison.pairs),
        *(f"- Note: {markdown_text(note)}" for note in comparison.notes),
        "",
        f"| {' | '.join(head)} |",
        f"| --- {'| ---: ' * (len(head) - 1)}|",
        *(_markdown_row(model) for model in comparison.models),
    ]
    for pair in comparison.pairs:
        certain = [entry for entry in pair.classes if entry.beyond_chance and entry.difference is not None]
        gains = [entry for entry in certain if entry.difference and entry.difference.low > 0][:_MOST_CLASSES]
        losses = [entry for entry in certain if entry.difference and entry.difference.high < 0][::-1]
        for title, entries in (("gains", gains), ("losses", losses[:_MOST_CLASSES])):
            if entries:
                listed = ", ".join(
                    f"{markdown_name(entry.name)} {100 * entry.difference.value:+.1f}"
                    for entry in entries
                    if entry.difference
                )
                names = f"{markdown_name(pair.model.name)} against {markdown_name(pair.reference.name)}"
                lines += ["", f"Greatest {title} in AP, {names}: {listed}"]
    return "\n".join(lines) + "\n"


def _markdown_row(model: ModelResult) -> str:
    name, _, *numbers = detector_row(model)
    cells = ["-" if not isinstance(value, int | float) else f"{value:.1f}" for value in numbers[:-1]]
    return f"| {markdown_name(str(name))} | {' | '.join(cells)} |"


def _class_rows(comparison: Comparison) -> Iterator[list[Value]]:
    for pair in comparison.pairs:
        for entry in pair.classes:
            ends = (None, None) if entry.difference is None else (entry.difference.low, entry.difference.high)
            numbers = (entry.objects, entry.second, entry.first, entry.value, *ends)
            yield [pair.model.name, pair.reference.name, entry.name, *numbers]


def _image_rows(comparison: Comparison, split: Split) -> Iterator[list[Value]]:
    """Images of each pair, those with most disagreement first."""
    rows = {int(image_id): row for row, image_id in enumerate(split.index.image_ids)}
    for pair in comparison.pairs:
        images = pair.images
        ids = pair.reference.matches.truth.image_ids[images.rows].tolist()
        first, second = images.first, images.second
        columns = (images.disagreement, images.gain, second.missed, second.false, first.missed, first.false)
        for place in (-images.disagreement).argsort(kind="stable").tolist():
            name = split.index.file_name(rows[ids[place]])
            numbers = [round(float(column[place]), 4) for column in columns]
            yield [pair.model.name, pair.reference.name, ids[place], name, int(images.objects[place]), *numbers]
