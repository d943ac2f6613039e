from __future__ import annotations

import pytest
import torch

from detrkit.classes import ClassMap
from detrkit.errors import DataError
from detrkit.types import Batch, GroundTruth


def test_category_ids_with_gaps_and_zero_become_contiguous():
    classes = ClassMap.from_categories([{"id": 7, "name": "b"}, {"id": 0, "name": "a"}, {"id": 90, "name": "c"}])
    assert classes.names == ("a", "b", "c")
    assert classes.category_ids == (0, 7, 90)
    assert (classes.logit_index, classes.num_labels) == ((0, 1, 2), 3)


def test_class_map_round_trip():
    classes = ClassMap(("a", "b"), (3, 9), logit_index=(3, 9), num_labels=91)
    assert ClassMap.from_dict(classes.to_dict()) == classes


@pytest.mark.parametrize(
    "arguments",
    [
        {"names": ("a",), "category_ids": (1, 2)},
        {"names": ("a", "b"), "category_ids": (1, 1)},
        {"names": ("a", "b"), "category_ids": (1, 2), "logit_index": (0, 0)},
        {"names": ("a", "b"), "category_ids": (1, 2), "logit_index": (0, 5), "num_labels": 3},
    ],
)
def test_class_maps_that_contradict_themselves_are_refused(arguments: dict):
    with pytest.raises(DataError):
        ClassMap(**arguments)


def test_a_repeated_name_maps_to_its_first_class():
    assert ClassMap(("a", "b", "a"), (1, 2, 3)).class_id_by_name() == {"a": 0, "b": 1}


def test_a_batch_knows_on_the_host_whether_it_is_padded():
    truth = GroundTruth(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), (0,))
    images, mask = torch.zeros(1, 3, 4, 6, dtype=torch.uint8), torch.zeros(1, 4, 6, dtype=torch.bool)
    assert not Batch(images, mask, truth, ((4, 6),)).is_padded
    assert Batch(images, mask, truth, ((4, 5),)).is_padded
