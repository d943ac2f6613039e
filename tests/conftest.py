from __future__ import annotations

import os
from pathlib import Path

import pytest

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
