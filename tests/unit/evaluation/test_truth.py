"""Ground truth from JSON and from the data room's index."""

import dataclasses
import json

import numpy as np
import pytest

from detrkit.classes import ClassMap
from detrkit.data.index import CocoIndex
from detrkit.errors import AnnotationError
from detrkit.evaluation.coco import ImageResults
from detrkit.evaluation.evaluator import CocoEvaluator, read_ground_truth, select_classes
from detrkit.evaluation.truth import ground_truth_from_index


def small_content():
    return {
        "images": [{"id": 9, "height": 20, "width": 30}, {"id": 4, "height": 10, "width": 10}],
        "categories": [{"id": 8, "name": "b"}, {"id": 2, "name": "a"}],
        "annotations": [
            {"id": 0, "image_id": 9, "category_id": 8, "bbox": [1, 2, 3, 4], "iscrowd": 1},
            {"id": 1, "image_id": 4, "category_id": 2, "bbox": [0.1, 0.2, 0.3, 0.4], "area": 7.5},
        ],
    }


def small_index():
    return CocoIndex(
        image_ids=np.array([9, 4]),
        name_bytes=np.zeros(0, np.uint8),
        name_offsets=np.zeros(3, np.int64),
        sizes_hw=np.array([[20, 30], [10, 10]]),
        offsets=np.array([0, 1, 2]),
        boxes_xyxy=np.array([[1, 2, 4, 6], [0.5, 0.25, 0.75, 1.0]]),
        labels=np.array([0, 1]),
        area=np.array([12.0, 7.5]),
        iscrowd=np.array([True, False]),
        annotation_ids=np.array([1, 2]),
        class_map=ClassMap(names=("b", "a"), category_ids=(8, 2)),
    )


@pytest.mark.parametrize(
    ("truth", "first_box"),
    [
        (read_ground_truth(small_content()), [0.1, 0.2, 0.3, 0.4]),
        (ground_truth_from_index(small_index()), [0.5, 0.25, 0.25, 0.75]),
    ],
    ids=["json", "index"],
)
def test_json_and_index_become_columns_sorted_by_image_id(truth, first_box):
    assert truth.image_ids.tolist() == [4, 9]
    assert truth.sizes_hw.tolist() == [[10, 10], [20, 30]]
    assert truth.image_rows.tolist() == [0, 1]
    assert (truth.class_map.names, truth.class_map.category_ids) == (("a", "b"), (2, 8))
    assert truth.class_ids.tolist() == [0, 1]
    assert truth.boxes_xywh.tolist() == [first_box, [1, 2, 3, 4]]
    assert truth.area.tolist() == [7.5, 12.0]
    assert truth.iscrowd.tolist() == [False, True]


def test_index_without_annotations_is_legal():
    index = small_index()
    names = ("boxes_xyxy", "labels", "area", "iscrowd", "annotation_ids")
    none = {name: getattr(index, name)[:0] for name in names}
    index = dataclasses.replace(index, offsets=np.zeros(3, np.int64), **none)
    metrics = CocoEvaluator(ground_truth_from_index(index)).finish()
    assert metrics.images == 2
    assert metrics["AP"] == -1


def test_annotations_of_unlisted_images_and_categories_do_not_count():
    content = small_content()
    content["annotations"] += [
        {"id": 5, "image_id": 77, "category_id": 2, "bbox": [1, 1, 1, 1]},
        {"id": 6, "image_id": 9, "category_id": 77, "bbox": [1, 1, 1, 1]},
    ]
    assert len(read_ground_truth(content).area) == 2


def test_ids_that_are_texts_stay_apart_and_are_written_as_they_are(tmp_path):
    content = small_content()
    names = {9: "1_11", 4: "111"}  # one number by int()
    for image in content["images"]:
        image["id"] = names[image["id"]]
    for entry in content["annotations"]:
        entry |= {"image_id": names[entry["image_id"]], "category_id": f"c{entry['category_id']}"}
    for category in content["categories"]:
        category["id"] = f"c{category['id']}"
    truth = read_ground_truth(content)
    assert truth.image_keys == [{"image_id": "111"}, {"image_id": "1_11"}]
    assert truth.sizes_hw.tolist() == [[10, 10], [20, 30]]
    assert truth.boxes_xywh.tolist() == [[0.1, 0.2, 0.3, 0.4], [1, 2, 3, 4]]
    evaluator = CocoEvaluator(truth)
    box = np.array([[0.1, 0.2, 0.3, 0.4]], np.float32)
    evaluator.add(int(truth.image_ids[0]), ImageResults(box, np.ones(1, np.float32), np.zeros(1, np.int64)))
    evaluator.write_results_json(tmp_path / "results.json")
    (result,) = json.loads((tmp_path / "results.json").read_text())
    assert (result["image_id"], result["category_id"]) == ("111", "c2")


@pytest.mark.parametrize("bbox", [[1, 2, 3], ["x", 1, 1, 1], None, [float("nan"), 1, 1, 1]])
def test_unusable_boxes_are_refused_and_say_what_to_run(bbox):
    content = small_content()
    content["annotations"][1]["bbox"] = bbox
    with pytest.raises(AnnotationError, match="detrkit data check"):
        read_ground_truth(content)


def test_files_that_are_not_coco_detection_json_are_refused(tmp_path):
    path = tmp_path / "annotations.json"
    with pytest.raises(AnnotationError, match="cannot read"):
        read_ground_truth(path)
    for text, message in (
        (json.dumps(small_content())[:-20], "not valid JSON"),
        ("[]", "list"),
        ('{"images": [], "categories": []}', "'annotations'"),
        ('{"images": [{}], "categories": [], "annotations": []}', r"images\[0\] has no id"),
    ):
        path.write_text(text)
        with pytest.raises(AnnotationError, match=message):
            read_ground_truth(path)


def test_a_restricted_truth_keeps_all_images_and_the_annotations_of_its_classes():
    truth = read_ground_truth(small_content())
    fewer = select_classes(truth, [1])
    assert fewer.image_ids.tolist() == [4, 9]
    assert fewer.class_map == ClassMap(("b",), (8,))
    assert (fewer.class_ids.tolist(), fewer.image_rows.tolist()) == ([0], [1])
    assert fewer.boxes_xywh.tolist() == [[1, 2, 3, 4]]
    assert fewer.iscrowd.tolist() == [True]
    assert select_classes(truth, [0, 1]) is truth
