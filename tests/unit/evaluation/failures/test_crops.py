"""Pictures show the failure with its surroundings, in size and time that are bounded."""

from __future__ import annotations

import numpy as np
import pytest

from detrkit.evaluation.failures.crops import FOUND_COLOR, LABEL_COLOR, SIDE, Spot, draw_crop, draw_spots

from .cases import found_of, matched, truth_of

NO_BOXES = np.zeros((0, 4))


def box(*xywh: float) -> np.ndarray:
    return np.array([xywh], dtype=np.float64)


def has_color(picture: np.ndarray, color: tuple[int, int, int], tolerance: int = 12) -> np.ndarray:
    return (np.abs(picture.astype(int) - color) <= tolerance).all(axis=2)


def gray(height: int = 480, width: int = 640) -> np.ndarray:
    return np.full((height, width, 3), 128, np.uint8)


def test_the_longer_side_is_as_wide_as_pictures_are_and_the_place_fills_it():
    picture = draw_crop(gray(), Spot(0, box(200, 100, 200, 100), NO_BOXES, ""), NO_BOXES, NO_BOXES)
    assert max(picture.shape[:2]) == SIDE
    rows, columns = np.nonzero(has_color(picture, LABEL_COLOR))
    assert 0.5 < (columns.max() - columns.min()) / picture.shape[1] < 0.75
    assert rows.min() > 10


def test_labels_are_dashed_and_detections_are_not():
    spot = Spot(0, box(200, 100, 200, 100), box(230, 130, 200, 100), "")
    picture = draw_crop(gray(), spot, NO_BOXES, NO_BOXES)
    labels, found = has_color(picture, LABEL_COLOR), has_color(picture, FOUND_COLOR)
    top_of_label = labels[labels.any(axis=1).argmax() + 1]
    bottom_of_found = found[len(found) - 2 - found.any(axis=1)[::-1].argmax()]
    inside = slice(top_of_label.argmax(), len(top_of_label) - top_of_label[::-1].argmax())
    assert 0.4 < top_of_label[inside].mean() < 0.85
    inside = slice(bottom_of_found.argmax(), len(bottom_of_found) - bottom_of_found[::-1].argmax())
    assert bottom_of_found[inside].all()


def test_neighbours_are_drawn_fainter_than_what_the_picture_is_about():
    spot = Spot(0, box(200, 100, 100, 100), NO_BOXES, "")
    picture = draw_crop(gray(), spot, NO_BOXES, box(150, 60, 80, 80))
    assert not has_color(picture, FOUND_COLOR).any()
    mixed = tuple((128 * 145 + value * 110) // 255 for value in FOUND_COLOR)
    assert has_color(picture, mixed).sum() > 50


BOXES = [(300, 200, 0, 0), (0, 0, 640, 480), (-50, -50, 60, 60), (900, 900, 50, 50), (639.5, 479.5, 20, 20)]


@pytest.mark.parametrize("size", [(480, 640), (1, 1), (3, 400), (30, 20), (4000, 3000)])
def test_boxes_of_any_place_and_images_of_any_size_give_a_picture(size):
    for xywh in BOXES:
        for spot in (Spot(0, box(*xywh), NO_BOXES, ""), Spot(0, NO_BOXES, box(*xywh), "")):
            picture = draw_crop(gray(*size), spot, box(*xywh), box(*xywh))
            assert picture.dtype == np.uint8
            assert 1 <= min(picture.shape[:2]) <= max(picture.shape[:2]) <= SIDE


def test_an_image_is_read_once_however_many_spots_it_has():
    truth = truth_of((0, 0, (10.0, 10.0, 50.0, 50.0)), (2, 0, (10.0, 10.0, 50.0, 50.0)))
    matches = matched(truth, found_of((0, 0, 0.9, (10.0, 10.0, 50.0, 50.0))))
    read, looked, told = [], [], []

    def read_image(row):
        read.append(row)
        return None if row == 2 else gray()

    spots = [
        Spot(row, box(10, 10 + shift, 50, 50), NO_BOXES, f"{row} {shift}") for shift in (0, 9) for row in (0, 2)
    ]
    pictures, unreadable = draw_spots(
        spots,
        matches,
        0.5,
        read_image,
        look=lambda row, image: looked.append(row),
        also=[1, 0],
        progress=lambda done, total: told.append((done, total)),
    )
    assert read == [0, 1, 2]
    assert looked == [0, 1]
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert unreadable == 1
    assert [picture.caption for picture in pictures] == [spot.caption for spot in spots]
    assert [bool(picture.jpeg) for picture in pictures] == [True, False, True, False]
