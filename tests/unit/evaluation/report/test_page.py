"""report.html."""

from __future__ import annotations

import json
import re

import jsonschema
import pytest

from detrkit.evaluation.report.metrics_file import metrics_schema, write_metrics_json
from detrkit.evaluation.report.page import write_report
from detrkit.evaluation.report.summary import write_summary
from detrkit.visual.text import printable
from tests.unit.evaluation.report.conftest import HOSTILE, made
from tests.unit.evaluation.report.simulated import detected, generated
from tests.unit.visual.elements import Elements


@pytest.fixture(scope="module")
def page(plain, tmp_path_factory) -> str:
    return write_report(tmp_path_factory.mktemp("page") / "report.html", plain).read_text(encoding="utf-8")


def test_hostile_names_show_as_text_and_make_no_element(hostile, tmp_path):
    names = [f"class {i}" for i in range(len(HOSTILE))]
    origin = type(hostile.origin)("model", "kind", "data", "split", settings={"a": "b"})
    harmless = made(generated(images=30, names=names), read_image=lambda _row: None, origin=origin)
    pages = [
        Elements(write_report(tmp_path / f"{i}.html", evaluation).read_text(encoding="utf-8"))
        for i, evaluation in enumerate((hostile, harmless))
    ]
    allowed = {(tag, name) for tag, attributes in pages[1].found for name in (*attributes, "")}
    allowed |= {("img", name) for name in ("loading", "width", "height", "alt", "src", "")}
    assert {(tag, name) for tag, attributes in pages[0].found for name in (*attributes, "")} <= allowed
    for name in HOSTILE:
        assert printable(name) in "".join(pages[0].texts)
    assert "\u202e" not in (tmp_path / "0.html").read_text(encoding="utf-8")


def test_edge_cases_have_every_file(edge, tmp_path):
    html = write_report(tmp_path / "report.html", edge).read_text(encoding="utf-8")
    assert not re.search(r"\bnan\b|-1\.0|-100\.0|\binf\b", "\n".join(Elements(html).texts))
    summary = write_summary(tmp_path / "summary.md", edge).read_text(encoding="utf-8")
    assert summary.startswith("## AP ")
    assert not re.search(r"\bnan\b|-100", summary)
    write_metrics_json(tmp_path / "metrics.json", edge)
    content = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    jsonschema.validate(content, metrics_schema(), cls=jsonschema.Draft202012Validator)


def test_images_that_cannot_be_read_are_counted_and_the_rest_is_there(tmp_path):
    content = generated()
    evaluation = made(content, read_image=lambda _row: None)
    html = write_report(tmp_path / "report.html", evaluation).read_text(encoding="utf-8")
    assert "<img" not in html
    assert "images could not be read" in html
    assert detected(content).finish()["AP"] == evaluation["AP"]
