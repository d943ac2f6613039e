"""The installed detrkit as a wheel, so that the code which checked a bundle is the code that serves it."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import io
import zipfile
from pathlib import Path

import detrkit
from detrkit.errors import UsageError

_DATE = (1980, 1, 1, 0, 0, 0)


def make_wheel() -> tuple[str, bytes]:
    """Return name and content of a wheel of this detrkit; the same bytes for the same code.

    Raises:
        UsageError: detrkit runs without having been installed, so that nobody knows what it needs.
    """
    try:
        metadata = importlib.metadata.distribution("detrkit").read_text("METADATA")
    except importlib.metadata.PackageNotFoundError as error:
        raise UsageError("detrkit is not installed, only lies here; run: pip install PATH") from error
    version = detrkit.__version__
    info = f"detrkit-{version}.dist-info"
    root = Path(detrkit.__file__).parent
    files = {
        f"detrkit/{path.relative_to(root).as_posix()}": path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.suffix != ".pyc"
    }
    files[f"{info}/METADATA"] = (metadata or "").encode()
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: detrkit\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{info}/entry_points.txt"] = b"[console_scripts]\ndetrkit = detrkit.__main__:main\n"
    record = [f"{name},sha256={_digest(content)},{len(content)}\n" for name, content in files.items()]
    files[f"{info}/RECORD"] = "".join([*record, f"{info}/RECORD,,\n"]).encode()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name, _DATE)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content, zipfile.ZIP_DEFLATED)
    return f"detrkit-{version}-py3-none-any.whl", packed.getvalue()


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
