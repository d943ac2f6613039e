from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.web_server import Server, running_server

REPOSITORY = Path(__file__).resolve().parent.parent


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


@pytest.fixture
def web_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A web server with no files yet; no proxy comes in between."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with running_server() as running:
        yield running
