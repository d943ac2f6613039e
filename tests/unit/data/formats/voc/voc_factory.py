"""XML files for tests."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def voc_xml(
    file_name: str, objects: Iterable[tuple[Any, ...]], size: tuple[int, int] | None = (40, 60), extra: str = ""
) -> str:
    """An annotation file; objects are name, four corners and perhaps whether they are difficult."""
    height, width = size or (0, 0)
    parts = [f"<annotation><filename>{file_name}</filename>{extra}"]
    if size is not None:
        parts.append(f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>")
    for name, *corners in objects:
        difficult = f"<difficult>{corners[4]}</difficult>" if len(corners) > 4 else ""
        tags = zip(("ymax", "xmax", "ymin", "xmin"), corners[3::-1], strict=True)  # in an unusual order
        box = "".join(f"<{tag}>{value}</{tag}>" for tag, value in tags)
        parts.append(f"<object><name>{name}</name>{difficult}<bndbox>{box}</bndbox></object>")
    return "".join(parts) + "</annotation>"
