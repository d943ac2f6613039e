"""The table of published results says what the presets say, and what can be counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from detrkit.families.presets import PRESETS

PAGE = Path(__file__).parents[3] / "docs" / "published.md"
PUBLISHED = {name: preset for name, preset in PRESETS.items() if preset.published}


def table() -> dict[str, list[str]]:
    rows = [
        line.strip("| ").split(" | ") for line in PAGE.read_text(encoding="utf-8").splitlines() if "| `" in line
    ]
    return {row[0].strip("`"): [cell.strip("`") for cell in row[1:]] for row in rows}


def test_every_published_model_is_in_the_table_and_no_other():
    assert list(table()) == list(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_row_of_a_model_is_what_its_preset_says(name: str):
    preset = PRESETS[name]
    assert preset.published is not None
    ap, file, hub_id, params, *_ = table()[name]
    assert float(ap) == preset.published.box_ap
    assert file == (preset.published.url.rpartition("/")[2] or "-")
    assert hub_id == preset.published.hub_id
    assert float(params) == preset.params_m
