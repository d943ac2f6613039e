"""Self-contained pages."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detrkit.visual import page as page_module
from detrkit.visual.page import Card, Cards, Gallery, Picture, Section, Text, render_page, write_page
from detrkit.visual.table import Column, Table
from detrkit.visual.text import escaped, printable, shortened

HOSTILE = '<img src=x onerror="alert(1)">\'"&\ud800\u202e\x00'


class Elements(HTMLParser):
    """Names and attributes of every element; fails on elements closed in the wrong order."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, html: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def full_page(text: str) -> str:
    pixels = np.zeros((40, 60, 3), np.uint8)
    blocks = [
        Text(text),
        Text(text, "warning"),
        Cards([Card(text, text, text)]),
        Table([Column(text), Column(text, "count", bar=True)], [(text, 3), (text, None)], text),
        Gallery([Picture.of(pixels, text)]),
    ]
    return render_page(text, text, [Section(text, blocks)])


def test_hostile_text_stays_text():
    hostile, harmless = Elements(full_page(HOSTILE)), Elements(full_page("name"))
    assert [tag for tag, _ in hostile.found] == [tag for tag, _ in harmless.found]
    assert not any(name.startswith("on") for _, attributes in hostile.found for name in attributes)
    full_page(HOSTILE).encode("utf-8")


def test_nothing_is_fetched_and_only_the_pages_own_script_runs():
    html = full_page("name")
    elements = Elements(html).found
    policy = next(a["content"] for tag, a in elements if tag == "meta" and "http-equiv" in a)
    script = re.search(r"<script>(.*?)</script>", html, re.S)[1]
    script_hash = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.split("; ") == [
        "default-src 'none'",
        "img-src data:",
        "style-src 'unsafe-inline'",
        f"script-src 'sha256-{script_hash}'",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    assert [tag for tag, _ in elements].count("script") == 1
    sources = [a.get(name) or "" for _, a in elements for name in ("src", "href", "xlink:href") if name in a]
    assert sources
    assert all(source.startswith(("data:", "#")) for source in sources)


def test_pictures_are_small_jpegs():
    picture = Picture.of(np.zeros((1000, 3000, 3), np.uint8), "wide", longest=600)
    with Image.open(io.BytesIO(picture.jpeg)) as image:
        assert (image.format, image.size) == ("JPEG", (600, 200))
    assert picture.size_hw == (200, 600)


def test_a_gallery_leaves_out_what_would_make_the_page_too_big(monkeypatch: pytest.MonkeyPatch):
    picture = Picture.of(np.zeros((40, 60, 3), np.uint8), "a")
    monkeypatch.setattr(page_module, "MOST_PICTURE_BYTES", 3 * len(picture.jpeg))
    html = Gallery([picture] * 5).html()
    assert html.count("<img") == 3
    assert "2 more pictures are not shown" in html
    assert "not shown" not in Gallery([picture] * 3).html()


def test_pages_may_be_empty_and_are_written_whole(tmp_path: Path):
    path = write_page(tmp_path / "new" / "page.html", "Nothing", "", [])
    assert Elements(path.read_text(encoding="utf-8")).found
    assert list((tmp_path / "new").iterdir()) == [path]
    assert Gallery([]).html()
    assert Table([Column("a", "count", bar=True)], []).html()


def test_text_is_made_fit_to_be_shown():
    assert printable("Ärger 猫") == "Ärger 猫"
    assert printable("a\tb\ud800\u202ec") == "a b\N{REPLACEMENT CHARACTER}c"
    assert escaped("<&\"'>") == "&lt;&amp;&quot;&#x27;&gt;"
    assert shortened("x" * 28) == "x" * 28
    long = shortened("beginning of a very long name and its end", 20)
    assert len(long) == 20
    assert long.startswith("beginning of")
    assert long.endswith("ts end")
