from __future__ import annotations

import json
from pathlib import Path

import pytest

from detrkit.classes import ClassMap
from detrkit.errors import DataError
from detrkit.robustness.generalization import evaluate_on_several
from detrkit.robustness.pages import write_generalization
from tests.unit.data.factory import make_index
from tests.unit.robustness.studies import OracleSubject, split_of

BOX = (10.0, 10.0, 60.0, 60.0)
ANIMALS = make_index([[(0, BOX)], [(1, BOX), (2, (70.0, 10.0, 120.0, 60.0))]])
KNOWN = ClassMap(("dog", "cat"), (18, 17))


def test_each_data_set_is_measured_over_shared_and_over_all_classes():
    subject = OracleSubject(ANIMALS, KNOWN)
    told, said = [], []
    found = evaluate_on_several(
        subject,
        {"zoo": split_of(ANIMALS), "again": split_of(ANIMALS)},
        progress=lambda done, of: told.append((done, of)),
        say=said.append,
    )
    first = found.results[0]
    assert first.shared is not None
    assert first.everything is not None
    assert first.shared["AP"] == pytest.approx(1)
    assert first.everything["AP"] == pytest.approx(2 / 3)  # the fox is never found
    assert [entry.name for entry in first.shared.per_class] == ["cat", "dog"]
    assert (first.images, first.objects) == (2, 3)
    assert told[-1] == (4, 4)
    assert "zoo: classes of the data that the model does not know: fox" in said
    row = found.table().rows[0]
    assert row[:4] == ["zoo", 2, 3, "2 of 3"]
    assert row[4:] == [pytest.approx(1)] * 3 + [None, pytest.approx(1), None, pytest.approx(2 / 3)]
    assert any(line.split()[:2] == ["zoo", "2"] for line in found.lines())


def test_joined_classes_are_measured_as_one():
    subject = OracleSubject(ANIMALS, ClassMap(("pet", "fox"), (1, 2)))
    subject.truth = make_index([[(0, BOX)], [(0, BOX), (1, (70.0, 10.0, 120.0, 60.0))]], names=("pet", "fox"))
    names = {"zoo": {"cat": ("pet",), "dog": ("pet",)}}
    result = evaluate_on_several(subject, {"zoo": split_of(ANIMALS)}, class_names=names).results[0]
    assert result.shared is not None
    assert result.shared["AP"] == pytest.approx(1)
    assert [(entry.name, entry.objects) for entry in result.shared.per_class] == [("pet", 2), ("fox", 1)]


def test_a_data_set_without_shared_classes_does_not_stop_the_others(tmp_path: Path):
    plants = make_index([[(0, BOX)]], names=("<b>Tree", "CAT", "moss"))
    said = []
    found = evaluate_on_several(
        OracleSubject(ANIMALS, KNOWN), {"zoo": split_of(ANIMALS), "<i>": split_of(plants)}, say=said.append
    )
    assert found.results[1].shared is None
    assert found.table().rows[1][4:] == [None] * 7
    assert "WARNING: <i>: no class is shared, so that nothing is measured on it" in said
    assert any("did you mean 'cat'" in line for line in said)
    write_generalization(tmp_path / "page.html", found)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<b>Tree" not in page
    assert "<i>:" not in page
    content = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert content["data"][1]["classes"]["suggestions"] == [{"data": "CAT", "model": "cat"}]


def test_no_shared_class_at_all_is_an_error_that_names_likely_ones():
    plants = make_index([[(0, BOX)]], names=("Cats", "moss"))
    with pytest.raises(DataError, match=r"(?s)no class of the model is in any.*did you mean 'cat'"):
        evaluate_on_several(OracleSubject(ANIMALS, KNOWN), {"plants": split_of(plants)})
