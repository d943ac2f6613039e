"""Tables in the terminal, on a page, in Markdown and as CSV."""

from __future__ import annotations

import csv
import io
import re

import pytest
from rich.console import Console

from detrkit.visual.table import Column, Table, columns, write_csv
from detrkit.visual.text import markdown_name
from tests.unit.visual.elements import Elements

HOSTILE = [
    '=HYPERLINK("http://example.org","x")',
    "+1+1",
    "-2+3",
    "@SUM(A1)",
    "\t=1+1",
    "  =1+1",
    "\n=1",
    "\uff1d1+1",
    "<script>alert(1)</script>",
    "quote \" comma , and '",
    "line\nbreak\r\nand more",
    "\u202egpj.exe",
    "🦜🏴‍☠️",
    "x" * 500,
    "half \ud83d of a pair",
    "zero \0 byte",
    "",
]
MARKUP = [
    "[bold red]x[/]",
    "esc\x1b[31m",
    "right\u202eto left",
    "a|b `c` **d** _e_",
    "<img src=x onerror=alert(1)>",
    "[link](http://evil.example) @someone #1 www.evil.example",
]

COLUMNS = [
    Column("class", "name"),
    Column("n", "count", bar=True),
    Column("share", "percent"),
    Column("AP", "points"),
    Column("m", "number", 2),
    Column("what it is"),
]
TABLE = Table(
    COLUMNS, [("a", 1234, 0.5, 0.42, 1 / 3, "x"), ("b", 617, None, -0.001, float("nan"), "y")], "All", ["Two."]
)


def terminal(table: Table) -> str:
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system="truecolor")
    console.print(table.rich())
    return re.sub(r"\x1b\[[\d;]*m", "", console.file.getvalue())


def figures(lines: list[str]) -> list[list[str]]:
    return [re.split(r"  +", line.strip()) for line in lines if line.strip().startswith(("a ", "b "))]


def test_every_form_shows_the_same_figures():
    cells = [["a", "1,234", "50.0 %", "42.0", "0.33", "x"], ["b", "617", "-", "-0.1", "-", "y"]]
    assert figures(terminal(TABLE).splitlines()) == figures(TABLE.lines()) == cells
    shown = [re.findall(r">([^<]*)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", TABLE.html())[1:]]
    assert shown == cells
    rows = [[cell.strip("` ") for cell in row.strip("|").split("|")] for row in TABLE.markdown().splitlines()[4:6]]
    assert rows == cells
    for text in (terminal(TABLE), TABLE.html(), TABLE.markdown()):
        assert "All" in text
        assert "Two." in text


@pytest.mark.parametrize("kind", ["text", "name"])
def test_no_text_means_anything_but_itself(kind):
    table = Table(
        [Column("head", kind), Column("n", "count")], [(text, 1) for text in MARKUP + HOSTILE], MARKUP[4], MARKUP
    )
    shown = terminal(table)
    assert shown.count("[bold red]x[/]") == 2
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    html = Elements(table.html())
    assert not any(tag in ("img", "script") for tag, _ in html.found)
    assert not any(name.startswith("on") for _, attributes in html.found for name in attributes)
    markdown = table.markdown()
    for bait in ("<script", "<img", "](http", "[link]", "\u202e", "**d**", "_e_", "www.evil"):
        assert bait not in markdown
    assert {line.count("|") for line in markdown.splitlines() if line.startswith("|")} == {3}
    (markdown + table.html()).encode("utf-8")


@pytest.mark.parametrize(
    "name", [*MARKUP, "", " ", "`", "a`b", "|", "@team", "#1", "http://x.y", "**b**", "a\nb", "\\|", "x" * 500]
)
def test_names_are_code_in_markdown(name):
    text = markdown_name(name)
    inside = text.removeprefix("<code>").removesuffix("</code>")
    if inside != text:
        assert re.fullmatch(r"(?:&#\d+;|[^\W_])*", inside)
    else:
        assert re.fullmatch(r"`[\w ./-]+`", text)
    assert len(text) < 500


@pytest.mark.parametrize("rows", [[], [("...", None)]])
def test_tables_of_nothing_are_legal(rows):
    table = Table([Column("a", "name"), Column("b", "count", bar=True)], rows)
    assert table.html()
    assert table.markdown()
    assert table.lines()


@pytest.mark.parametrize("text", HOSTILE)
def test_no_cell_begins_a_formula_and_each_is_read_back(text, tmp_path):
    path = write_csv(tmp_path / "table.csv", ["a", "b"], [[text, 1.5], [None, -2]])
    with path.open(newline="", encoding="utf-8") as file:
        (head, first, second) = list(csv.reader(file))
    assert head == ["a", "b"]
    assert first[1] == "1.5"
    assert second == ["", "-2"]  # numbers may be negative
    assert first[0].lstrip()[:1] not in tuple("=+-@\uff1d\uff0b\uff0d\uff20")
    assert first[0][:1] not in ("\t", "\n", "\r")
    clean = text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")
    assert first[0] in (clean, f"'{clean}")
    assert (first[0] == clean) == (HOSTILE.index(text) > 7)


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_a_narrow_terminal_shows_every_name_and_number_whole(width: int):
    names = ["cat", "motorcycle rider", "a class with a very long name indeed"]
    heads = columns("count", "objects", "AP medium", "AP large", "best F1", "best score", "false per image")
    rows = [[name, *(1_234_567 + place for place in range(len(heads)))] for name in names]
    console = Console(file=io.StringIO(), width=width, color_system=None)
    Table([Column("class", "name"), *heads], rows, "Classes", ["a note"]).show(console)
    printed = console.file.getvalue()
    assert max(map(len, printed.splitlines())) <= width
    assert (printed.count("Classes"), printed.count("a note")) == (1, 1)
    for place, head in enumerate(heads):
        assert printed.count(head.name) == 1
        assert printed.count(f"{1_234_567 + place:,}") == len(names)
    parts = printed.count("motorcycle rider")
    assert parts == printed.count("a class with") == (1 if width == 200 else parts)
