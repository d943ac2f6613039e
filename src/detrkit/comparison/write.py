"""The files of a comparison: for people, for programs, for spreadsheets, for a pull request."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from detrkit.comparison.page import comparison_sections, detector_row
from detrkit.comparison.result import MEASURES, Comparison, Contender
from detrkit.data.split import Split
from detrkit.files import atomic_file
from detrkit.visual.page import write_page
from detrkit.visual.table import Value, write_csv
from detrkit.visual.text import markdown_name, markdown_text

FILES = ("compare.html", "compare.json", "compare.md", "compare.csv", "classes.csv", "images.csv")

_MOST_CLASSES = 5


def write_comparison(comparison: Comparison, folder: Path, split: Split) -> None:
    """Write :data:`FILES`."""
    with atomic_file(folder / "compare.json") as file:
        json.dump(comparison.to_dict(), file, indent=1, allow_nan=False)
        file.write("\n")
    with atomic_file(folder / "compare.md") as file:
        file.write(markdown(comparison))
    head = ["detector", "kind", *MEASURES, "median_ms", "p95_ms", "parameters_m", "gflops", "memory_mb"]
    write_csv(folder / "compare.csv", head, (detector_row(contender) for contender in comparison.contenders))
    _write_classes(comparison, folder / "classes.csv")
    _write_images(comparison, folder / "images.csv", split)
    subtitle = f"{comparison.data}: {comparison.images:,} images, {len(comparison.class_map)} classes"
    write_page(
        folder / "compare.html", "Comparison of detectors", subtitle, comparison_sections(comparison, split)
    )


def markdown(comparison: Comparison) -> str:
    """A summary for a pull request; names mean nothing to Markdown in it."""
    most = comparison.contenders[0].metrics.max_detections
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
        *(f"- {duel.verdict(written=markdown_name)}" for duel in comparison.duels),
        *(f"- Note: {markdown_text(note)}" for note in comparison.notes),
        "",
        f"| {' | '.join(head)} |",
        f"| --- {'| ---: ' * (len(head) - 1)}|",
        *(_markdown_row(contender) for contender in comparison.contenders),
    ]
    for duel in comparison.duels:
        certain = [entry for entry in duel.classes if entry.beyond_chance and entry.difference is not None]
        gains = [entry for entry in certain if entry.difference and entry.difference.low > 0][:_MOST_CLASSES]
        losses = [entry for entry in certain if entry.difference and entry.difference.high < 0][::-1]
        for title, entries in (("gains", gains), ("losses", losses[:_MOST_CLASSES])):
            if entries:
                listed = ", ".join(
                    f"{markdown_name(entry.name)} {100 * entry.difference.value:+.1f}"
                    for entry in entries
                    if entry.difference
                )
                names = f"{markdown_name(duel.challenger.name)} against {markdown_name(duel.reference.name)}"
                lines += ["", f"Greatest {title} in AP, {names}: {listed}"]
    return "\n".join(lines) + "\n"


def _markdown_row(contender: Contender) -> str:
    name, _, *numbers = detector_row(contender)
    cells = ["-" if not isinstance(value, int | float) else f"{value:.1f}" for value in numbers[:-1]]
    return f"| {markdown_name(str(name))} | {' | '.join(cells)} |"


def _write_classes(comparison: Comparison, path: Path) -> None:
    def rows() -> Iterator[list[Value]]:
        for duel in comparison.duels:
            for entry in duel.classes:
                difference = entry.difference
                ends: list[Value] = [None, None]
                if difference is not None:
                    ends = [difference.low, difference.high]
                pair: list[Value] = [duel.challenger.name, duel.reference.name]
                yield [*pair, entry.name, entry.objects, entry.second, entry.first, entry.value, *ends]

    head = ["detector", "reference", "class", "objects", "AP", "reference_AP", "difference", "low", "high"]
    write_csv(path, head, rows())


def _write_images(comparison: Comparison, path: Path, split: Split) -> None:
    names = {int(image_id): row for row, image_id in enumerate(split.index.image_ids)}

    def rows() -> Iterator[list[Value]]:
        for duel in comparison.duels:
            images, truth = duel.images, duel.reference.matches.truth
            order = (-images.disagreement).argsort(kind="stable")
            for place in order.tolist():
                image_id = int(truth.image_ids[images.rows[place]])
                yield [
                    duel.challenger.name,
                    duel.reference.name,
                    image_id,
                    split.index.file_name(names[image_id]),
                    int(images.objects[place]),
                    *(
                        round(float(column[place]), 4)
                        for column in (
                            images.disagreement,
                            images.gain,
                            images.second.missed,
                            images.second.false,
                            images.first.missed,
                            images.first.false,
                        )
                    ),
                ]

    head = ["detector", "reference", "image_id", "file_name", "objects", "disagreement", "fewer_mistakes"]
    head += ["missed", "false", "reference_missed", "reference_false"]
    write_csv(path, head, rows())
