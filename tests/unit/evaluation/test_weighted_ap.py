"""Weights of images give what COCO's evaluation gives for the images repeated."""

import numpy as np
import pytest

from detrkit.evaluation.weighted_ap import RECALLS, WeightedAP, mean_over_classes, recalls_reached

from .test_coco import evaluate, pycocotools_eval, random_case


def without_ties_in_an_image(detections, seed, levels):
    """Scores of one image all differ, those of different images often do not."""
    rng = np.random.default_rng(seed)
    return {
        image_id: found._replace(
            scores=np.sort(rng.permutation(levels)[: len(found.scores)] / levels)[::-1].astype(np.float32)
        )
        for image_id, found in detections.items()
    }


def repeated(content, detections, weights):
    """The data set with each image as often as its weight, copies next to each other in the order of ids."""
    images, annotations, found = [], [], {}
    for image, weight in zip(sorted(content["images"], key=lambda one: one["id"]), weights, strict=True):
        own = [one for one in content["annotations"] if one["image_id"] == image["id"]]
        for _ in range(int(weight)):
            new_id = len(images) + 1
            images.append({**image, "id": new_id})
            for one in own:
                annotations.append({**one, "id": len(annotations) + 1, "image_id": new_id})
            found[new_id] = detections[image["id"]]
    return {**content, "images": images, "annotations": annotations}, found


def coco_results(content, detections):
    return [
        {"image_id": image_id, "category_id": 3 * int(class_id) + 2, "score": float(score)}
        | {"bbox": [float(v) for v in (*box[:2], *(box[2:] - box[:2]))]}
        for image_id, found in detections.items()
        for box, score, class_id in zip(found.boxes_xyxy, found.scores, found.class_ids, strict=True)
    ]


def coco_values(content, detections):
    """pycocotools' AP, AP50, AP75 of each class ``[3, C]``, NaN where undefined, and of all together ``[3]``."""
    evaluation = pycocotools_eval(content, coco_results(content, detections))
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    by_class = np.stack([precision.mean((0, 1)), precision[0].mean(0), precision[5].mean(0)])
    return np.where(by_class < 0, np.nan, by_class), evaluation.stats[:3]


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("crowd", [0.0, 0.3])
def test_weights_are_repeated_images(ties, crowd):
    content, detections = random_case(3, images=12, classes=5, crowd=crowd)
    detections = without_ties_in_an_image(detections, 3, 40 if ties else 10**6)
    rng = np.random.default_rng(4)
    weights = np.stack([np.bincount(rng.integers(0, 12, 12), minlength=12) for _ in range(6)], axis=1)
    weights[:, 4] = 0
    weights[5, 4] = 5  # five times the same image
    measured = WeightedAP(evaluate(content, detections).matches()).measure(weights.astype(float))
    mean = mean_over_classes(measured)
    undefined = 0
    for number, column in enumerate(weights.T):
        by_class, stats = coco_values(*repeated(content, detections, column))
        np.testing.assert_allclose(measured[..., number], by_class, atol=1e-12)
        np.testing.assert_allclose(mean[:, number], stats, atol=1e-12)
        undefined += np.isnan(by_class[0]).sum()
    assert undefined > 6  # besides the class that never has an object, some are missing from some resamples


@pytest.mark.parametrize("seed", range(3))
def test_weights_of_one_give_the_values_of_the_evaluation(seed):
    content, detections = random_case(seed, images=30)
    evaluator = evaluate(content, detections)
    metrics, matches = evaluator.finish(), evaluator.matches()
    measured = WeightedAP(matches).measure(np.ones((30, 1)))
    for row, name in enumerate(("AP", "AP50", "AP75")):
        assert mean_over_classes(measured)[row, 0] == pytest.approx(metrics[name], abs=1e-12)
    for class_id, expected in enumerate(metrics.per_class):
        if expected.objects:
            assert measured[0, class_id, 0] == pytest.approx(expected.AP, abs=1e-12)
            assert measured[1, class_id, 0] == pytest.approx(expected.AP50, abs=1e-12)
        else:
            assert np.isnan(measured[:, class_id]).all()


def test_weights_of_none_and_one_choose_images():
    content, detections = random_case(7, images=20)
    evaluator = evaluate(content, detections)
    chosen = sorted(detections)[::3]
    weights = np.isin(evaluator.truth.image_ids, chosen).astype(float)[:, None]
    value = mean_over_classes(WeightedAP(evaluator.matches()).measure(weights))[0, 0]
    assert value == pytest.approx(evaluator.finish(chosen)["AP"], abs=1e-12)
    some = evaluator.matches(chosen)
    assert mean_over_classes(WeightedAP(some).measure(np.ones((len(chosen), 1))))[0, 0] == pytest.approx(value)


def test_recalls_are_compared_as_pycocotools_compares_them():
    """Every fraction of up to 300 objects, among them 0.57, which does not reach the threshold 57 * 0.01."""
    fractions = np.unique(np.concatenate([np.arange(n + 1) / n for n in range(1, 301)]))
    expected = np.searchsorted(RECALLS[1:], fractions, side="right")
    np.testing.assert_array_equal(recalls_reached(fractions), expected)
    assert recalls_reached(np.array([0.57])) == 56
