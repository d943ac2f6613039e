"""Pages of results as one HTML file each, which needs nothing else: no network, no fonts, no libraries.

All text is escaped, and the page's own policy forbids every request, and every script but its own, so that a
class name or a file name cannot do anything.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import importlib.resources
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from PIL import Image

from detrkit.files import atomic_file
from detrkit.visual.text import escaped

JPEG_QUALITY = 82
MOST_PICTURE_BYTES = 24_000_000
"""Of all pictures of a gallery; browsers and mail programs choke on much larger pages."""


class Block(Protocol):
    """Something that stands in a section."""

    def html(self) -> str:
        """Return its element."""


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph.

    Args:
        text: sentences.
        kind: warning is set off, for what a reader must not miss.
    """

    text: str
    kind: Literal["plain", "warning"] = "plain"

    def html(self) -> str:
        """Return its element."""
        return f'<p class="{self.kind}">{escaped(self.text)}</p>'


@dataclasses.dataclass(frozen=True)
class Card:
    """A key figure.

    Args:
        name: what is counted.
        value: figure, formatted.
        note: a few words below it.
    """

    name: str
    value: str
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Cards:
    """Key figures side by side."""

    cards: Sequence[Card]

    def html(self) -> str:
        """Return their element."""
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
        jpeg: content of the file.
        caption: what the picture shows.
        size_hw: height and width in pixels.
    """

    jpeg: bytes
    caption: str
    size_hw: tuple[int, int]

    @classmethod
    def of(cls, image: np.ndarray, caption: str, longest: int = 960) -> Picture:
        """Return a picture of uint8 ``[H, W, 3]``, made smaller where a side is over ``longest`` pixels."""
        picture = Image.fromarray(image)
        picture.thumbnail((longest, longest), Image.Resampling.LANCZOS)
        content = io.BytesIO()
        picture.save(content, "JPEG", quality=JPEG_QUALITY)
        return cls(content.getvalue(), caption, (picture.height, picture.width))

    def html(self) -> str:
        """Return its element."""
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
        pictures: the most telling first.
        wide: one in a row.
    """

    pictures: Sequence[Picture]
    wide: bool = False

    def html(self) -> str:
        """Return their element."""
        shown, note = fitting(self.pictures, MOST_PICTURE_BYTES)
        inner = "".join(picture.html() for picture in self.pictures[:shown])
        return f'<div class="gallery{" wide" if self.wide else ""}">{inner}</div>{note}'


def fitting(pictures: Sequence[Picture], most_bytes: int) -> tuple[int, str]:
    """Return how many of the pictures a page shows, and what it says of the others."""
    shown = int(np.searchsorted(np.cumsum([len(picture.jpeg) for picture in pictures]), most_bytes, side="right"))
    left_out = len(pictures) - shown
    return shown, f"<p>{left_out:,} more pictures are not shown, to keep this page small.</p>" if left_out else ""


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of a page, named in its contents.

    Args:
        title: heading.
        blocks: its content.
    """

    title: str
    blocks: Sequence[Block]


def render_page(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """Return the HTML of a page: a heading, contents, sections."""
    # the sections, and a link to each
    contents = "".join(
        f'<li><a href="#s{number}">{escaped(section.title)}</a></li>' for number, section in enumerate(sections)
    )
    parts = "".join(
        f'<section id="s{number}"><h2>{escaped(section.title)}</h2>'
        + "".join(block.html() for block in section.blocks)
        + "</section>"
        for number, section in enumerate(sections)
    )
    # styles and script are inside the page, and its policy allows no other script and no request
    folder = importlib.resources.files("detrkit.visual")
    styles, script = (folder.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
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
        f"<script>{script}</script></body></html>\n"
    )


def write_page(path: str | Path, title: str, subtitle: str, sections: Sequence[Section]) -> Path:
    """Write :func:`render_page` to a file, whole or not at all."""
    with atomic_file(Path(path)) as file:
        file.write(render_page(title, subtitle, sections))
    return Path(path)
