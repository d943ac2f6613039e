from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.curation.fetch.server import Server, running_server


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A web server with no files yet; no proxy comes in between."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with running_server() as running:
        yield running
