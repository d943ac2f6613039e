from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.overfit import overfit


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_detr_r18_learns_eight_real_images_by_heart(shared_data: Path):
    assert overfit(shared_data / "coco_mini")["AP50"] >= 0.9


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_small_detr_with_masks_learns_eight_real_panoptic_images_by_heart(shared_data: Path):
    assert overfit(shared_data / "coco_panoptic_yolo", panoptic=True)["PQ"] >= 0.8
