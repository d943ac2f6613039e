"""Pictures of detections and of annotated objects."""

import numpy as np
import pytest

from detrkit.errors import UsageError
from detrkit.visual.drawing import class_palette, draw, draw_objects, sv


def detections(boxes, class_ids=None, scores=None):
    count = len(boxes)
    return sv.Detections(
        xyxy=np.array(boxes, dtype=np.float32).reshape(-1, 4),
        confidence=np.array(scores or [0.9] * count, dtype=np.float32),
        class_id=np.array(class_ids or [0] * count, dtype=np.int64),
        data={"class_name": np.array(["cat"] * count, dtype=np.str_)},
    )


def color_of(class_id):
    color = class_palette().by_idx(class_id)
    return (color.r, color.g, color.b)


def test_box_is_drawn_in_its_classs_colour_and_the_image_is_not_changed():
    image = np.zeros((500, 600, 3), np.uint8)
    drawn = draw(image, detections([[100, 150, 300, 350]], class_ids=[2]), labels=False)
    assert drawn.shape == image.shape
    assert tuple(drawn[250, 100]) == color_of(2)
    assert tuple(drawn[350, 200]) == color_of(2)
    assert not drawn[200:300, 150:250].any()
    assert not image.any()


def test_label_is_written_above_the_box_and_inside_the_image():
    image = np.zeros((500, 600, 3), np.uint8)
    for box in ([100, 150, 300, 350], [-5, -5, 300, 350], [560, 300, 599, 350]):
        found = detections([box])
        plain, labelled = draw(image, found, labels=False), draw(image, found)
        added = np.argwhere((plain != labelled).any(-1))
        assert added[:, 0].max() - added[:, 0].min() >= 10
        assert added[:, 1].max() - added[:, 1].min() >= 40
        assert (labelled > 200).all(-1).any(), "white text"


@pytest.mark.parametrize(("size", "factor"), [((100, 160), 3), ((479, 300), 2), ((480, 300), 1), ((1, 1), 480)])
def test_small_images_are_enlarged_by_a_whole_factor_with_their_boxes(size, factor):
    box = [0, 0, size[1] // 2, size[0] // 2]
    drawn = draw(np.zeros((*size, 3), np.uint8), detections([box], class_ids=[1]), labels=False)
    assert drawn.shape == (size[0] * factor, size[1] * factor, 3)
    if size[0] > 1:
        assert tuple(drawn[factor * size[0] // 2 - 10, factor * (size[1] // 2)]) == color_of(1)


def test_no_detections_give_a_plain_copy_and_colours_stay():
    image = np.full((500, 500, 3), (200, 50, 10), np.uint8)
    assert draw(image, detections([[1, 1, 9, 9]]))[300, 300].tolist() == [200, 50, 10]
    drawn = draw(image, detections([]))
    assert np.array_equal(drawn, image)
    assert drawn is not image


def test_arrays_that_are_no_images_are_refused():
    with pytest.raises(UsageError, match=r"float64.*\[5, 5, 3\].*expected uint8"):
        draw(np.zeros((5, 5, 3)), detections([]))


def test_a_crowd_region_is_hatched_and_its_outline_broken():
    image = np.zeros((500, 600, 3), np.uint8)
    boxes = np.array([[100, 100, 300, 300], [350, 100, 550, 300]], dtype=np.float32)
    drawn = draw_objects(image, boxes, np.array([1, 1]), crowd=np.array([False, True]))
    plain_edge, crowd_edge = drawn[100, 105:295], drawn[100, 355:545]
    assert plain_edge.any(axis=-1).all()
    assert 0.3 < crowd_edge.any(axis=-1).mean() < 0.8
    assert not drawn[120:280, 120:280].any()
    assert 0.05 < drawn[120:280, 370:530].any(axis=-1).mean() < 0.3
    assert not image.any()


def test_labels_of_unknown_origin_are_made_fit_to_be_drawn():
    box = np.array([[100, 150, 300, 350]], dtype=np.float32)
    image = np.zeros((500, 600, 3), np.uint8)
    hostile, clean = (draw_objects(image, box, np.array([2]), [text]) for text in ("a\ud800\tb", "a\ufffd b"))
    assert np.array_equal(hostile, clean)
