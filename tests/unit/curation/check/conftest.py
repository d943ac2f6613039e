"""Small data sets to spoil."""

from __future__ import annotations

from pathlib import Path

import pytest

from detrkit.curation.synthetic import write_synthetic


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean set of 30 training and 12 validation images; not to be changed."""
    root = tmp_path_factory.mktemp("shapes")
    return write_synthetic(root, train_images=30, val_images=12, size=96, seed=3)
