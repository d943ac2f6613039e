"""Tables: columns and rows laid out once, and written for a terminal, a page, Markdown or a spreadsheet."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from detrkit.files import atomic_file
from detrkit.visual.page import Block
from detrkit.visual.text import encodable, markdown_name, markdown_text, printable, shortened

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable

Value = str | int | float | None
Rows = Sequence[Sequence[Value]]
Kind = Literal["text", "name", "count", "number", "percent", "points"]

_LONGEST_NAME = 60
_LEAST_TEXT = 16
_GAP = 3
"""Characters between two columns of a terminal's table."""
# What spreadsheets take for the beginning of a formula, in its wide forms too, and what hides it from a reader.
_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_LEADING = ("\t", "\r", "\n")


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        name: head of the column.
        kind: how values are written: text; name, which is text of unknown origin such as a class or a file; count,
            a whole number; number with ``digits`` decimals; percent and points, a share of 0 to 1 times 100, with
            and without a percent sign. A string in a column of numbers stands as it is.
        digits: decimals of number, percent and points.
        bar: draw each value as a bar behind it on a page, the greatest filling the cell.
    """

    name: str
    kind: Kind = "text"
    digits: int = 1
    bar: bool = False

    @property
    def is_text(self) -> bool:
        """Tell whether the column is aligned to the left."""
        return self.kind in ("text", "name")

    def written(self, value: Value) -> str:
        """Return a value as the table shows it; "-" for none."""
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return "-"
        if isinstance(value, str) or self.is_text:
            return str(value)
        if self.kind == "count":
            return f"{value:,.0f}"
        factor = 1 if self.kind == "number" else 100
        return f"{factor * value:,.{self.digits}f}{' %' if self.kind == 'percent' else ''}"


def columns(kind: Kind, *names: str, digits: int = 1, bar: bool = False) -> list[Column]:
    """Return several columns of one kind."""
    return [Column(name, kind, digits, bar) for name in names]


@dataclasses.dataclass(frozen=True)
class Table(Block):
    """Rows under named columns; a block of a page, where a reader can sort by any column.

    Args:
        columns: left to right.
        rows: one value per column each.
        title: what the table shows.
        notes: sentences below it.
    """

    columns: Sequence[Column]
    rows: Rows
    title: str = ""
    notes: Sequence[str] = ()

    def only(self, *names: str) -> Table:
        """Return the table with the columns of these names, as far as it has them."""
        kept = [place for place, column in enumerate(self.columns) if column.name in names]
        rows = [[row[place] for place in kept] for row in self.rows]
        return dataclasses.replace(self, columns=[self.columns[place] for place in kept], rows=rows)

    def ends(self, most: int) -> Table:
        """Return the table with at most ``most`` rows, of more the first and the last; a note says so."""
        if len(self.rows) <= most:
            return self
        half = most // 2
        gap: list[Value] = ["..."] * len(self.columns)
        rows = [*self.rows[:half], gap, *self.rows[len(self.rows) - half :]]
        note = f"The first {half} and the last {half} of {len(self.rows):,} are shown."
        return dataclasses.replace(self, rows=rows, notes=[*self.notes, note])

    def rich(self) -> RichTable:
        """Return the table for a terminal; no text is read as markup."""
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left")
        table.title = Text(printable(self.title)) if self.title else None
        table.caption = Text("\n".join(map(printable, self.notes))) if self.notes else None
        for place, column in enumerate(self.columns):
            table.add_column(
                Text(printable(column.name)),
                style="bold" if place == 0 else "",
                justify="left" if column.is_text else "right",
                no_wrap=not column.is_text,
                overflow="fold",
                min_width=self._least_width(place) if place == 0 else None,
            )
        for row in self.rows:
            table.add_row(*(Text(_terminal_cell(*pair)) for pair in zip(self.columns, row, strict=True)))
        return table

    def show(self, console: Console | None = None) -> None:
        """Print the table; columns for which the terminal is too narrow follow below, beside the first again."""
        from rich.console import Console

        console = console or Console()
        widths = [self._least_width(place) + _GAP for place in range(len(self.columns))]
        parts: list[list[int]] = [[0]]
        for place in range(1, len(self.columns)):
            if sum(widths[other] for other in parts[-1]) + widths[place] >= console.width and len(parts[-1]) > 1:
                parts.append([0])
            parts[-1].append(place)
        for number, part in enumerate(parts, start=1):
            console.print(
                Table(
                    [self.columns[place] for place in part],
                    [[row[place] for place in part] for row in self.rows],
                    self.title if number == 1 else "",
                    self.notes if number == len(parts) else (),
                ).rich()
            )

    def _least_width(self, place: int) -> int:
        """Return the least width of a column: all of a number, some of a text, which goes on in the next line."""
        from rich.cells import cell_len

        column = self.columns[place]
        cells = [printable(column.name), *(_terminal_cell(column, row[place]) for row in self.rows)]
        longest = max(map(cell_len, cells))
        return min(longest, _LEAST_TEXT) if column.is_text else longest

    def lines(self) -> list[str]:
        """Return the terminal's table as plain lines of any length."""
        from rich.console import Console

        console = Console(file=io.StringIO(), width=10_000, color_system=None, legacy_windows=False)
        console.print(self.rich())
        assert isinstance(console.file, io.StringIO)
        return [line.rstrip() for line in console.file.getvalue().splitlines() if line.strip()]

    def greatest(self) -> list[float]:
        """Return the greatest number of each column, 0 of one without numbers."""
        columns = (zip(*self.rows, strict=True)) if self.rows else ()
        return [max((v for v in column if isinstance(v, int | float)), default=0) for column in columns]

    def markdown(self) -> str:
        """Return the table in GitHub's Markdown, in which no text means anything but itself."""
        lines = [markdown_text(self.title) + ":", ""] if self.title else []
        lines.append(f"| {' | '.join(markdown_text(column.name) for column in self.columns)} |")
        lines.append(f"| {' | '.join('---' if column.is_text else '---:' for column in self.columns)} |")
        for row in self.rows:
            cells = [_markdown_cell(*pair) for pair in zip(self.columns, row, strict=True)]
            lines.append(f"| {' | '.join(cells)} |")
        for note in self.notes:
            lines += ["", markdown_text(note)]
        return "\n".join(lines) + "\n"


def write_csv(path: Path, head: Sequence[str], rows: Iterable[Sequence[Value]]) -> Path:
    """Write rows as CSV, whole or not at all; None is an empty cell.

    Text that a spreadsheet would take for a formula gets an apostrophe before it.
    """
    with atomic_file(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        writer.writerows([_csv_cell(value) for value in row] for row in rows)
    return path


def _terminal_cell(column: Column, value: Value) -> str:
    text = column.written(value)
    return shortened(text, _LONGEST_NAME) if column.kind == "name" else printable(text)


def _markdown_cell(column: Column, value: Value) -> str:
    text = column.written(value)
    is_name = column.kind == "name" and value is not None and text != "..."
    return markdown_name(text) if is_name else markdown_text(text)


def _csv_cell(value: Value) -> Value:
    if not isinstance(value, str):
        return value
    text = encodable(value)
    return f"'{text}" if text[:1] in _LEADING or text.lstrip().startswith(_FORMULA) else text
