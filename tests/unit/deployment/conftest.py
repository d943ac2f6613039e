from __future__ import annotations

import functools
from pathlib import Path

import pytest

from detrkit.deployment import write
from detrkit.deployment.wheel import make_wheel
from tests.support.bundles import bundle_files, write_files

once = functools.cache(make_wheel)  # the same bytes each time


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("bundles") / "mean", bundle_files())


@pytest.fixture(autouse=True)
def one_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "make_wheel", once)
