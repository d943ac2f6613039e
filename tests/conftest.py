from __future__ import annotations

import functools
import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.testing

from tests.support.web_server import Server, running_server

REPOSITORY = Path(__file__).resolve().parent.parent


def pytest_collection_finish() -> None:
    """Spare the garbage collector all that was imported: going through that took a sixth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


@pytest.fixture(scope="module", autouse=True)
def later_imports_are_spared() -> Iterator[None]:
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real data sets; tests that need it are skipped where it is absent."""
    named = os.environ.get("DETRKIT_SHARED_DATA")
    candidates = (
        [Path(named)] if named else [REPOSITORY.parent / "shared" / "data", REPOSITORY / "shared" / "data"]
    )
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    searched = " or ".join(map(str, candidates))
    pytest.skip(f"no real data sets in {searched}; set DETRKIT_SHARED_DATA to their folder")


@pytest.fixture(scope="session", autouse=True)
def commands_built_once() -> Iterator[None]:
    """Build the tree of commands once: it takes a tenth of a second, as a process of its own would have to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.testing, "_get_command", functools.cache(typer.testing._get_command))
        yield


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As torchrun and the tests' own processes have: sums by another number of threads are other sums."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def web_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A web server with no files yet; no proxy comes in between."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with running_server() as running:
        yield running
