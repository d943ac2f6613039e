"""Matching holds against pycocotools' own, detection by detection, at every IoU threshold."""

from __future__ import annotations

import numpy as np
import pytest

from detrkit.evaluation.matching import IOU_THRESHOLDS, LEAST_IOU, Matches, box_iou

from .test_coco import evaluate, pycocotools_eval, random_case, written


def expected_matches(content, results, matches: Matches):
    """pycocotools' answer in our columns: object of each detection, detection of each object, crowd matches."""
    evaluation = pycocotools_eval(content, results)
    truth = matches.truth
    row_of_image = truth.row_by_image_id()
    class_of = {number: row for row, number in enumerate(truth.class_map.category_ids)}
    annotation_rows = {}
    for row in range(len(truth.image_ids)):  # the truth keeps the file's order within an image
        ours = np.flatnonzero(truth.image_rows == row)
        theirs = [a["id"] for a in content["annotations"] if row_of_image[a["image_id"]] == row]
        annotation_rows |= dict(zip(theirs, ours.tolist(), strict=True))
    matched = np.full(matches.matched.shape, -1)
    ignored = np.zeros(matches.ignored.shape, bool)
    found_by = np.full(matches.found_by.shape, -1)
    for image in evaluation.evalImgs:
        if image is None or image["aRng"] != [0, 1e10]:
            continue
        here = matches.found.image_rows == row_of_image[image["image_id"]]
        rows = np.flatnonzero(here & (matches.found.class_ids == class_of[image["category_id"]]))
        assert matches.found.scores[rows].tolist() == image["dtScores"]
        of_id = dict(zip(image["dtIds"], rows.tolist(), strict=True))
        for number, theirs in enumerate(image["dtMatches"]):
            for row, annotation in zip(rows, theirs, strict=True):
                matched[number, row] = annotation_rows[int(annotation)] if annotation else -1
        ignored[:, rows] = image["dtIgnore"]
        for number, theirs in enumerate(image["gtMatches"]):
            for annotation, crowd, detection in zip(image["gtIds"], image["gtIgnore"], theirs, strict=True):
                if detection and not crowd:
                    found_by[number, annotation_rows[annotation]] = of_id[int(detection)]
    return matched, ignored, found_by


@pytest.mark.parametrize(("seed", "options"), [(0, {}), (1, {"ties": False}), (2, {"classes": 2, "crowd": 0.4})])
def test_matches_equal_pycocotools(seed, options, tmp_path):
    content, detections = random_case(seed, **options)
    evaluator = evaluate(content, detections)
    matches = evaluator.matches()
    matched, ignored, found_by = expected_matches(content, written(evaluator, tmp_path), matches)
    assert (matched >= 0).sum() > 500
    assert ignored.any()
    np.testing.assert_array_equal(matches.matched, matched)
    np.testing.assert_array_equal(matches.ignored, ignored)
    np.testing.assert_array_equal(matches.found_by, found_by)


def test_of_objects_that_overlap_alike_pycocotools_choice_is_taken(tmp_path):
    content, detections = random_case(11, images=10, crowd=0.2)
    twice = [{**entry, "id": entry["id"] + 1000} for entry in content["annotations"]]
    content = {**content, "annotations": [*content["annotations"], *twice]}  # every object labelled twice
    evaluator = evaluate(content, detections)
    matches = evaluator.matches()
    matched, ignored, found_by = expected_matches(content, written(evaluator, tmp_path), matches)
    assert ((found_by >= 0).sum(1) > 20).any()
    np.testing.assert_array_equal(matches.matched, matched)
    np.testing.assert_array_equal(matches.ignored, ignored)
    np.testing.assert_array_equal(matches.found_by, found_by)


def test_chosen_images_leave_the_others_out():
    content, detections = random_case(5)
    evaluator = evaluate(content, detections)
    chosen = sorted(detections)[:7]
    some, every = evaluator.matches(chosen), evaluator.matches()
    here = np.isin(every.found.image_rows, some.rows)
    np.testing.assert_array_equal(some.found.scores, every.found.scores[here])
    np.testing.assert_array_equal(some.matched, every.matched[:, here])
    assert some.measured.sum() < every.measured.sum()
    assert (some.truth.image_ids[some.rows] == chosen).all()


def test_thresholds_are_those_of_pycocotools():
    content, detections = random_case(0, images=2)
    evaluation = pycocotools_eval(content, [])
    assert IOU_THRESHOLDS.tolist() == evaluation.params.iouThrs.tolist()
    assert detections


def test_without_detections_or_objects_nothing_is_matched():
    content, detections = random_case(6)
    assert evaluate(content, {}).matches().matched.shape == (10, 0)
    empty = {**content, "annotations": []}
    matches = evaluate(empty, detections).matches()
    assert (matches.matched == -1).all()
    assert not matches.ignored.any()
    assert matches.objects_by_class().tolist() == [0] * 5


def test_pairs_hold_every_overlap_of_an_image_whatever_the_class():
    content, detections = random_case(7, images=6)
    matches = evaluate(content, detections).matches()
    truth, found = matches.truth, matches.found
    expected = set()
    for detection in range(len(found)):
        for annotation in np.flatnonzero(truth.image_rows == found.image_rows[detection]):
            one = (found.boxes_xywh[[detection]], truth.boxes_xywh[[annotation]], truth.iscrowd[[annotation]])
            if box_iou(*one)[0] >= LEAST_IOU:
                expected.add((detection, int(annotation)))
    got = set(zip(matches.pairs.detections.tolist(), matches.pairs.objects.tolist(), strict=True))
    assert got == expected
    assert len(got) > 50


def test_pairs_do_not_depend_on_the_size_of_a_piece(monkeypatch):
    content, detections = random_case(8, images=6)
    whole = evaluate(content, detections).matches().pairs
    monkeypatch.setattr("detrkit.evaluation.matching._MOST_PAIRS", 17)
    pieces = evaluate(content, detections).matches().pairs
    np.testing.assert_array_equal(whole.detections, pieces.detections)
    np.testing.assert_array_equal(whole.objects, pieces.objects)
    np.testing.assert_array_equal(whole.iou, pieces.iou)
