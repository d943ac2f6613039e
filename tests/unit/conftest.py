"""Pictures that several rooms are tested on."""

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def make_image():
    def make(seed=0, size_hw=(40, 60)):
        rng = np.random.default_rng(seed)
        level = rng.integers(0, 200, 3)
        return (level + rng.integers(0, 50, (*size_hw, 3))).astype(np.uint8)

    return make


@pytest.fixture
def folder(tmp_path, make_image):
    """Three images of two sizes, a text file, a hidden file and a sub-folder."""
    root = tmp_path / "images"
    (root / "inner").mkdir(parents=True)
    for name, seed, size in (("b.png", 1, (40, 60)), ("a.PNG", 2, (60, 40)), ("c.png", 3, (40, 60))):
        Image.fromarray(make_image(seed, size)).save(root / name)
    (root / "notes.txt").write_text("not an image")
    (root / ".hidden.png").write_bytes(b"no")
    return root
