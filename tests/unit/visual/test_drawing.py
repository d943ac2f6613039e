"""Pictures of detections and of annotated objects."""

import numpy as np
import pytest
from PIL import Image

from detrkit.errors import UsageError
from detrkit.visual.drawing import class_palette, draw, draw_objects, label_texts, save_drawing, sv


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


def test_best_detection_lies_on_top():
    box = [100, 150, 300, 350]
    drawn = draw(np.zeros((500, 500, 3), np.uint8), detections([box, box], [3, 4], [0.9, 0.2]), labels=False)
    assert tuple(drawn[250, 100]) == color_of(3)


def test_no_detections_give_a_plain_copy_and_colours_stay():
    image = np.full((500, 500, 3), (200, 50, 10), np.uint8)
    assert draw(image, detections([[1, 1, 9, 9]]))[300, 300].tolist() == [200, 50, 10]
    drawn = draw(image, detections([]))
    assert np.array_equal(drawn, image)
    assert drawn is not image


def test_many_classes_and_boxes_outside_the_image_are_drawn():
    boxes = [[-50, -50, 20, 20], [400, 400, 900, 900], [10, 10, 10, 10], [600, 600, 700, 700]]
    drawn = draw(np.zeros((500, 500, 3), np.uint8), detections(boxes, class_ids=[0, 99, 1000, 24]))
    assert drawn[:25, :25].any()
    assert drawn[395:405, 420:].any()
    assert not drawn[200:300, 200:300].any()


def test_palette_is_dark_enough_for_white_text_and_stable():
    colors = [color_of(i) for i in range(24)]
    assert len(set(colors)) == 24
    assert color_of(24) == colors[0]
    for color in colors:
        red, green, blue = (np.array(color) / 255) ** 2.2
        assert 1.05 / (0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05) >= 3.4


def test_texts_name_the_class_and_the_score():
    found = detections([[0, 0, 1, 1]], scores=[0.934])
    assert label_texts(found) == ["cat 0.93"]
    found.data = {}
    assert label_texts(found) == ["0 0.93"]
    found.confidence = None
    assert label_texts(found) == ["0"]


def test_arrays_that_are_no_images_are_refused():
    with pytest.raises(UsageError, match=r"float64.*\[5, 5, 3\].*expected uint8"):
        draw(np.zeros((5, 5, 3)), detections([]))


def test_drawing_is_saved_into_a_new_folder(tmp_path):
    path = save_drawing(
        tmp_path / "out" / "a.jpg", np.zeros((500, 400, 3), np.uint8), detections([[1, 1, 99, 99]])
    )
    with Image.open(path) as image:
        assert image.size == (400, 500)


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


def test_crowd_regions_may_leave_the_image_or_be_empty():
    boxes = np.array([[-50, -50, 20, 700], [590, 10, 590, 300], [700, 700, 900, 900]], dtype=np.float32)
    drawn = draw_objects(np.zeros((500, 600, 3), np.uint8), boxes, np.arange(3), ["a", "b", "c"], np.ones(3, bool))
    assert drawn.shape == (500, 600, 3)
    assert drawn[100:400, :20].any()


def test_labels_of_unknown_origin_are_made_fit_to_be_drawn():
    box = np.array([[100, 150, 300, 350]], dtype=np.float32)
    image = np.zeros((500, 600, 3), np.uint8)
    hostile, clean = (draw_objects(image, box, np.array([2]), [text]) for text in ("a\ud800\tb", "a\ufffd b"))
    assert np.array_equal(hostile, clean)
