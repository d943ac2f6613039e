"""Everything an evaluation tells, put together."""

from __future__ import annotations

import numpy as np
import pytest

from detrkit.errors import DataError, UsageError
from detrkit.evaluation.analysis import DEFAULT_SCORE, Origin, analyze
from detrkit.evaluation.evaluator import CocoEvaluator
from tests.unit.evaluation.report.simulated import detected, generated


@pytest.fixture(scope="module")
def evaluator():
    return detected(generated())


def test_parts_agree_with_each_other(evaluator):
    evaluation = analyze(evaluator, resamples=30)
    assert evaluation.intervals.values["AP"].value == pytest.approx(evaluation["AP"])
    assert evaluation.intervals.resamples == 30
    assert evaluation.errors.ap50 == pytest.approx(evaluation["AP50"])
    assert evaluation.score == evaluation.curves.best_score[0] == evaluation.failures.score
    assert evaluation.confusion.score == evaluation.score
    above = evaluation.errors.counts_above(evaluation.score)
    assert {kind: evaluation.failures.counts[kind] for kind in ("background", "duplicate")} == {
        kind: above[kind] for kind in ("background", "duplicate")
    }
    assert evaluation.confusion.matrix[:-1].sum() == evaluation.metrics.objects
    assert sum(evaluation.objects_by_size().values()) == evaluation.metrics.objects
    assert evaluation.overlaps.histogram.sum() == evaluation.matches.correct[0].sum()


def test_explanations_and_intervals_can_be_left_out(evaluator):
    numbers = analyze(evaluator, explain=False, resamples=0)
    parts = ("intervals", "errors", "curves", "overlaps", "confusion", "calibration", "failures", "latency")
    assert [getattr(numbers, name) for name in parts] == [None] * len(parts)
    assert numbers["AP"] > 0.1
    assert numbers.score == DEFAULT_SCORE


def test_some_images_alone_can_be_measured(evaluator):
    image_ids = evaluator.truth.image_ids[:10].tolist()
    evaluation = analyze(evaluator, resamples=0, image_ids=image_ids)
    assert evaluation.values == evaluator.finish(image_ids).values
    assert evaluation.metrics.images == len(evaluation.failures.images) == 10


def test_progress_tells_what_is_being_done(evaluator):
    told = []
    analyze(
        evaluator,
        resamples=20,
        read_image=lambda _row: np.zeros((240, 320, 3), np.uint8),
        progress=lambda *step: told.append(step),
    )
    assert {what for what, _, _ in told} == {"resampling", "looking at failures"}
    assert ("resampling", 20, 20) in told
    assert all(done <= total for _, done, total in told)


def test_impossible_questions_are_refused(evaluator):
    for resamples in (-1, 3):
        with pytest.raises(UsageError, match=f"resamples is {resamples}, expected 0"):
            analyze(evaluator, resamples=resamples)
    with pytest.raises(DataError, match="no images"):
        analyze(CocoEvaluator(generated(images=0)))


def test_provenance_says_what_the_annotations_were(tmp_path):
    file = tmp_path / "instances.json"
    file.write_text("{}")
    known = Origin(annotations=file, settings={"precision": "32"}).provenance()
    assert known["annotations_sha256"].startswith("44136fa355b3678a")
    assert known["settings"] == {"precision": "32"}
    assert Origin(annotations=tmp_path).provenance()["annotations_sha256"] is None  # YOLO has no single file
