"""Pages of results as one HTML file each, which needs nothing else: no network, no fonts, no libraries.

All text is escaped, and the page's own policy forbids every request, and every script but its own, so that a
class name or a file name cannot do anything.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import importlib.resources
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image

from detrkit.files import write_text
from detrkit.visual.chart import COLORS, DASHES, short_number
from detrkit.visual.text import printable, shortened

JPEG_QUALITY = 82
MOST_PICTURE_BYTES = 24_000_000
"""Of all pictures of a gallery; browsers and mail programs choke on much larger pages."""


class Block:
    """Something that stands in a section; its markup is the macro of ``page.html`` with its class's name."""

    def html(self) -> Markup:
        """Return its element."""
        return render(type(self).__name__, self)


def render(macro: str, *arguments: Any) -> Markup:
    """Return what a macro of ``page.html`` makes of its arguments."""
    return Markup(getattr(_macros(), macro)(*arguments))


@functools.cache
def _macros() -> Any:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("detrkit", "visual"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    environment.filters |= {
        "shortened": shortened,
        "short": short_number,
        "tip": lambda text: Markup("&#10;").join(map(printable, text.split("\n"))),
        "color": lambda number: COLORS[number % len(COLORS)],
        "dashes": lambda number: DASHES[number // len(COLORS) % len(DASHES)],
    }
    return environment.get_template("page.html").module


@dataclasses.dataclass(frozen=True)
class Text(Block):
    """A paragraph.

    Args:
        text: sentences.
        kind: warning is set off, for what a reader must not miss.
    """

    text: str
    kind: Literal["plain", "warning"] = "plain"


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
class Cards(Block):
    """Key figures side by side."""

    cards: Sequence[Card]


@dataclasses.dataclass(frozen=True)
class Picture(Block):
    """A picture of a gallery.

    Args:
        jpeg: content of the file; empty: only the caption is shown.
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

    @property
    def source(self) -> str:
        """Address that holds the file itself."""
        return f"data:image/jpeg;base64,{base64.b64encode(self.jpeg).decode()}"


@dataclasses.dataclass(frozen=True)
class Gallery(Block):
    """Pictures in rows; beyond ``MOST_PICTURE_BYTES`` the rest is left out and counted.

    Args:
        pictures: the most telling first.
        wide: one in a row.
    """

    pictures: Sequence[Picture]
    wide: bool = False

    @property
    def shown(self) -> int:
        """Number of pictures that the page shows."""
        return fitting(self.pictures, MOST_PICTURE_BYTES)


def fitting(pictures: Sequence[Picture], most_bytes: int) -> int:
    """Return how many of the pictures, from the first, have no more bytes together."""
    return int(np.searchsorted(np.cumsum([len(picture.jpeg) for picture in pictures]), most_bytes, side="right"))


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
    # styles and script are inside the page, and its policy allows no other script and no request
    folder = importlib.resources.files("detrkit.visual")
    styles, script = (folder.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return str(render("page", title, subtitle, sections, Markup(styles), Markup(script), Markup(policy)))


def write_page(path: str | Path, title: str, subtitle: str, sections: Sequence[Section]) -> Path:
    """Write :func:`render_page` to a file, whole or not at all."""
    write_text(Path(path), render_page(title, subtitle, sections))
    return Path(path)
