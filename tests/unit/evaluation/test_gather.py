"""Processes that evaluate together, here as threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from detrkit.errors import DataError, ImageError
from detrkit.evaluation.evaluator import CocoEvaluator
from detrkit.evaluation.gather import collect_together
from detrkit.types import ImageDetections

from .scenes import objects_in_images

Item = tuple[int, ImageDetections]
Share = Callable[[int], Iterator[Item]]


class Threads:
    """What :class:`detrkit.distributed.ProcessGroup` does, among threads."""

    def __init__(self, rank: int, board: list[Any], barrier: threading.Barrier):
        self.rank, self.world_size = rank, len(board)
        self._board, self._barrier = board, barrier

    def all_gather(self, value: Any) -> list[Any]:
        self._board[self.rank] = value
        self._barrier.wait(10)
        values = list(self._board)
        self._barrier.wait(10)
        return values

    def gather(self, value: Any) -> list[Any]:
        values = self.all_gather(value)
        return values if self.rank == 0 else []

    def any(self, flag: bool) -> bool:
        return any(self.all_gather(flag))


def found_in(row: int) -> Item:
    box = np.array([[8, 8, 40 + row % 9, 40]], dtype=np.float32)
    return row + 1, ImageDetections(box, np.array([0.5 + row / 100], np.float32), np.zeros(1, np.int32))


def rows_of(rank: int, world_size: int, num_images: int, size: int) -> list[int]:
    starts = range(rank * size, num_images, world_size * size)
    return [row for start in starts for row in range(start, min(start + size, num_images))]


def together(share: Share, world_size: int, num_images: int, size: int) -> list[CocoEvaluator | DataError]:
    """What each process ends with."""
    board: list[Any] = [None] * world_size
    barrier = threading.Barrier(world_size)

    def process(rank: int) -> CocoEvaluator | DataError:
        evaluator = CocoEvaluator(objects_in_images(num_images))
        try:
            collect_together(Threads(rank, board, barrier), evaluator, share(rank), num_images, size)
        except DataError as error:
            return error
        return evaluator

    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(process, range(world_size)))


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("num_images", [1, 2, 9, 16])
@pytest.mark.parametrize("size", [1, 4])
def test_any_number_of_processes_measures_what_one_does(world_size: int, num_images: int, size: int) -> None:
    alone = CocoEvaluator(objects_in_images(num_images))
    for row in range(num_images):
        alone.add(*found_in(row))

    def share(rank: int) -> Iterator[Item]:
        return map(found_in, rows_of(rank, world_size, num_images, size))

    ends = together(share, world_size, num_images, size)

    first = ends[0]
    assert isinstance(first, CocoEvaluator)
    metrics, expected = first.finish(), alone.finish()
    assert metrics.values == expected.values
    assert (metrics.images, metrics.detections) == (num_images, num_images)


def test_an_error_of_one_process_ends_all_of_them_at_the_same_batch() -> None:
    seen: list[int] = []

    def share(rank: int) -> Iterator[Item]:
        for row in rows_of(rank, 3, 60, 2):
            if rank == 1 and row >= 8:
                raise ImageError("street.jpg cannot be decoded")
            seen.append(row)
            yield found_in(row)

    ends = together(share, 3, 60, 2)
    assert [str(end) for end in ends] == ["street.jpg cannot be decoded"] * 3
    assert max(seen) < 12  # nobody goes on for long


@pytest.mark.parametrize("fault", ["missing", "twice"])
def test_images_that_are_missing_or_there_twice_are_an_error(fault: str) -> None:
    def share(rank: int) -> Iterator[Item]:
        rows = rows_of(rank, 2, 8, 2)
        if rank == 1:
            rows = rows[:-1] if fault == "missing" else [*rows[:-1], 0]
        return map(found_in, rows)

    first, _ = together(share, 2, 8, 2)
    assert isinstance(first, DataError)
    assert "expected every image once" in str(first)
    assert ("7 images, 7 different ones of 8" if fault == "missing" else "8 images, 7 different") in str(first)
