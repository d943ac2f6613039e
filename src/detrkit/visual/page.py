"""Pages of results as one HTML file each, which needs nothing else: no network, no fonts, no libraries.

All text is escaped, and the page's own policy forbids every request, and every script but its own, so that a
class name or a file name cannot do anything.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from PIL import Image

from detrkit.files import atomic_file
from detrkit.visual.plots import Plot
from detrkit.visual.style import SCRIPT, STYLES
from detrkit.visual.text import escaped

JPEG_QUALITY = 82
MOST_PICTURE_BYTES = 24_000_000
"""Of all pictures of a gallery; browsers and mail programs choke on much larger pages."""

Value = str | int | float | None


class Block(Protocol):
    """Something that stands in a section; it may bring a ``script`` and ``styles``, which the page has once."""

    def html(self) -> str:
        """Its element."""


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph.

    Args:
        text: What it says.
        kind: warning: set off, for what a reader must not miss.
    """

    text: str
    kind: Literal["plain", "warning"] = "plain"

    def html(self) -> str:
        """Its element."""
        return f'<p class="{self.kind}">{escaped(self.text)}</p>'


@dataclasses.dataclass(frozen=True)
class Card:
    """A key figure.

    Args:
        name: What is counted.
        value: The figure, formatted.
        note: A few words below it.
    """

    name: str
    value: str
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Cards:
    """Key figures side by side."""

    cards: Sequence[Card]

    def html(self) -> str:
        """Their element."""
        inner = "".join(
            f"<div><dt>{escaped(card.name)}</dt><dd>{escaped(card.value)}"
            + (f"<small>{escaped(card.note)}</small>" if card.note else "")
            + "</dd></div>"
            for card in self.cards
        )
        return f'<dl class="cards">{inner}</dl>'


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        name: Its head.
        kind: How values are written: text, whole numbers, percent of a share of 0 to 1, or ``digits`` decimals.
        digits: Decimals of number and percent.
        bar: Draw each value as a bar behind it, the greatest filling the cell.
    """

    name: str
    kind: Literal["text", "count", "number", "percent"] = "text"
    digits: int = 1
    bar: bool = False

    def written(self, value: Value) -> str:
        """A value as the table shows it; "-" for none."""
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return "-"
        if isinstance(value, str) or self.kind == "text":
            return str(value)
        if self.kind == "count":
            return f"{value:,.0f}"
        return f"{100 * value:.{self.digits}f} %" if self.kind == "percent" else f"{value:,.{self.digits}f}"


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows that a reader can sort by any column.

    Args:
        columns: Left to right.
        rows: One value per column each.
        caption: What it shows.
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[Value]]
    caption: str = ""

    def html(self) -> str:
        """Its element."""
        heads = "".join(
            f'<th scope="col" class="{column.kind}"><button type="button">{escaped(column.name)}</button></th>'
            for column in self.columns
        )
        greatest = [self._greatest(number) for number in range(len(self.columns))]
        body = "".join(
            "<tr>" + "".join(map(_cell, self.columns, row, greatest, range(len(row)))) + "</tr>"
            for row in self.rows
        )
        caption = f"<caption>{escaped(self.caption)}</caption>" if self.caption else ""
        table = f"<table>{caption}<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"
        # A box that scrolls must be reachable with the keyboard.
        return f'<div class="scroll" tabindex="0" role="region" aria-label="{escaped(self.caption)}">{table}</div>'

    def _greatest(self, column: int) -> float:
        numbers = [row[column] for row in self.rows if isinstance(row[column], int | float)]
        return max((float(number) for number in numbers if number is not None), default=0.0)


@dataclasses.dataclass(frozen=True)
class Plots:
    """Plots side by side, as many in a row as fit."""

    plots: Sequence[Plot]

    def html(self) -> str:
        """Their element."""
        figures = (
            f"<figure><figcaption>{escaped(plot.title)}</figcaption>{plot.svg}</figure>" for plot in self.plots
        )
        return f'<div class="plots">{"".join(figures)}</div>'


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture of a gallery.

    Args:
        jpeg: The file.
        caption: What it shows.
        size_hw: Its pixels.
    """

    jpeg: bytes
    caption: str
    size_hw: tuple[int, int]

    @classmethod
    def of(cls, image: np.ndarray, caption: str, longest: int = 960) -> Picture:
        """A picture of uint8 ``[H, W, 3]``, made smaller where a side is over ``longest`` pixels."""
        picture = Image.fromarray(image)
        picture.thumbnail((longest, longest), Image.Resampling.LANCZOS)
        content = io.BytesIO()
        picture.save(content, "JPEG", quality=JPEG_QUALITY)
        return cls(content.getvalue(), caption, (picture.height, picture.width))

    def html(self) -> str:
        """Its element."""
        height, width = self.size_hw
        source = f"data:image/jpeg;base64,{base64.b64encode(self.jpeg).decode()}"
        alt = escaped(self.caption)
        return (
            f'<figure><img loading="lazy" width="{width}" height="{height}" alt="{alt}" src="{source}">'
            f"<figcaption>{alt}</figcaption></figure>"
        )


@dataclasses.dataclass(frozen=True)
class Gallery:
    """Pictures in rows; beyond ``MOST_PICTURE_BYTES`` the rest is left out and counted.

    Args:
        pictures: The most telling first.
        wide: One in a row.
    """

    pictures: Sequence[Picture]
    wide: bool = False

    def html(self) -> str:
        """Their element."""
        sizes = np.cumsum([len(picture.jpeg) for picture in self.pictures])
        shown = int(np.searchsorted(sizes, MOST_PICTURE_BYTES, side="right"))
        inner = "".join(picture.html() for picture in self.pictures[:shown])
        left_out = len(self.pictures) - shown
        note = f"<p>{left_out:,} more pictures are not shown, to keep this page small.</p>" if left_out else ""
        return f'<div class="gallery{" wide" if self.wide else ""}">{inner}</div>{note}'


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of a page, named in its contents.

    Args:
        title: Its heading.
        blocks: What stands in it.
    """

    title: str
    blocks: Sequence[Block]


def render_page(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The HTML of a page: a heading, contents, sections."""
    contents = "".join(
        f'<li><a href="#s{number}">{escaped(section.title)}</a></li>' for number, section in enumerate(sections)
    )
    parts = "".join(
        f'<section id="s{number}"><h2>{escaped(section.title)}</h2>'
        + "".join(block.html() for block in section.blocks)
        + "</section>"
        for number, section in enumerate(sections)
    )
    blocks = [block for section in sections for block in section.blocks]
    styles = "".join(dict.fromkeys((STYLES, *(getattr(block, "styles", "") for block in blocks))))
    scripts = [
        text for text in dict.fromkeys((SCRIPT, *(getattr(block, "script", "") for block in blocks))) if text
    ]
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in scripts
    )
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {hashes}; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><meta name="generator" content="detrkit">'
        f"<title>{escaped(title)}</title><style>{styles}</style></head>\n<body>"
        f"<header><h1>{escaped(title)}</h1><p>{escaped(subtitle)}</p>"
        f'<nav aria-label="Contents"><ul>{contents}</ul></nav></header>\n<main>{parts}</main>\n'
        f"{''.join(f'<script>{text}</script>' for text in scripts)}</body></html>\n"
    )


def write_page(path: str | Path, title: str, subtitle: str, sections: Sequence[Section]) -> Path:
    """Write :func:`render_page` to a file, whole or not at all."""
    with atomic_file(Path(path)) as file:
        file.write(render_page(title, subtitle, sections))
    return Path(path)


def _cell(column: Column, value: Value, greatest: float, position: int) -> str:
    tag, scope = ("th", ' scope="row"') if position == 0 else ("td", "")
    is_number = isinstance(value, int | float) and not math.isnan(value)
    key = f' data-v="{value}"' if is_number else ""
    bar = ""
    if column.bar and is_number and greatest > 0:
        bar = f' style="--share:{100 * float(value or 0) / greatest:.1f}%"'
    kind = f"{column.kind} bar" if bar else column.kind
    return f'<{tag}{scope} class="{kind}"{key}{bar}>{escaped(column.written(value))}</{tag}>'
