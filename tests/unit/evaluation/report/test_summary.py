"""summary.md."""

from __future__ import annotations

from detrkit.evaluation.report import errors_table, metrics_table
from detrkit.evaluation.report.summary import summarize


def test_headline_numbers_classes_and_errors_are_there(plain):
    text = summarize(plain)
    low, high = plain.intervals.values["AP"].low, plain.intervals.values["AP"].high
    assert text.startswith(f"## AP {100 * plain['AP']:.1f} ({100 * low:.1f} to {100 * high:.1f})\n")
    assert metrics_table(plain.metrics, plain.intervals).markdown() in text
    assert errors_table(plain.errors, plain.score).markdown() in text
    assert all(f"`{name}`" in text for name in plain.class_names)
    assert "[report.html](report.html)" in text
    assert "10.0 ms median" in text


def test_hostile_names_reach_the_summary_harmless(hostile):
    text = summarize(hostile)
    for bait in ("<script", "<img", "](http", "@someone", "\u202e", "[link]"):
        assert bait not in text
