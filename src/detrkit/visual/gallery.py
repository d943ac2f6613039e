"""A gallery that a reader can narrow down and sort; without a script it shows everything in the given order."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Mapping, Sequence

from detrkit.visual.page import Block, Picture, fitting

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
class FilterGallery(Block):
    """Pictures with boxes to choose by tag and to sort by number.

    Args:
        items: pictures, the most telling first; beyond ``most_bytes`` the rest is left out and counted.
        most_bytes: bytes of all pictures together.
    """

    items: Sequence[GalleryItem]
    most_bytes: int = MOST_BYTES

    @functools.cached_property
    def shown(self) -> Sequence[GalleryItem]:
        """Items that fit."""
        return self.items[: fitting([item.picture for item in self.items], self.most_bytes)]

    @functools.cached_property
    def tags(self) -> dict[str, dict[str, int]]:
        """Values of each tag, and how many pictures have them."""
        counts: dict[str, Counter[str]] = {}
        for item in self.shown:
            for name, value in item.tags.items():
                counts.setdefault(name, Counter())[value] += 1
        return {
            name: {value: found[value] for value in sorted(found, key=lambda text: (text.casefold(), text))}
            for name, found in counts.items()
        }

    @functools.cached_property
    def numbers(self) -> list[str]:
        """Names of the numbers to sort by."""
        return list(dict.fromkeys(name for item in self.shown for name in item.numbers))

    def tag_places(self, item: GalleryItem) -> str:
        """Return the places of an item's tags among the values of each tag."""
        named = self.tags.items()
        return " ".join(str([*v].index(item.tags[name])) if name in item.tags else "-" for name, v in named)

    def number_texts(self, item: GalleryItem) -> str:
        """Return the numbers of an item, a hyphen for none."""
        values = (item.numbers.get(name, math.nan) for name in self.numbers)
        return " ".join(f"{value:.6g}" if math.isfinite(value) else "-" for value in values)
