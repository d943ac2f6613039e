"""A gallery that a reader can narrow down and sort; without a script it shows everything in the given order."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from detrkit.visual.page import Picture, fitting
from detrkit.visual.text import escaped, shortened

MOST_BYTES = 5_000_000
"""Of all pictures together; as text in a page they take a third more."""


@dataclasses.dataclass(frozen=True)
class GalleryItem:
    """A picture with what it can be found by.

    Args:
        picture: picture; one without a file (``jpeg`` empty) shows its caption alone.
        tags: values such as kind and class by name; each name becomes a box to choose from.
        numbers: values such as score by name; each name becomes an order, NaN and absent names last.
    """

    picture: Picture
    tags: Mapping[str, str]
    numbers: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class FilterGallery:
    """Pictures with boxes to choose by tag and to sort by number.

    Args:
        items: pictures, the most telling first; beyond ``most_bytes`` the rest is left out and counted.
        most_bytes: bytes of all pictures together.
    """

    items: Sequence[GalleryItem]
    most_bytes: int = MOST_BYTES

    def html(self) -> str:
        """Return its element."""
        count, note = fitting([item.picture for item in self.items], self.most_bytes)
        shown = self.items[:count]
        # all values of each tag, and a number for each of them
        tags = list(dict.fromkeys(name for item in shown for name in item.tags))
        numbers = list(dict.fromkeys(name for item in shown for name in item.numbers))
        values = [
            sorted({item.tags[name] for item in shown if name in item.tags}, key=_natural_order) for name in tags
        ]
        places = [{value: str(place) for place, value in enumerate(column)} for column in values]
        # each picture with the numbers of its tags, and the numbers to sort by
        inner = []
        for item in shown:
            chosen = " ".join(
                column[item.tags[name]] if name in item.tags else "-"
                for name, column in zip(tags, places, strict=True)
            )
            sorted_by = " ".join(_number(item.numbers.get(name, math.nan)) for name in numbers)
            inner.append(f'<div data-t="{chosen}" data-n="{sorted_by}">{_figure(item.picture)}</div>')
        # the boxes to choose from
        boxes = "".join(
            _choice(
                number, name, [(value, sum(item.tags.get(name) == value for item in shown)) for value in column]
            )
            for number, (name, column) in enumerate(zip(tags, values, strict=True))
        )
        return (
            f'<div class="filter-gallery"><div class="filters" hidden>{boxes}{_orders(numbers)}'
            '<button type="button">Show all</button><output aria-live="polite"></output></div>'
            f'<div class="gallery">{"".join(inner)}</div>{note}</div>'
        )


def _figure(picture: Picture) -> str:
    if picture.jpeg:
        return picture.html()
    return (
        '<figure><div class="absent">picture not available</div>'
        f"<figcaption>{escaped(picture.caption)}</figcaption></figure>"
    )


def _choice(number: int, name: str, values: Sequence[tuple[str, int]]) -> str:
    options = "".join(
        f'<option value="{place}">{escaped(shortened(value, 40))} ({count:,})</option>'
        for place, (value, count) in enumerate(values)
    )
    every = '<option value="">all</option>'
    return f'<label>{escaped(name)}<select data-tag="{number}">{every}{options}</select></label>'


def _orders(numbers: Sequence[str]) -> str:
    options = "".join(
        f'<option value="-{place}">{escaped(name)}, highest first</option>'
        f'<option value="+{place}">{escaped(name)}, lowest first</option>'
        for place, name in enumerate(numbers)
    )
    return f'<label>order<select data-order=""><option value="">worst first</option>{options}</select></label>'


def _number(value: float) -> str:
    return f"{value:.6g}" if math.isfinite(value) else "-"


def _natural_order(value: str) -> tuple[str, str]:
    return value.casefold(), value
