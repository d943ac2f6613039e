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


def test_every_number_is_an_order_and_what_is_missing_is_no_number():
    html = FilterGallery([item(numbers={"score": 0.5}), item(numbers={"IoU": float("nan")})]).html()
    assert Elements(html).every("data-n") == ["0.5 -", "- -"]
    assert "score, highest first" in html
    assert "IoU, lowest first" in html


def test_without_a_script_all_pictures_show_and_the_boxes_do_not():
    html = FilterGallery([item(), item()]).html()
    hidden = [found["class"] for _, found in Elements(html).found if "hidden" in found]
    assert hidden == ["filters"]
    assert html.count("<img") == 2


def test_pictures_beyond_the_limit_are_counted():
    one = item(tags={"kind": "a"})
    html = FilterGallery([one] * 5, most_bytes=3 * len(one.picture.jpeg)).html()
    assert html.count("<img") == 3
    assert "2 more pictures are not shown" in html
    assert "a (3)" in html
