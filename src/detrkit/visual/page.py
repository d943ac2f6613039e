"""Pages of results as one HTML file each, which needs nothing else: no network, no fonts, no libraries.

All text is escaped, and the page's own policy forbids every request, and every script but its own, so that a
class name or a file name cannot do anything.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from PIL import Image

from detrkit.files import atomic_file
from detrkit.visual.style import SCRIPT, STYLES
from detrkit.visual.table import Column, Table, Value
from detrkit.visual.text import escaped

JPEG_QUALITY = 82
MOST_PICTURE_BYTES = 24_000_000
"""Of all pictures of a gallery; browsers and mail programs choke on much larger pages."""

__all__ = [
    "Block",
    "Card",
    "Cards",
    "Column",
    "Gallery",
    "Picture",
    "Section",
    "Table",
    "Text",
    "Value",
    "render_page",
    "write_page",
]


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
