from __future__ import annotations

from pathlib import Path

import pytest

from detrkit.classes import ClassMap
from detrkit.errors import UsageError
from detrkit.robustness.classes import match_names, read_class_names, resolve_class_names


def classes(*names: str, first: int = 1) -> ClassMap:
    return ClassMap(names, tuple(range(first, first + len(names))))


def test_names_must_be_the_same_to_the_letter_and_near_ones_are_suggested():
    match = match_names(classes("person", "traffic light", "car"), classes("car", "Traffic_Light", "tree", "Cars"))
    assert match.classes.names == ("car", "Traffic_Light", "tree", "Cars")
    assert match.of_model.tolist() == [-1, -1, 0]
    assert match.of_data.tolist() == [0, 1, 2, 3]
    assert match.matched().tolist() == [0]
    assert [(pair.data, pair.model) for pair in match.pairs] == [(("car",), ("car",))]
    assert match.model_only == ("person", "traffic light")
    assert match.data_only == ("Traffic_Light", "tree", "Cars")
    assert match.suggestions == (("Traffic_Light", "traffic light"),)
    text = "\n".join(match.lines())
    assert "did you mean 'traffic light' (the model's) by 'Traffic_Light' (the data's)" in text
    assert "does not know: Traffic_Light, tree, Cars" in text


def test_several_classes_of_the_data_are_one_to_the_model():
    match = match_names(
        classes("vehicle", "person"),
        classes("car", "person", "truck", first=5),
        {"car": ("vehicle",), "truck": ("vehicle",)},
    )
    assert match.classes.names == ("vehicle", "person")
    assert match.classes.category_ids == (5, 6)
    assert match.of_data.tolist() == [0, 1, 0]
    assert match.of_model.tolist() == [0, 1]
    assert match.pairs[0].data == ("car", "truck")
    assert match.data_only == match.model_only == ()


def test_a_name_of_the_model_is_not_matched_twice_by_accident():
    # "car" of the data is what the model calls vehicle; the model's own "car" has nothing to do with it
    match = match_names(classes("car", "vehicle"), classes("car"), {"car": ("vehicle",)})
    assert match.of_model.tolist() == [-1, 0]
    assert match.model_only == ("car",)


def test_of_classes_that_share_a_name_the_category_id_decides():
    shared = ClassMap(("crane", "crane"), (3, 9))
    match = match_names(shared, shared)
    assert match.of_model.tolist() == match.of_data.tolist() == [0, 1]


def test_a_map_of_unknown_classes_is_refused():
    for names, message in (
        ({"persn": ("person",)}, "the data has no class 'persn'; did you mean person"),
        ({"person": ("Person",)}, "the model has no class 'Person'; did you mean person"),
    ):
        with pytest.raises(UsageError, match=message):
            match_names(classes("person"), classes("person"), names)


def test_maps_for_all_or_for_each_data_set(tmp_path: Path):
    file = tmp_path / "map.yaml"
    file.write_text("Person: person\nvehicle: [car, truck]\ntree:\n")
    one = {"Person": ("person",), "vehicle": ("car", "truck"), "tree": ()}
    assert read_class_names(file, ["a", "b"]) == {"a": one, "b": one}
    file.write_text("a:\n  Person: person\n")
    assert read_class_names(file, ["a", "b"]) == {"a": {"Person": ("person",)}, "b": {}}
    file.write_text("a: [")
    for path, message in ((file, "not valid YAML"), (tmp_path / "missing.yaml", "cannot read")):
        with pytest.raises(UsageError, match=message):
            read_class_names(path, ["a"])


def test_other_maps_are_refused():
    contents: list[tuple[object, str]] = [
        ([], "holds a list"),
        ({"a": {"x": "y"}, "z": "y"}, "mixes"),
        ({"c": {"x": "y"}}, "speaks of data c; there is a, b"),
        ({1: "x"}, "put numbers into quotes"),
    ]
    for content, message in contents:
        with pytest.raises(UsageError, match=message):
            resolve_class_names(content, ["a", "b"])
