from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

from detrkit.data.box_formats import from_xywh, judge, to_xywh

HEIGHT, WIDTH = 480, 640
FORMATS = ("xywh", "xyxy", "cxcywh")


class Judged(NamedTuple):
    xywh: np.ndarray
    fault: np.ndarray


def random_boxes(count: int = 200, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    size = random.uniform(10, 200, (count, 2))
    corner = random.uniform(0, 1, (count, 2)) * (np.array([WIDTH, HEIGHT]) - size)
    return np.concatenate([corner, size], axis=1)


def judged(boxes, native="xywh", is_normalised=False, area=None, masks=None, images=None):
    count = len(boxes)
    return Judged(
        *judge(
            boxes,
            np.tile([HEIGHT, WIDTH], (count, 1)),
            np.arange(count) // 4 if images is None else images,
            native,
            is_normalised,
            np.full(count, np.nan) if area is None else area,
            masks,
        )
    )


@pytest.mark.parametrize("native", FORMATS)
@pytest.mark.parametrize("written", FORMATS)
def test_a_whole_set_in_another_format_is_recognised(native, written):
    boxes = random_boxes()
    misread = to_xywh(from_xywh(boxes, written), native)
    found = judged(misread, native, is_normalised=native == "cxcywh")
    assert set(found.fault) == {"" if native == written else f"box_{written}"}
    assert np.allclose(found.xywh, boxes, rtol=0, atol=0 if native == written == "xywh" else 1e-9)


def test_odd_boxes_are_not_taken_for_another_format():
    random = np.random.default_rng(0)
    corner = random.uniform(10, 60, (40, 2))
    large = np.concatenate([corner, np.array([WIDTH, HEIGHT]) - corner - random.uniform(-2, 40, (40, 2))], axis=1)
    assert not (judged(large, images=np.arange(40)).fault != "").any(), "one large object an image"
    sloppy = random_boxes()
    sloppy[::5, 0] = WIDTH - sloppy[::5, 2] * 0.7
    sloppy[1::5, 1] = -sloppy[1::5, 3] * 0.3
    assert not (judged(sloppy).fault != "").any(), "over the edge"
    speck = random_boxes()
    speck[0] = [0, 0, 1, 1]
    assert judged(speck).fault[0] == "", "one pixel in the corner, not normalised"
    assert len(judged(np.zeros((0, 4))).fault) == 0
    assert judged(np.array([[10.0, 10, 50, 50]])).fault.tolist() == [""]


def test_a_single_box_as_corners_is_found_where_it_leaves_the_image():
    boxes = random_boxes()
    boxes[7] = [400, 300, 600, 420]
    found = judged(boxes)
    assert np.flatnonzero(found.fault != "").tolist() == [7]
    assert found.fault[7] == "box_xyxy"
    assert found.xywh[7].tolist() == [400, 300, 200, 120]


def test_masks_decide_where_they_are_at_hand():
    boxes = random_boxes()
    masks = from_xywh(boxes, "xyxy")
    misread = boxes.copy()
    misread[3], misread[9] = from_xywh(boxes, "xyxy")[3], from_xywh(boxes, "cxcywh")[9]
    found = judged(misread, masks=masks)
    assert {row: found.fault[row] for row in np.flatnonzero(found.fault != "")} == {3: "box_xyxy", 9: "box_cxcywh"}
    assert np.allclose(found.xywh, boxes)


@pytest.mark.parametrize("written", FORMATS)
def test_normalised_boxes_are_scaled_in_whatever_format_they_are(written):
    boxes = random_boxes()
    numbers = from_xywh(boxes, written) / [WIDTH, HEIGHT, WIDTH, HEIGHT]
    found = judged(numbers)
    assert set(found.fault) == {"box_normalised"}
    assert np.allclose(found.xywh, boxes)
