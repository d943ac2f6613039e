"""On which classes detectors are compared."""

from __future__ import annotations

from typing import Any

import pytest

from detrkit.classes import ClassMap
from detrkit.comparison.classes import choose_classes
from detrkit.errors import DataError
from detrkit.evaluation.truth import CocoTruth, ground_truth_from_index
from tests.unit.comparison.contenders import write_data
from tests.unit.detectors.splits import split_of


class Named:
    """Something with a name and classes."""

    def __init__(self, name: str, *classes: str):
        self.name = name
        self.class_map = ClassMap(classes, tuple(range(len(classes))))


def subjects(*named: Named) -> Any:
    return named


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> CocoTruth:
    return ground_truth_from_index(split_of(write_data(tmp_path_factory.mktemp("data"))).index)


def test_detectors_of_all_classes_are_compared_on_the_annotations_as_they_are(truth: CocoTruth):
    both = subjects(Named("a", "bird", "cat", "dog", "fish"), Named("b", "cat", "dog", "bird"))
    chosen = choose_classes(both, truth, "shared")
    assert chosen.truth is truth
    assert chosen.lines(["a", "b"]) == []


def test_shared_classes_are_those_that_all_of_them_and_the_data_know(truth: CocoTruth):
    both = subjects(Named("a", "dog", "bird", "fish"), Named("b", "cat", "bird", "dog"))
    chosen = choose_classes(both, truth, "shared")
    assert chosen.truth.class_map.names == ("dog", "bird")
    assert chosen.truth.class_map.category_ids == (3, 9)
    assert chosen.left_out == ("cat",)
    (line,) = chosen.lines(["a", "b"])
    assert line == "compared on the 2 classes that all of them know; 1 of the data set are left out: cat"


def test_on_all_classes_it_is_said_who_does_not_know_which(truth: CocoTruth):
    both = subjects(Named("a", "dog"), Named("b", "cat", "bird", "dog"))
    chosen = choose_classes(both, truth, "all")
    assert chosen.truth is truth
    assert chosen.lines(["a", "b"]) == [
        "a does not know 2 of the 3 classes (cat, bird); their objects count as missed"
    ]


def test_detectors_without_a_common_class_are_an_error_that_says_what_each_knows(truth: CocoTruth):
    both = subjects(Named("a", "dog"), Named("b", "cat"))
    with pytest.raises(
        DataError, match=r"no class that all of them know \(a knows dog; b knows cat\).*--classes all"
    ):
        choose_classes(both, truth, "shared")


def test_a_detector_without_any_class_of_the_data_is_named(truth: CocoTruth):
    with pytest.raises(DataError, match=r"^b: no class of the model is in the data set"):
        choose_classes(subjects(Named("a", "dog"), Named("b", "fish")), truth, "all")
