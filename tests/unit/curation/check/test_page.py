from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from detrkit.curation.check import examine
from detrkit.curation.check.page import write_check_page

EVIL = "<script>alert(1)</script>\u202e"


@pytest.fixture
def spoiled(shapes: Path, tmp_path: Path) -> Path:
    """A copy of the annotations, beside the images of the original, with several faults."""
    root = tmp_path / "<b>set</b>"
    (root / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        (root / split).symlink_to(shapes / split, target_is_directory=True)
        content = json.loads((shapes / "annotations" / f"instances_{split}.json").read_text())
        content["categories"][0]["name"] = EVIL
        if split == "train2017":
            content["annotations"][0]["bbox"][0] = 80
            content["annotations"][1]["category_id"] = 99
            content["annotations"][2]["category_id"] = content["categories"][0]["id"]
            content["annotations"].append({**content["annotations"][2], "id": 5000})
            content["images"][3]["file_name"] = "<img src=x onerror=alert(1)>.jpg"
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def test_the_page_names_every_finding_and_shows_pictures(spoiled, tmp_path):
    checked = examine(spoiled)
    assert checked.result.count("missing_image") == 1
    page = write_check_page(tmp_path / "page.html", checked).read_text()
    for finding in checked.result.findings:
        assert finding.kind in page
        assert finding.fault.advice.split(".")[0].replace("'", "&#39;") in page
    assert page.count("data:image/jpeg;base64,") >= 3
    assert len(page) < 15_000_000
    # names of classes and files are text, and nothing is fetched
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert "<b>set" not in page
    assert "\u202e" not in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert "default-src 'none'" in page


def test_a_set_that_cannot_be_read_still_has_a_page(tmp_path):
    (tmp_path / "train.json").write_text('{"images": [')
    page = write_check_page(tmp_path / "page.html", examine(tmp_path)).read_text()
    assert "annotations cannot be read" in page or "data set cannot be read" in page
