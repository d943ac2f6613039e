"""Processes that find each other, here as threads around one store that keeps what dead ones left."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from torch.distributed import HashStore

from detrkit.distributed import agree_on_name
from detrkit.errors import TrainingError


class Shared:
    """A store that several threads may use, with the time that each process takes to come to it."""

    def __init__(self) -> None:
        self._store, self._lock = HashStore(), threading.Lock()

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> Any:
            with self._lock:
                return getattr(self._store, name)(*arguments)

        return call


def names(store: Any, delays_s: list[float]) -> list[str]:
    def come(rank: int) -> str:
        time.sleep(delays_s[rank])
        return agree_on_name(store, rank, len(delays_s), timeout_s=20)

    with ThreadPoolExecutor(len(delays_s)) as pool:
        return list(pool.map(come, range(len(delays_s))))


@pytest.mark.parametrize("delays_s", [[0, 0, 0], [0.2, 0, 0.1], [0, 0.2, 0.1], [0]])
def test_all_processes_of_a_start_have_one_name_and_no_start_has_anothers(delays_s: list[float]):
    store = Shared()
    found = [names(store, delays_s) for _ in range(4)]
    assert [len(set(start)) for start in found] == [1] * 4
    assert len({start[0] for start in found}) == 4


def test_a_start_whose_processes_died_half_way_spoils_none_after_it():
    store = Shared()
    names(store, [0, 0, 0])
    for rank in (0, 2):  # these came, the third never did
        with pytest.raises(TrainingError, match="waited"):
            agree_on_name(store, rank, 3, timeout_s=0.1)
    assert len(set(names(store, [0.1, 0, 0.2]))) == 1


def test_a_process_that_never_comes_is_an_error_with_advice():
    with pytest.raises(TrainingError, match="--nproc-per-node"):
        agree_on_name(HashStore(), 0, 2, timeout_s=0.1)
