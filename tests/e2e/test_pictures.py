"""The pictures of docs/augmentation.md are those that its script draws."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from detrkit.config import RECIPES

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_pictures", DOCS / "make_pictures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_option_and_recipe_has_its_picture(script: ModuleType, tmp_path: Path) -> None:
    script.main(tmp_path)
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn == {path.name for path in (DOCS / "images" / "augment").iterdir()}
    assert {f"recipe-{name}.png" for name in RECIPES} < drawn
    page = (DOCS / "augmentation.md").read_text(encoding="utf-8")
    for name in drawn:
        assert f"](images/augment/{name})" in page
        assert (DOCS / "images" / "augment" / name).stat().st_size < 60_000
        committed = np.asarray(Image.open(DOCS / "images" / "augment" / name).convert("RGB"), dtype=np.int64)
        fresh = np.asarray(Image.open(tmp_path / name).convert("RGB"), dtype=np.int64)
        assert np.abs(committed - fresh).mean() < 4, f"{name} is out of date: run python docs/make_pictures.py"
