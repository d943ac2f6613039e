"""A report of COCO's size."""

from __future__ import annotations

import numpy as np
import pytest

from detrkit.evaluation.analysis import analyze
from detrkit.evaluation.report.page import write_report
from tests.unit.evaluation.report.simulated import detected, generated

MOST_BYTES = 15e6


@pytest.mark.slow
def test_the_page_of_5000_images_is_small_enough_to_mail(tmp_path):
    # the worst that JPEG can meet
    noise = np.random.default_rng(0).integers(0, 255, (600, 600, 3), dtype=np.uint8)
    content = generated(images=5000, classes=80)
    names = [entry["file_name"] for entry in content["images"]]
    evaluator = detected(content, clutter=95)
    evaluation = analyze(evaluator, resamples=10, file_names=names, read_image=lambda _row: noise)
    path = write_report(tmp_path / "report.html", evaluation)
    assert path.stat().st_size < MOST_BYTES
    assert path.read_text(encoding="utf-8").count("<img") > 100
