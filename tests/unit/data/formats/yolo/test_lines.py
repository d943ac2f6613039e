"""What the numbers of YOLO lines mean is decided for a whole split, and never makes other boxes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from detrkit.data.formats.yolo.lines import boxes_of, find_meanings, split_numbers

Rows = np.ndarray
RANDOM = np.random.default_rng(0)


def boxes(count: int, least: float = 0.05, most: float = 0.5) -> Rows:
    size = RANDOM.uniform(least, most, (count, 2))
    return np.concatenate([RANDOM.uniform(size / 2, 1 - size / 2), size], axis=1)


def pose(count: int, keypoints: int, flags: str = "") -> Rows:
    """Boxes with keypoints of two numbers, or of three with a flag of sight or a confidence."""
    box = boxes(count)
    points = box[:, None, :2] + RANDOM.uniform(-0.5, 0.5, (count, keypoints, 2)) * box[:, None, 2:]
    if flags:
        shape = (count, keypoints, 1)
        third = RANDOM.integers(0, 3, shape) if flags == "seen" else np.full(shape, float(flags))
        points = np.concatenate([points * (third > 0), third], axis=2)
    return np.concatenate([box, points.reshape(count, -1)], axis=1)


def polygons(count: int, corners: int, most: float = 0.4) -> Rows:
    box = boxes(count, 0.02, most)
    angles = np.linspace(0, 2 * np.pi, corners, endpoint=False) + RANDOM.uniform(0, 6, (count, 1))
    points = np.stack([np.cos(angles), np.sin(angles)], axis=2) * box[:, None, 2:] / 2 + box[:, None, :2]
    return points.reshape(count, -1)


def scored(rows: Rows) -> Rows:
    return np.concatenate([rows, RANDOM.uniform(0.2, 1, (len(rows), 1))], axis=1)


def tracked(rows: Rows) -> Rows:
    return np.concatenate([scored(rows), RANDOM.integers(1, 9, (len(rows), 1))], axis=1)


BOXES: dict[str, Callable[[int], list[Rows]]] = {
    "a confidence": lambda count: [scored(boxes(count))],
    "a confidence and a track id": lambda count: [tracked(boxes(count))],
    "a track id": lambda count: [np.delete(tracked(boxes(count)), 4, axis=1)],
    "17 keypoints of 3 numbers": lambda count: [pose(count, 17, "seen")],
    "5 keypoints of 3 numbers": lambda count: [pose(count, 5, "1"), boxes(count)],
    "4 keypoints of 3 numbers": lambda count: [pose(count, 4, "2")],
    "1 keypoint of 3 numbers": lambda count: [pose(count, 1, "2")],
    "6 keypoints of 2 numbers": lambda count: [pose(count, 6)],
    "17 keypoints of 3 numbers and a confidence and a track id": lambda count: [tracked(pose(count, 17, "0.7"))],
}
POLYGONS: dict[str, Callable[[int], list[Rows]]] = {
    "of many corners": lambda count: [polygons(count // 4, corners) for corners in (3, 5, 9, 20)],
    "small": lambda count: [polygons(count // 4, corners, 0.05) for corners in (4, 5, 9, 20)],
    "with a confidence": lambda count: [scored(polygons(count // 4, corners)) for corners in (3, 5, 9)],
    "with a track id": lambda count: [tracked(polygons(count // 4, corners)) for corners in (3, 5, 9)],
    "turned boxes": lambda count: [polygons(count, 4)],
    "beside boxes": lambda count: [polygons(count, 4), boxes(count)],
    "of ten corners": lambda count: [polygons(count, 10)],
}
UNCLEAR: dict[str, Callable[[int], list[Rows]]] = {
    "angle": lambda count: [np.concatenate([boxes(count), RANDOM.uniform(-1.5, 1.5, (count, 1))], axis=1)],
    "polygons in pixels": lambda count: [polygons(count, corners) * 640 for corners in (5, 9)],
    "corners in pixels behind a confidence": lambda count: [scored(boxes(count))[:, ::-1] * 640],
    "keypoints outside": lambda count: [np.concatenate([boxes(count), boxes(count) * 3], axis=1)],
}


def decided(made: list[Rows], announced: int = 0) -> set[object]:
    lines = {rows.shape[1]: rows for rows in made if rows.shape[1] > 4}
    return set(find_meanings(lines, announced).values())


@pytest.mark.parametrize("words", BOXES)
@pytest.mark.parametrize("count", [8, 100])
def test_boxes_stay_boxes_whatever_follows_them(words: str, count: int) -> None:
    (meaning,) = decided(BOXES[words](count))
    assert meaning == (0, words, 0)


@pytest.mark.parametrize("name", POLYGONS)
@pytest.mark.parametrize("count", [12, 100])
def test_polygons_are_told_from_keypoints(name: str, count: int) -> None:
    made = POLYGONS[name](count)
    ends = {rows.shape[1] - (0 if rows.shape[1] % 2 == 0 else 1) for rows in made if rows.shape[1] > 4}
    ends = {end - 2 * (name == "with a track id") for end in ends}
    assert {meaning and meaning[0] for meaning in decided(made)} == ends  # type: ignore[index]


@pytest.mark.parametrize("name", UNCLEAR)
def test_what_is_unclear_is_not_read(name: str) -> None:
    assert decided(UNCLEAR[name](20)) == {None}


def test_kpt_shape_decides() -> None:
    announced = (0, "keypoints that kpt_shape announces", 0)
    made = polygons(20, 7)
    assert decided([made]) == {(14, "", 0)}
    assert decided([made], 10) == {announced}
    assert decided([scored(made)], 10) == {announced}


def test_the_box_around_a_polygon() -> None:
    rows = np.array([[0.1, 0.2, 0.5, 0.3, 0.4, 0.9, 7, 8]])
    np.testing.assert_allclose(boxes_of(rows, 6), [[0.3, 0.55, 0.4, 0.7]])
    np.testing.assert_allclose(boxes_of(rows, 0), [[0.1, 0.2, 0.5, 0.3]])


@pytest.mark.parametrize(
    ("line", "numbers"),
    [
        ("0 0.5 .5 1e-2 1", [0, 0.5, 0.5, 0.01, 1]),
        ("0 0,5 0,5 0,25 1,0", [0, 0.5, 0.5, 0.25, 1]),
        ("0\t0,5\t0,5\t9,5e-05\t1", [0, 0.5, 0.5, 9.5e-05, 1]),
        ("0;0,5;0,5;0,25;0,1", [0, 0.5, 0.5, 0.25, 0.1]),
        ("0;0.5;0.5;0.25;0.1;", [0, 0.5, 0.5, 0.25, 0.1]),
        ("0,0.5,0.5,0.25,0.1", None),
        ("0.0, 0.5, 0.5, 0.25, 0.1", [0, 0.5, 0.5, 0.25, 0.1]),
        ("0 0.1,0.2 0.3,0.4", [0, 0.1, 0.2, 0.3, 0.4]),
        ("0 10,20 30,20 30,40 10,40", [0, 10, 20, 30, 20, 30, 40, 10, 40]),
        ("cat 0.5 0.5 0.25 0.1", None),
        ("", []),
    ],
)
def test_commas_and_semicolons(line: str, numbers: list[float] | None) -> None:
    assert split_numbers(line) == numbers
