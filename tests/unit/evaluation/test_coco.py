"""CocoEvaluator against pycocotools, on random cases and on real annotations."""

import contextlib
import copy
import io
import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detrkit.classes import ClassMap, match_classes
from detrkit.errors import DataError, UsageError
from detrkit.evaluation.coco import METRIC_NAMES
from detrkit.evaluation.evaluator import CocoEvaluator
from detrkit.types import ImageDetections

REAL = ["coco_mini/annotations/instances_val2017.json", "bccd_voc/coco/instances_val.json"]


def random_case(seed, images=25, classes=5, per_image=30, crowd=0.1, ties=True):
    """A data set with gaps in its ids, and detections by image id with class ids."""
    rng = np.random.default_rng(seed)
    content = {
        "images": [{"id": 1000 - 7 * i, "height": 480, "width": 640} for i in range(images)],
        "categories": [{"id": 3 * i + 2, "name": f"class {i}"} for i in range(classes)],
        "annotations": [],
    }
    detections = {}
    for image in content["images"]:
        boxes, class_ids = [], []
        for _ in range(rng.integers(0, 12)):
            size = rng.choice([10.0, 60.0, 200.0]) * rng.uniform(0.8, 1.3, 2)
            box = [round(float(v), 2) for v in (*rng.uniform(0, 300, 2), *size)]
            class_id = int(rng.integers(0, classes - 1))  # the last class never has an object
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": image["id"],
                    "category_id": 3 * class_id + 2,
                    "bbox": box,
                    "area": box[2] * box[3] * 0.8,
                    "iscrowd": int(rng.random() < crowd),
                }
            )
            boxes.append(box)
            class_ids.append(class_id)
        picks = rng.integers(0, max(len(boxes), 1), per_image)
        found = np.array(boxes or [[5, 5, 50, 50]])[picks] + rng.normal(0, 3, (per_image, 4))
        found[:, 2:] = found[:, :2] + np.maximum(found[:, 2:], 1)
        labels = np.where(rng.random(per_image) < 0.7, np.array(class_ids or [0])[picks], rng.integers(0, classes))
        scores = rng.random(per_image)
        scores = np.round(scores, 1) if ties else scores
        order = np.argsort(-scores, kind="stable")
        detections[image["id"]] = ImageDetections(
            found[order].astype(np.float32), scores[order].astype(np.float32), labels[order].astype(np.int64)
        )
    return content, detections


def jittered_truth(evaluator, seed=0):
    """Each annotated object found twice, a few pixels off, some with a wrong class."""
    rng = np.random.default_rng(seed)
    truth = evaluator.truth
    for row, image_id in enumerate(truth.image_ids.tolist()):
        here = truth.image_rows == row
        boxes = np.tile(truth.boxes_xywh[here], (2, 1))
        boxes[:, 2:] += boxes[:, :2]
        class_ids = np.tile(truth.class_ids[here], 2)
        wrong = rng.random(len(class_ids)) < 0.2
        class_ids = np.where(wrong, rng.integers(0, len(truth.class_map), len(class_ids)), class_ids)
        scores = np.round(rng.random(len(class_ids)), 2).astype(np.float32)
        noisy = (boxes + rng.normal(0, 2, boxes.shape)).astype(np.float32)
        evaluator.add(image_id, ImageDetections(noisy, scores, class_ids))


def pycocotools_eval(content, results, image_ids=None, max_dets=(1, 10, 100)):
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(content)
        truth.createIndex()
        if results:
            found = truth.loadRes(copy.deepcopy(results))
        else:
            found = COCO()
            found.dataset = {**truth.dataset, "annotations": []}
            found.createIndex()
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.params.maxDets = list(max_dets)
        if image_ids is not None:
            evaluation.params.imgIds = list(image_ids)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def evaluate(content, detections, **options):
    evaluator = CocoEvaluator(content, **options)
    for image_id, found in detections.items():
        evaluator.add(image_id, found)
    return evaluator


def written(evaluator, tmp_path):
    evaluator.write_results_json(tmp_path / "results.json")
    return json.loads((tmp_path / "results.json").read_text())


@pytest.mark.parametrize(
    "options",
    [{}, {"ties": False}, {"crowd": 0.6}, {"classes": 2, "per_image": 300, "images": 4}, {"images": 1}],
    ids=str,
)
@pytest.mark.parametrize("seed", [0, 1])
def test_metrics_equal_pycocotools_to_the_last_digit(seed, options, tmp_path):
    content, detections = random_case(seed, **options)
    evaluator = evaluate(content, detections)
    metrics = evaluator.finish()
    reference = pycocotools_eval(content, written(evaluator, tmp_path))
    assert [metrics[name] for name in METRIC_NAMES] == reference.stats.tolist()
    precision = reference.eval["precision"]
    for class_id, entry in enumerate(metrics.per_class):
        values = precision[:, :, class_id, 0, 2]
        defined = values[values > -1]
        assert pytest.approx(np.mean(defined) if defined.size else -1, abs=0) == entry.AP
        assert entry.category_id == 3 * class_id + 2


@pytest.mark.parametrize("name", REAL)
def test_real_annotations_equal_pycocotools_to_the_last_digit(name, shared_data, tmp_path):
    path = shared_data / name
    evaluator = CocoEvaluator(path)
    jittered_truth(evaluator)
    metrics = evaluator.finish()
    reference = pycocotools_eval(json.loads(path.read_text()), written(evaluator, tmp_path))
    assert [metrics[name] for name in METRIC_NAMES] == reference.stats.tolist()
    assert 0.1 < metrics["AP"] < 0.9


def perfect(content):
    """Every object found, and nothing else."""
    evaluator = CocoEvaluator(content)
    truth = evaluator.truth
    for row, image_id in enumerate(truth.image_ids.tolist()):
        here = truth.image_rows == row
        boxes = truth.boxes_xywh[here].copy()
        boxes[:, 2:] += boxes[:, :2]
        evaluator.add(image_id, ImageDetections(boxes, np.ones(len(boxes)), truth.class_ids[here]))
    return evaluator


@pytest.mark.parametrize("first_id", [1, 0])  # pycocotools takes an annotation of id 0 for never found
def test_perfect_detections_have_ap_one(first_id):
    content, _ = random_case(3, crowd=0)
    for number, annotation in enumerate(content["annotations"], start=first_id):
        annotation["id"] = number
    metrics = perfect(content).finish()
    assert metrics["AP"] == pytest.approx(1.0)
    assert metrics["AR100"] == 1.0


def test_an_image_never_added_counts_as_missed():
    content, detections = random_case(2)
    some = dict(list(detections.items())[:10])
    evaluator = evaluate(content, some)
    everything, added = evaluator.finish(), evaluator.finish("added")
    assert everything.images == len(content["images"])
    assert added.images == 10
    assert added["AR100"] > everything["AR100"]
    chosen = evaluator.finish(list(some))
    assert chosen.values == added.values


def test_chosen_images_equal_pycocotools_on_the_same_images(tmp_path):
    content, detections = random_case(4)
    evaluator = evaluate(content, detections)
    image_ids = [image["id"] for image in content["images"]][3:9]
    metrics = evaluator.finish(image_ids)
    reference = pycocotools_eval(content, written(evaluator, tmp_path), image_ids)
    assert [metrics[name] for name in METRIC_NAMES] == reference.stats.tolist()
    assert metrics.images == 6
    assert metrics.detections == sum(len(detections[image_id].scores) for image_id in image_ids)


@pytest.mark.parametrize("limit", [1, 5, 10, 50, 300])
def test_max_detections_limits_each_image_and_class(limit, tmp_path):
    content, detections = random_case(5, images=5, classes=2, per_image=300)
    evaluator = evaluate(content, detections, max_detections=limit)
    metrics = evaluator.finish()
    reference = pycocotools_eval(content, written(evaluator, tmp_path), max_dets=(1, 10, limit))
    values = reference.eval["precision"][:, :, :, 0, reference.params.maxDets.index(limit)]
    assert metrics["AP"] == np.mean(values[values > -1])
    assert metrics.max_detections == limit


def test_order_of_adding_images_does_not_matter(tmp_path):
    content, detections = random_case(6)
    one, other = evaluate(content, detections), evaluate(content, dict(reversed(detections.items())))
    assert one.finish().values == other.finish().values
    assert written(one, tmp_path) == written(other, tmp_path)


def test_huge_image_ids_survive():
    content, detections = random_case(7)
    offset = 2**62
    plain = evaluate(content, detections).finish()
    for image in content["images"]:
        image["id"] += offset
    for annotation in content["annotations"]:
        annotation["image_id"] += offset
    huge = evaluate(content, {image_id + offset: found for image_id, found in detections.items()}).finish()
    assert huge.values == plain.values


def test_class_ids_are_matched_by_name_whatever_the_ids():
    content, detections = random_case(9)
    names = tuple(category["name"] for category in content["categories"])
    model_map = ClassMap(names=(*names[::-1], "unicorn"), category_ids=tuple(range(len(names) + 1)))
    renumbered = {
        image_id: found._replace(class_ids=len(names) - 1 - found.class_ids)
        for image_id, found in detections.items()
    }
    plain = evaluate(content, detections).finish()
    matched = evaluate(content, renumbered, class_map=model_map).finish()
    assert matched.values == plain.values
    assert matched.unmatched_classes == ("unicorn",)


def test_detections_of_unmatched_classes_are_neither_measured_nor_written(tmp_path):
    content, _ = random_case(9)
    class_map = ClassMap(names=("class 0", "unicorn"), category_ids=(2, 5))
    image_id = content["images"][0]["id"]
    found = ImageDetections(np.ones((2, 4)), np.ones(2), np.array([0, 1]))
    evaluator = CocoEvaluator(content, class_map)
    evaluator.add(image_id, found)
    assert evaluator.finish().detections == 1
    assert [entry["category_id"] for entry in written(evaluator, tmp_path)] == [2]


def test_repeated_names_are_told_apart_by_category_id():
    twice = ClassMap(names=("pot", "pot", "cat"), category_ids=(7, 3, 5))
    data = ClassMap(names=("pot", "cat", "pot"), category_ids=(3, 5, 7))
    assert match_classes(twice, data).tolist() == [2, 0, 1]


def test_unknown_and_repeated_images_are_refused():
    content, detections = random_case(0)
    evaluator = evaluate(content, detections)
    image_id, found = next(iter(detections.items()))
    with pytest.raises(DataError, match="twice"):
        evaluator.add(image_id, found)
    with pytest.raises(DataError, match="image id 5 is not"):
        evaluator.add(5, found)
    for wrong in (
        found._replace(scores=found.scores * np.nan),
        found._replace(boxes_xyxy=found.boxes_xyxy * np.inf),
    ):
        with pytest.raises(DataError, match=f"image id {image_id} hold NaN or infinity"):
            CocoEvaluator(content).add(image_id, wrong)
    with pytest.raises(DataError, match=r"\[5\]"):
        evaluator.finish([image_id, 5])
    with pytest.raises(DataError, match="no images"):
        CocoEvaluator(content).finish("added")
    with pytest.raises(UsageError, match="max_detections"):
        CocoEvaluator(content, max_detections=0)


def test_results_file_has_the_data_sets_ids_and_float32_boxes(tmp_path):
    content, _ = random_case(0)
    image_id = content["images"][0]["id"]
    evaluator = CocoEvaluator(content)
    boxes = np.array([[0.1, 0.2, 10.3, 20.4]], dtype=np.float32)
    evaluator.add(image_id, ImageDetections(boxes, np.array([0.7]), np.array([1])))
    assert evaluator.write_results_json(tmp_path / "new" / "results.json") == 1
    (entry,) = json.loads((tmp_path / "new" / "results.json").read_text())
    assert entry["image_id"] == image_id
    assert entry["category_id"] == 5
    assert entry["score"] == float(np.float32(0.7))
    assert entry["bbox"] == [float(v) for v in (*boxes[0, :2], *(boxes[0, 2:] - boxes[0, :2]))]
