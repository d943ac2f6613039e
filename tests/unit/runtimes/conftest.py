from pathlib import Path

import pytest

pytest.importorskip("onnx", reason="the extra export is not installed")
pytest.importorskip("onnxruntime", reason="the extra runtime is not installed")


@pytest.fixture(params=["folder", "file.zip"])
def place(request, tmp_path) -> Path:
    """Where a bundle is written to: a folder, or one file."""
    return tmp_path / request.param
