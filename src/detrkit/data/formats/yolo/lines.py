"""What the numbers after the class mean in YOLO lines: decided for a whole split, from all of its lines.

A line by itself does not tell: six numbers are a triangle, or a box with its confidence and track id; ten are a
polygon, or a box with two keypoints of three numbers. All lines together do: keypoints lie in their box and are of
the same number in every line, confidences lie between 0 and 1, track ids are whole, once in an image, and, unlike
angles, one after the other or again and again; polygons differ in their number of corners, and nothing above 1 is
a corner. What stays unclear is not read.

Shapes: L lines with the same count of numbers.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from detrkit.errors import counted

BOX_NUMBERS = 4
_EDGE = 0.01
"""Shares leave 0 to 1 by so much through rounding."""
_FAR_OUT = 0.5
"""A corner that leaves the image by more than this share of its side was never drawn."""
_MOST, _NEARLY_ALL = 0.9, 0.95
_OFTEN = 0.7
_SMALL = 0.2
_FEW = 4
"""Lines below which no unusual order of numbers is believed."""
_DEGREES = 15
"""Angles are mostly written as multiples of it."""
_TAILS = ("", "a confidence", "a confidence and a track id")
_COMMENTS = ("#", "//")
_HEADER = re.compile(r"[^\W\d][\w-]*(?:[\s,;]+[^\W\d][\w-]*)*")
_DECIMAL = re.compile(r"[-+]?(?:[01]?,\d+|\d,\d+[eE]-\d+)")


class Reading(NamedTuple):
    """One way of reading keypoints behind a box.

    Args:
        inside: Share of the lines whose keypoints lie in their box.
        is_flagged: Whether every keypoint has the number 0, 1 or 2, which says whether it can be seen.
        fill: Share of the box over which they spread, in the middle line.
        words: What follows the box.
    """

    inside: float = 0
    is_flagged: bool = False
    fill: float = 0
    words: str = ""


class Meaning(NamedTuple):
    """What the numbers of lines of one count are.

    Args:
        corners: How many of them are corners of a polygon; 0 if the first four are a box.
        words: What follows the box or polygon; empty if nothing does.
        start: How many numbers stand before the box.
    """

    corners: int = 0
    words: str = ""
    start: int = 0


def is_comment(line: str) -> bool:
    """Return whether a line of a text file is a comment."""
    return line.lstrip().startswith(_COMMENTS)


def object_lines(
    text: str, tell: Callable[[int, str], None] = lambda _number, _line: None
) -> list[tuple[int, str]]:
    """Return the lines of a label file that are meant as objects, with their numbers, without comments.

    Args:
        text: Content of the file.
        tell: Called for what is passed over: a comment, a first line of words or of the number of the others.
    """
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1)]
    lines = [(number, line) for number, line in lines if line.strip("\0")]
    for number, line in lines:
        if "#" in line or is_comment(line):
            tell(number, line)
    lines = [(number, line.partition("#")[0].strip()) for number, line in lines if not is_comment(line)]
    if lines and (_HEADER.fullmatch(lines[0][1]) or lines[0][1] == str(len(lines) - 1)):
        tell(*lines[0])
        del lines[0]
    return lines


def split_numbers(line: str) -> list[float] | None:
    """Return the numbers of a line; None if there is something else.

    ``0,5`` is a half where blanks or semicolons stand between the numbers; with commas alone it could be either.
    """
    words = line.split()
    try:
        return [float(word) for word in words]
    except ValueError:
        words = line.replace(";", " ").split()
    if len(words) == 1:
        return None
    if len(words) > BOX_NUMBERS:
        words = [word.replace(",", ".") if _DECIMAL.fullmatch(word) else word for word in words]
    try:
        return [float(word) for word in " ".join(words).replace(",", " ").split()]
    except ValueError:
        return None


def find_meanings(
    lines: Mapping[int, np.ndarray], announced: int, owners: Mapping[int, np.ndarray] | None = None
) -> dict[int, Meaning | None]:
    """Decide what lines with more numbers than a box mean.

    Args:
        lines: Numbers after the class ``[L, count]``, by their count.
        announced: Numbers of the keypoints that ``kpt_shape`` announces; 0 if it does not.
        owners: Number of the file and class of each line ``[L, 2]``, by the count; if not known, track ids may
            repeat in a file, and there are no scores.

    Returns:
        The meaning of each count; None if it is unclear.
    """
    found: dict[int, Meaning | None] = {}
    undecided: dict[int, np.ndarray] = {}
    for count, rows in lines.items():
        tail, owner = count - BOX_NUMBERS - announced, None if owners is None else owners[count]
        if announced and 0 <= tail <= 2:
            found[count] = Meaning(words="keypoints that kpt_shape announces")
        elif count == BOX_NUMBERS + 1:
            found[count] = _one_more(rows, owner)
        elif count == BOX_NUMBERS + 2 and _is_tracked(rows):
            found[count] = Meaning(words="a confidence and a track id")
        elif owner is not None and _has_scores(rows, owner[:, 1]):
            found[count] = Meaning(words="a score of each class")
        else:
            undecided[count] = rows
    # lines of an odd count are no polygons, or polygons with a confidence: other lines than those of an even one
    for odd in (False, True):
        found |= _keypoints_or_polygons({n: rows for n, rows in undecided.items() if n % 2 == odd})
    return found


def boxes_of(rows: np.ndarray, corners: int, start: int = 0) -> np.ndarray:
    """Return centre, width and height ``[L, 4]``: four numbers from ``start``, or the box around a polygon."""
    if not corners:
        return rows[:, start : start + BOX_NUMBERS]
    points = rows[:, :corners].reshape(len(rows), -1, 2)
    low, high = points.min(axis=1), points.max(axis=1)
    return np.concatenate([(low + high) / 2, high - low], axis=1)


def are_drawn(rows: np.ndarray, corners: int) -> np.ndarray:
    """Return whether no corner lies far outside the image, bool ``[L]``; what is not finite is told elsewhere."""
    outside = (rows[:, :corners] < -_FAR_OUT) | (rows[:, :corners] > 1 + _FAR_OUT)
    return np.asarray(~(outside & np.isfinite(rows[:, :corners])).any(axis=1))


def _keypoints_or_polygons(lines: Mapping[int, np.ndarray]) -> dict[int, Meaning | None]:
    """Decide between boxes with keypoints and polygons, for all counts together."""
    sound = {count: rows[np.isfinite(rows).all(axis=1)] for count, rows in lines.items()}
    sound = {count: rows for count, rows in sound.items() if len(rows)}
    if not sound:
        return dict.fromkeys(lines)
    total = sum(map(len, sound.values()))
    main = max(sound, key=lambda count: len(sound[count]))
    is_one_count = len(sound[main]) >= _MOST * total
    # what speaks for keypoints: they lie in their box, in every line, and fill it
    readings = {count: max(_keypoint_readings(rows), default=Reading()) for count, rows in sound.items()}
    inside = sum(readings[count].inside * len(rows) for count, rows in sound.items()) / total
    is_flagged = readings[main].is_flagged and is_one_count and inside >= _NEARLY_ALL and total > 1
    # what speaks for polygons: corners inside the image, the second of them near the others
    in_image = {tail: sum(_polygons(rows, tail) for rows in sound.values()) for tail in (0, 1, 2)}
    tail = max(in_image, key=in_image.__getitem__)
    can_be_polygons = in_image[tail] >= _MOST * total and not is_flagged
    corners = [rows[:, : count - tail] for count, rows in sound.items() if count - tail >= 6]
    near = _share(np.concatenate([_is_second_near(rows) for rows in corners])) if can_be_polygons else 0
    is_turned_box = main - tail == 8 and _share(_is_parallelogram(sound[main][:, :8])) >= _MOST
    if can_be_polygons and (
        is_turned_box
        or (not is_one_count and (inside < _NEARLY_ALL or near >= _OFTEN))
        or (near >= _MOST and (inside < _MOST or readings[main].fill < _SMALL))
    ):
        return {count: Meaning(count - tail, _TAILS[tail]) if count - tail >= 6 else None for count in lines}
    if inside < _NEARLY_ALL or (can_be_polygons and (near >= _OFTEN or total == 1)):
        return dict.fromkeys(lines)
    kept = {main} if is_one_count else set(sound)
    return {count: Meaning(words=readings[count].words) if count in kept else None for count in lines}


def _keypoint_readings(rows: np.ndarray) -> Iterator[Reading]:
    """Yield every way of reading a box and keypoints of three or two numbers, and what may follow them."""
    for tail, size in itertools.product((0, 1, 2), (3, 2)):
        end = rows.shape[1] - tail
        count, rest = divmod(end - BOX_NUMBERS, size)
        if count < 1 or rest or not _has_tail(rows, tail):
            continue
        points = rows[:, BOX_NUMBERS:end].reshape(len(rows), count, size)
        flags = points[..., 2] if size == 3 else (points != 0).any(axis=2)
        is_flagged = size == 3 and bool(np.isin(flags, (0, 1, 2)).all())
        if size == 3 and not is_flagged and not _is_share(flags):
            continue
        # the distance of visible points from the centre, in halves of the box
        halves = rows[:, None, 2:4] / 2
        distance = np.abs(points[..., :2] - rows[:, None, :2]) - 2 * _EDGE
        is_out = (distance > halves * (1 + _SMALL)).any(axis=2) & (flags > 0)
        shown = np.where((flags > 0)[..., None], points[..., :2], rows[:, None, :2])
        fill = (np.ptp(shown, axis=1) / np.maximum(rows[:, 2:4], _EDGE)).max(axis=1)
        words = " and ".join(filter(None, (f"{counted(count, 'keypoint')} of {size} numbers", _TAILS[tail])))
        yield Reading(_share(_is_box(rows) & ~is_out.any(axis=1)), is_flagged, float(np.median(fill)), words)


def _polygons(rows: np.ndarray, tail: int) -> int:
    """Count lines that could be polygons with a number of further numbers behind them."""
    end = rows.shape[1] - tail
    if end < 6 or end % 2 or not _has_tail(rows, tail):
        return 0
    return int(((rows[:, :end] >= -_SMALL) & (rows[:, :end] <= 1 + _SMALL)).all(axis=1).sum())


def _has_tail(rows: np.ndarray, tail: int) -> bool:
    """Return whether the last numbers can be nothing, a confidence, or a confidence and a track id."""
    if tail < 2:
        return not tail or _is_share(rows[:, -1])
    return _is_share(rows[:, -2]) and _is_whole(rows[:, -1])


def _one_more(rows: np.ndarray, owner: np.ndarray | None) -> Meaning | None:
    """Decide what five numbers are: a box before a confidence or track id, or behind a confidence."""
    first, last = rows[:, 0], rows[:, -1]
    usual, behind = (_share(_is_box(rows[:, start:], _EDGE)) for start in (0, 1))
    if usual < _MOST and behind >= _NEARLY_ALL and _is_share(first):
        return Meaning(words="a confidence before the box", start=1) if len(rows) >= _FEW else None
    words = "a confidence" if _is_share(last) else "a track id" if _are_ids(last, owner) else ""
    return Meaning(words=words) if words and _share(_is_box(rows)) >= _MOST else None


def _are_ids(values: np.ndarray, owner: np.ndarray | None = None) -> bool:
    """Return whether whole numbers are track ids rather than angles in degrees."""
    if not _is_whole(values):
        return False
    distinct = np.unique(values)
    once = owner is None or len(np.unique(np.column_stack([owner[:, 0], values]), axis=0)) == len(values)
    are_turns = len(distinct) > 1 and not (distinct % _DEGREES).any()
    is_dense = 2 * len(distinct) > np.ptp(values) or len(values) >= 2 * len(distinct)
    return once and is_dense and not are_turns


def _has_scores(rows: np.ndarray, classes: np.ndarray) -> bool:
    """Return whether a box is followed by a score of each class, the greatest of which is that of its own."""
    scores = rows[:, BOX_NUMBERS:]
    is_greatest = len(set(classes.tolist())) > 1 and _share(scores.argmax(axis=1) == classes) >= _NEARLY_ALL
    return is_greatest and _is_share(scores) and _share(_is_box(rows)) >= _MOST and len(rows) >= _FEW


def _is_tracked(rows: np.ndarray) -> bool:
    """Return whether six numbers are a box, a confidence and a track id, rather than a triangle."""
    is_id = len(rows) > 1 or rows[0, -1] > 1
    return _has_tail(rows, 2) and is_id and _are_ids(rows[:, -1]) and _share(_is_box(rows)) >= _MOST


def _is_second_near(rows: np.ndarray) -> np.ndarray:
    """Return whether the second corner is not farther from the others than they from each other, bool ``[L]``."""
    points = rows.reshape(len(rows), -1, 2)
    others = np.delete(points, 1, axis=1)
    others = np.where((others != 0).any(axis=2, keepdims=True), others, points[:, :1])  # as hidden keypoints are
    low, high = others.min(axis=1), others.max(axis=1)
    size = (high - low).max(axis=1, keepdims=True) + _EDGE
    return np.asarray(((points[:, 1] >= low - size) & (points[:, 1] <= high + size)).all(axis=1))


def _is_parallelogram(rows: np.ndarray) -> np.ndarray:
    """Return whether four corners are roughly those of a turned box, bool ``[L]``."""
    points = rows.reshape(len(rows), 4, 2)
    gap = np.abs(points[:, 0] + points[:, 2] - points[:, 1] - points[:, 3]).max(axis=1)
    return np.asarray(gap <= 0.5 * np.ptp(points, axis=1).max(axis=1))


def _is_box(rows: np.ndarray, edge: float = _SMALL) -> np.ndarray:
    """Return whether the first four numbers are a box that leaves the image by ``edge`` at most, bool ``[L]``."""
    centre, size = rows[:, :2], rows[:, 2:4]
    fits = (centre - size / 2 >= -edge) & (centre + size / 2 <= 1 + edge) & (size >= 0)
    return np.asarray(fits.all(axis=1))


def _is_share(values: np.ndarray) -> bool:
    return bool(((values >= 0) & (values <= 1)).all())


def _is_whole(values: np.ndarray) -> bool:
    return bool(((values >= 0) & (values == np.rint(values))).all())


def _share(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else 0.0
