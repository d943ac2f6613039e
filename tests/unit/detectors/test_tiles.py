"""Tiles: how an image is cut, and what several tiles saw is counted once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from detrkit.classes import ClassMap
from detrkit.detections import ImageDetections
from detrkit.detectors.detector import Detector
from detrkit.detectors.results import ResultsFile
from detrkit.detectors.tiles import Tiles, in_tiles, merge
from detrkit.errors import UsageError
from detrkit.preprocess import Preprocessing

SIZE = 32


class SquareStages:
    """Finds bright squares in an image that is resized to 32 pixels, if they are still 3 pixels wide there."""

    pads = True

    def __init__(self):
        self.network, self.device = nn.Identity(), torch.device("cpu")
        self.batches = []

    def resize(self, image):
        return Preprocessing(SIZE, SIZE, (), ()).resize(image)

    def preprocess(self, images):
        self.batches.append(len(images))
        return list(images)

    def forward(self, inputs):
        return inputs

    def postprocess(self, outputs, orig_sizes_hw):
        found = []
        for image, (height, width) in zip(outputs, orig_sizes_hw, strict=True):
            parts = ndimage.find_objects(ndimage.label(image[0].numpy() > 128)[0])
            boxes = [(x.start, y.start, x.stop, y.stop) for y, x in parts if x.stop - x.start >= 3]
            scale = (width / image.shape[2], height / image.shape[1]) * 2
            boxes = np.array(boxes, np.float32).reshape(-1, 4) * np.array(scale, np.float32)
            found.append(detections(boxes))
        return found


def detections(boxes, scores=None, class_ids=None):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    scores = np.full(len(boxes), 0.9, np.float32) if scores is None else np.array(scores, np.float32)
    return ImageDetections(boxes, scores, np.array(class_ids or [0] * len(boxes), np.int64))


def squares(corners, side, size_hw):
    image = np.zeros((*size_hw, 3), np.uint8)
    for x, y in corners:
        image[y : y + side, x : x + side] = 255
    return image


@pytest.fixture
def finder():
    return Detector(SquareStages(), ClassMap(("square",), (1,)))


@pytest.mark.parametrize("size_hw", [(20, 20), (32, 33), (65, 200), (97, 31)])
@pytest.mark.parametrize("tiles", [Tiles(32, 8), Tiles(32, 16), Tiles(32, 1, whole=False)])
def test_tiles_cover_the_image_and_an_object_no_larger_than_the_overlap_is_whole_in_one(tiles, size_hw):
    height, width = size_hw
    laid = tiles.lay(size_hw)
    assert (laid[-1] == (0, 0, width, height)) == (tiles.whole or len(laid) == 1)
    own = np.array(laid[: len(laid) - (tiles.whole and len(laid) > 1)])
    assert (own[:, 2:] - own[:, :2]).max() <= tiles.size
    side = min(tiles.overlap, height, width)
    for x in range(width - side + 1):
        for y in range(height - side + 1):
            assert ((own[:, :2] <= (x, y)) & (own[:, 2:] >= (x + side, y + side))).all(axis=1).any(), (x, y)


def test_small_objects_of_a_large_image_are_found_in_tiles_only_and_once(finder):
    corners = [(7 * i % 180, (53 * i) % 180) for i in range(0, 26, 3)]
    image = squares(corners, 4, (192, 192))
    assert len(finder.predict(image)) == 0
    tiled = in_tiles(finder, "32/8", batch_size=3)
    found = tiled.predict(image)
    assert sorted(map(tuple, found.xyxy[:, :2].tolist())) == sorted(corners)
    assert finder.stages.batches[1:] == [3] * 21 + [1, 1]  # 64 tiles, and the whole image
    assert "tiles of 32 pixels that share 8" in tiled.notes[0]
    assert tiled.settings != finder.settings


def test_a_large_object_is_found_once_by_the_pass_over_the_whole_image(finder):
    image = squares([(20, 30)], 100, (192, 192))
    [box] = in_tiles(finder, 32).predict(image).xyxy.tolist()
    assert box == pytest.approx([20, 30, 120, 130], abs=6)  # a pixel of the small image is 6 wide
    [box] = in_tiles(finder, "32/8/only").predict(image).xyxy.tolist()
    assert box == pytest.approx([20, 30, 120, 130], abs=2)  # put together from all tiles


def test_an_image_no_larger_than_a_tile_gives_the_same_to_the_last_digit(detector, make_image):
    images = [make_image(seed, size) for seed, size in enumerate([(40, 60), (60, 40), (40, 60)])]
    for batch_size in (1, 4):
        plain = detector.predict(images, threshold=0.0, batch_size=batch_size)
        tiled = in_tiles(detector, 60, batch_size).predict(images, threshold=0.0, batch_size=batch_size)
        for one, other in zip(plain, tiled, strict=True):
            assert np.array_equal(one.xyxy, other.xyxy)
            assert np.array_equal(one.confidence, other.confidence)


TWO = Tiles(100, 20, whole=False)  # of an image of 180 x 100: columns 0 to 100 and 80 to 180
ONE_OBJECT = [
    # whole in the overlap, both see it: the surer box
    ([(82, 10, 96, 30)], [(1, 10, 17, 31)], [(82, 10, 96, 30)]),
    # cut in the left tile, whole in the right one: the whole box, though its score is lower
    ([(88, 10, 100, 30)], [(8, 10, 60, 30)], [(88, 10, 140, 30)]),
    # cut in both: the box around the parts
    ([(40, 10, 100, 30)], [(0, 10, 60, 30)], [(40, 10, 140, 30)]),
    # side by side, the parts in the overlap differ: two objects, cut or not
    ([(40, 10, 100, 30)], [(0, 40, 60, 60)], [(40, 10, 100, 30), (80, 40, 140, 60)]),
    # two that overlap in one tile stay two, and only one of them is that of the other tile
    ([(82, 10, 96, 30), (83, 10, 97, 30)], [(2, 10, 16, 30)], [(82, 10, 96, 30), (83, 10, 97, 30)]),
    ([], [(50, 5, 60, 15)], [(130, 5, 140, 15)]),
]


@pytest.mark.parametrize(("left", "right", "expected"), ONE_OBJECT)
def test_what_two_tiles_saw_of_an_object_becomes_one_detection(left, right, expected):
    tiles = TWO.lay((100, 180))
    assert tiles == [(0, 0, 100, 100), (80, 0, 180, 100)]
    scores = [0.9 - 0.01 * i for i in range(len(left))], [0.8] * len(right)
    parts = [detections(boxes, of_it) for boxes, of_it in zip((left, right), scores, strict=True)]
    found = merge(parts, tiles, TWO, (100, 180))
    assert sorted(map(tuple, found.boxes_xyxy.tolist())) == sorted(expected)
    assert found.scores[0] == np.float32(0.9 if left else 0.8)
    assert (np.diff(found.scores) <= 0).all()


def test_detections_of_two_classes_stay_two():
    parts = [detections([(82, 10, 96, 30)]), detections([(2, 10, 16, 30)], class_ids=[1])]
    assert len(merge(parts, TWO.lay((100, 180)), TWO, (100, 180)).scores) == 2


def test_nothing_in_any_tile_is_nothing():
    tiles = Tiles(100, 20)
    laid = tiles.lay((100, 180))
    found = merge([detections([])] * len(laid), laid, tiles, (100, 180))
    assert (found.boxes_xyxy.shape, found.scores.shape) == ((0, 4), (0,))


@pytest.mark.parametrize("text", ["", "big", "640x640", "640/", "640/0", "640/400", "0", "640/128/whole", -3])
def test_tiles_that_cannot_be_are_refused(finder, text):
    with pytest.raises(UsageError, match="expected"):
        in_tiles(finder, text)


def test_forms_of_tiles():
    assert [Tiles.parse(form) for form in (640, "640/128", " 640/64/only", "640/only")] == [
        *(Tiles(640, 128),) * 2,
        Tiles(640, 64, whole=False),
        Tiles(640, 128, whole=False),
    ]
    assert str(Tiles(640, 64, whole=False)) == "640/64/only"


def test_a_file_of_detections_cannot_be_made_anew_in_tiles(tmp_path):
    (tmp_path / "found.json").write_text("[]")
    with pytest.raises(UsageError, match="give a model"):
        in_tiles(ResultsFile(tmp_path / "found.json"), 640)
