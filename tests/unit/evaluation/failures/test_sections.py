"""What the page says of failures, with names that try to be more than text."""

from __future__ import annotations

import numpy as np
import pytest

from detrkit.evaluation.failures import KINDS, failure_sections
from detrkit.visual.page import render_page

from .cases import failures_of, found_of, generated_truth, simulated_detector, with_label_errors

TITLES = ["Failures", "What failure goes with", "Images, worst first", "Labels to check"]


def page_of(failures) -> str:
    return render_page("title", "", failure_sections(failures))


def gray(row: int) -> np.ndarray:
    return np.full((480, 640, 3), 120, np.uint8)


@pytest.fixture(scope="module")
def failures():
    plain = generated_truth(0, images=80)
    return failures_of(with_label_errors(plain).truth, simulated_detector(plain), read_image=gray)


def test_there_are_four_sections_with_pictures_and_tables(failures):
    sections = failure_sections(failures)
    assert [section.title for section in sections] == TITLES
    page = page_of(failures)
    assert page.count("<img ") == len(failures.pictures) + len(failures.issue_pictures) > 60
    assert f"The worst 80 of {len(failures.images)} images" in page
    for kind in KINDS:
        assert f'<th scope="row" class="text">{kind}</th>' in page


def test_without_pictures_the_worst_failures_are_a_table(failures):
    found = failures_of(failures.matches.truth, failures.matches.found)
    page = page_of(found)
    assert "<img " not in page
    assert "The worst failures" in page
    assert found.describe(found.worst(1)[0]) in page
    assert "were not measured" in page


def test_a_poor_model_is_said_to_be_a_poor_judge():
    truth = generated_truth(0, images=60)
    clutter = [(row, 0, 0.9, (20.0 * k, 400.0, 15.0, 15.0)) for row in range(60) for k in range(12)]
    assert "too often to be a good judge" in page_of(failures_of(truth, found_of(*clutter)))
    assert "too often to be a good judge" not in page_of(failures_of(truth, simulated_detector(truth)))
