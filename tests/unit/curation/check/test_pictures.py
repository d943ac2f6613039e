from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance

from detrkit.curation.check.pictures import Objects, agreement, is_copy, read_thumbnail


def scene(piece: tuple[int, int] | None) -> Image.Image:
    """A board with one piece on it."""
    image = Image.new("RGB", (320, 240), "white")
    pen = ImageDraw.Draw(image)
    for row in range(6):
        for column in range(8):
            if (row + column) % 2:
                pen.rectangle((column * 40, row * 40, column * 40 + 39, row * 40 + 39), fill=(30, 90, 60))
    if piece is not None:
        pen.ellipse((piece[0], piece[1], piece[0] + 36, piece[1] + 36), fill=(200, 30, 30))
    return image


@pytest.fixture
def thumbnail(tmp_path):
    def read(image: Image.Image, **options):
        path = tmp_path / "image.jpg"
        image.save(path, **options)
        return read_thumbnail(path)

    return read


def test_copies_are_recognised(thumbnail):
    image = scene((60, 60))
    original = thumbnail(image, quality=95)
    assert is_copy(original, thumbnail(image, quality=40))
    assert is_copy(original, thumbnail(image.resize((160, 120)), quality=80))
    assert is_copy(original, thumbnail(ImageEnhance.Brightness(image).enhance(0.7)))


def test_another_piece_on_the_board_is_another_picture(thumbnail):
    assert not is_copy(thumbnail(scene((60, 60))), thumbnail(scene((220, 140))))
    assert not is_copy(thumbnail(scene((60, 60))), thumbnail(scene(None)))


def test_a_file_that_cannot_be_read_has_no_thumbnail(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"nothing")
    assert read_thumbnail(tmp_path / "a.jpg") is None


def objects(*boxes: tuple[float, float, float, float], names: str = "aaaa") -> Objects:
    return Objects(np.array(boxes).reshape(-1, 4), np.array(list(names[: len(boxes)]), dtype=object))


def test_objects_agree_by_class_place_and_size():
    one = objects((0.5, 0.5, 0.2, 0.2), (0.1, 0.1, 0.1, 0.1))
    assert agreement(one, objects((0.52, 0.5, 0.2, 0.19), (0.1, 0.1, 0.1, 0.1))) == 1
    assert agreement(one, objects((0.5, 0.5, 0.2, 0.2), (0.8, 0.1, 0.1, 0.1))) == 0.5
    assert agreement(one, objects((0.5, 0.5, 0.2, 0.2), (0.1, 0.1, 0.1, 0.1), names="ba")) == 0.5
    assert agreement(one, objects((0.5, 0.5, 0.6, 0.6))) == 0


def test_images_without_objects_say_nothing():
    assert agreement(objects(), objects((0.5, 0.5, 0.2, 0.2))) is None
    assert agreement(objects(), objects()) is None
