"""Self-contained pages."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

import numpy as np
import pytest

from detrkit.visual import page as page_module
from detrkit.visual.chart import Bar, Chart, Line, Series
from detrkit.visual.gallery import FilterGallery, GalleryItem
from detrkit.visual.interactive_charts import BarChart, Cell, CellGrid, Charts, HeatMap, Legend
from detrkit.visual.page import Card, Cards, Gallery, Picture, Section, Text, render_page, write_page
from detrkit.visual.table import Column, Table
from detrkit.visual.text import printable, shortened
from tests.unit.visual.elements import Elements

HOSTILE = '<img src=x onerror="alert(1)">\'"&\ud800\u202e\x00'


def full_page(text: str) -> str:
    """A page with every block, and one text wherever a text may stand."""
    picture, one = Picture.of(np.zeros((40, 60, 3), np.uint8), text), Series(np.ones(1), np.ones(1))
    charts = [
        Chart(text, text, text, lines=[Line(text, 0, one)], legend=True, marks={text: 1.0}),
        Chart(text, bars=[Bar(0, 1, 1, text)]),
        Chart(text, text, text, points=one, point_names=[text]),
        BarChart(text, {text: 1.0}, text),
        HeatMap(text, np.ones((1, 1))),
    ]
    blocks = [
        Text(text),
        Text(text, "warning"),
        Cards([Card(text, text, text)]),
        Table([Column(text), Column(text, "count", bar=True)], [(text, 3), (text, None)], text, [text]),
        Gallery([picture]),
        FilterGallery([GalleryItem(picture, {text: text}, {text: 1.0})]),
        Legend([text]),
        Charts(charts),
        CellGrid(text, [text], [text], [[Cell(1, text, text)]], text, text),
    ]
    return render_page(text, text, [Section(text, blocks)])


def test_hostile_text_stays_text():
    hostile, harmless = Elements(full_page(HOSTILE)), Elements(full_page("name"))
    assert [(tag, list(names)) for tag, names in hostile.found] == [
        (tag, list(names)) for tag, names in harmless.found
    ]
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
    assert len(sources) == 4
    assert all(source.startswith(("data:image/", "#")) for source in sources)
    assert not re.search(r"url\(|@import|https?:", re.sub(r"base64,[\w+/=]+", "", html))


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
    assert list((tmp_path / "new").glob("[!.]*")) == [path]
    assert Gallery([]).html()


def test_text_is_made_fit_to_be_shown():
    assert printable("Ärger 猫") == "Ärger 猫"
    assert printable("a\tb\ud800\u202ec") == "a b\N{REPLACEMENT CHARACTER}c"
    assert shortened("x" * 28) == "x" * 28
    long = shortened("beginning of a very long name and its end", 20)
    assert len(long) == 20
    assert long.startswith("beginning of")
    assert long.endswith("ts end")
