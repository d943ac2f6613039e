"""The files of a comparison: for people, for programs, for spreadsheets, for a pull request."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from detrkit.comparison.page import SPEED_COLUMNS, accuracy_columns, comparison_sections, detector_table
from detrkit.comparison.result import MEASURES, Comparison
from detrkit.data.split import Split
from detrkit.files import write_json, write_text
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
    write_json(folder / "compare.json", comparison.to_dict())
    write_text(folder / "compare.md", markdown(comparison))
    head = ["detector", "kind", *MEASURES, "median_ms", "p95_ms", "parameters_m", "gflops", "memory_mb"]
    write_csv(folder / "compare.csv", head, detector_table(comparison).rows)
    write_csv(folder / "classes.csv", _CLASS_HEAD, _class_rows(comparison))
    write_csv(folder / "images.csv", _IMAGE_HEAD, _image_rows(comparison, split))
    subtitle = f"{comparison.data}: {comparison.images:,} images, {len(comparison.class_map)} classes"
    write_page(
        folder / "compare.html", "Comparison of detectors", subtitle, comparison_sections(comparison, split)
    )


def markdown(comparison: Comparison) -> str:
    """Return a summary for a pull request; names mean nothing to Markdown in it."""
    table = detector_table(comparison).only("detector", *accuracy_columns(comparison), *SPEED_COLUMNS[:-1])
    counts = f"{comparison.images:,} images, {comparison.objects:,} objects, {len(comparison.class_map)} classes"
    lines = [
        *("## Comparison of detectors", "", f"{markdown_name(comparison.data)}: {counts}.", ""),
        *(f"- {pair.verdict(written=markdown_name)}" for pair in comparison.pairs),
        *(f"- Note: {markdown_text(note)}" for note in comparison.notes),
        "",
        table.markdown().rstrip(),
    ]
    for pair in comparison.pairs:
        names = f"{markdown_name(pair.model.name)} against {markdown_name(pair.reference.name)}"
        certain = [(entry.name, entry.value or 0.0) for entry in pair.classes if entry.beyond_chance]
        gains = [(name, value) for name, value in certain if value > 0]
        losses = [(name, value) for name, value in certain[::-1] if value < 0]
        for title, entries in (("gains", gains), ("losses", losses)):
            shown = [f"{markdown_name(name)} {100 * value:+.1f}" for name, value in entries[:_MOST_CLASSES]]
            if shown:
                lines += ["", f"Greatest {title} in AP, {names}: {', '.join(shown)}"]
    return "\n".join(lines) + "\n"


def _class_rows(comparison: Comparison) -> Iterator[list[Value]]:
    for pair in comparison.pairs:
        for entry in pair.classes:
            ends = (None, None) if entry.difference is None else (entry.difference.low, entry.difference.high)
            numbers = (entry.objects, entry.second, entry.first, entry.value, *ends)
            yield [pair.model.name, pair.reference.name, entry.name, *numbers]


def _image_rows(comparison: Comparison, split: Split) -> Iterator[list[Value]]:
    """Return images of each pair, those with most disagreement first."""
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
