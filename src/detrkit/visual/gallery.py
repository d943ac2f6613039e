"""A gallery that a reader can narrow down and sort; without a script it shows everything in the given order."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from detrkit.visual.page import Picture
from detrkit.visual.text import escaped, shortened

MOST_BYTES = 5_000_000
"""Of all pictures together; as text in a page they take a third more."""

SCRIPT = """
document.querySelectorAll('.filter-gallery').forEach(function (gallery) {
  var bar = gallery.querySelector('.filters'), grid = gallery.querySelector('.gallery');
  var choices = Array.from(bar.querySelectorAll('select[data-tag]')), order = bar.querySelector('[data-order]');
  var count = bar.querySelector('output'), items = Array.from(grid.children);
  var tags = items.map(function (item) { return item.dataset.t.split(' '); });
  var numbers = items.map(function (item) { return item.dataset.n.split(' ').map(parseFloat); });
  function update() {
    var shown = 0, places = items.map(function (item, place) { return place; });
    items.forEach(function (item, place) {
      var fits = choices.every(function (choice) {
        return choice.value === '' || tags[place][choice.dataset.tag] === choice.value;
      });
      item.hidden = !fits;
      shown += fits;
    });
    if (order.value !== '') {
      var column = parseInt(order.value.slice(1), 10), sign = order.value[0] === '-' ? -1 : 1;
      places.sort(function (a, b) {
        var x = numbers[a][column], y = numbers[b][column];
        if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y) || a - b;
        return sign * (x - y) || a - b;
      });
    }
    places.forEach(function (place) { grid.appendChild(items[place]); });
    count.textContent = shown + ' of ' + items.length + ' shown';
  }
  bar.addEventListener('change', update);
  bar.querySelector('button').addEventListener('click', function () {
    choices.concat(order).forEach(function (choice) { choice.value = ''; });
    update();
  });
  bar.hidden = false;
  update();
});
"""

STYLES = """
.filters{display:flex;flex-wrap:wrap;gap:.5rem 1rem;align-items:end;margin:1rem 0}
.filters[hidden],.gallery>[hidden]{display:none}
.filters label{display:flex;flex-direction:column;font-size:.8rem;color:var(--dim);min-width:0;max-width:100%}
.filters select,.filters button{font:inherit;font-size:.9rem;color:var(--ink);background:var(--card);
border:1px solid var(--line);border-radius:.35rem;padding:.25rem .5rem;max-width:100%}
.filters button{cursor:pointer}
.filters output{font-size:.9rem;color:var(--dim);padding:.25rem 0}
.filter-gallery .gallery{grid-template-columns:repeat(auto-fill,minmax(min(14rem,100%),1fr));align-items:start}
.filter-gallery img{width:100%}
.absent{display:grid;place-items:center;min-height:6rem;background:var(--card);border-radius:.35rem;
color:var(--dim);font-size:.85rem}
@media print{.filters{display:none}.filter-gallery .gallery{grid-template-columns:repeat(6,1fr);gap:.6rem}}
"""


@dataclasses.dataclass(frozen=True)
class GalleryItem:
    """A picture with what it can be found by.

    Args:
        picture: What is shown; one without a file (``jpeg`` empty) shows its caption alone.
        tags: Such as kind and class; each name becomes a box to choose from.
        numbers: Such as score; each name becomes an order. NaN, or a name that is absent, comes last.
    """

    picture: Picture
    tags: Mapping[str, str]
    numbers: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class FilterGallery:
    """Pictures with boxes to choose by tag and to sort by number.

    Args:
        items: The most telling first; beyond ``most_bytes`` of pictures the rest is left out and counted.
        most_bytes: Of all pictures together.
    """

    items: Sequence[GalleryItem]
    most_bytes: int = MOST_BYTES
    script = SCRIPT
    styles = STYLES

    def html(self) -> str:
        """Its element."""
        sizes = np.cumsum([len(item.picture.jpeg) for item in self.items])
        shown = self.items[: int(np.searchsorted(sizes, self.most_bytes, side="right"))]
        tags = list(dict.fromkeys(name for item in shown for name in item.tags))
        numbers = list(dict.fromkeys(name for item in shown for name in item.numbers))
        values = [
            sorted({item.tags[name] for item in shown if name in item.tags}, key=_natural_order) for name in tags
        ]
        places = [{value: str(place) for place, value in enumerate(column)} for column in values]
        inner = []
        for item in shown:
            chosen = " ".join(
                column[item.tags[name]] if name in item.tags else "-"
                for name, column in zip(tags, places, strict=True)
            )
            sorted_by = " ".join(_number(item.numbers.get(name, math.nan)) for name in numbers)
            inner.append(f'<div data-t="{chosen}" data-n="{sorted_by}">{_figure(item.picture)}</div>')
        boxes = "".join(
            _choice(
                number, name, [(value, sum(item.tags.get(name) == value for item in shown)) for value in column]
            )
            for number, (name, column) in enumerate(zip(tags, values, strict=True))
        )
        left_out = len(self.items) - len(shown)
        note = f"<p>{left_out:,} more pictures are not shown, to keep this page small.</p>" if left_out else ""
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
