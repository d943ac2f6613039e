"""The gallery that can be narrowed down."""

from __future__ import annotations

import re

import numpy as np

from detrkit.visual.gallery import FilterGallery, GalleryItem
from detrkit.visual.page import Picture
from tests.unit.visual.elements import Elements

PIXELS = np.zeros((40, 60, 3), np.uint8)


def item(caption="a", tags=None, numbers=None):
    return GalleryItem(Picture.of(PIXELS, caption), tags or {}, numbers or {})


def test_every_tag_is_a_box_to_choose_from_with_counts():
    items = [
        item(tags={"kind": "missed", "class": "dog"}),
        item(tags={"kind": "background", "class": "cat"}),
        item(tags={"kind": "missed"}),
    ]
    html = FilterGallery(items).html()
    assert re.findall(r"<label>(\w+)<select", html) == ["kind", "class", "order"]
    assert '<option value="1">missed (2)</option>' in html
    assert '<option value="0">cat (1)</option>' in html
    assert Elements(html).every("data-t") == ["1 1", "0 0", "1 -"]
