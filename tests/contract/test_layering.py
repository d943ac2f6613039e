"""Who may import whom. The rows are the floors of the house, from the ground up."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import detrkit

ROOT = Path(detrkit.__file__).parent

FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors", "types", "config", "files", "thresholds"),
    ("ops", "visual"),
    ("data", "nn", "losses"),
    ("families",),
    ("training", "evaluation", "inference"),
    ("serving",),
    ("models",),
    ("runs",),
    ("adapters",),
    ("readiness", "tuning", "profiling", "cluster", "comparison", "robustness"),
    ("api",),
    ("demo", "doctor", "cli"),
)
GROUND = FLOORS[0]
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    """Rooms of detrkit that a file imports anywhere, inside functions and type checks too."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [node.module or ""]
            if node.module == "detrkit":
                names = [f"detrkit.{alias.name}" for alias in node.names]
        rooms |= {name.split(".")[1] for name in names if name.startswith("detrkit.")}
    return rooms


FILES = sorted(path for path in ROOT.rglob("*.py") if path not in (ROOT / "__init__.py", ROOT / "__main__.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_only_from_floors_below(path: Path):
    room = room_of(path)
    assert room in FLOOR_OF, f"{room} has no floor; add it to FLOORS where it belongs"
    for other in imported_rooms(path) - {room}:
        assert other in FLOOR_OF, f"{path} imports unknown room {other}"
        below = FLOOR_OF[other] < FLOOR_OF[room]
        neighbours_on_the_ground = room in GROUND and other in GROUND
        top = FLOOR_OF[room] == FLOOR_OF[other] == len(FLOORS) - 1 and room == "cli"
        assert below or neighbours_on_the_ground or top, f"{path.relative_to(ROOT)} ({room}) imports {other}"


OUTSIDE_FAMILIES = [path for path in FILES if room_of(path) != "families"]


@pytest.mark.parametrize("path", OUTSIDE_FAMILIES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_family_is_named_outside_families(path: Path):
    allowed_defaults = {"config", "api", "cli", "demo"}  # defaults and help name a preset
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Compare):
            texts = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
            assert not any(isinstance(t, str) and t.startswith(("detr", "rtdetr", "dfine")) for t in texts), path
    if room_of(path) not in allowed_defaults:
        assert not any("families.detr" in str(room) for room in imported_rooms(path))


def test_the_ground_floor_does_not_import_torch_for_help():
    for name in (
        "errors.py",
        "config.py",
        "files.py",
        "cli/__init__.py",
        "cli/shared.py",
        "cli/data.py",
        "families/__init__.py",
        "families/detr/presets.py",
    ):
        tree = ast.parse((ROOT / name).read_text(encoding="utf-8"))
        top_level = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        modules = {getattr(node, "module", None) or node.names[0].name for node in top_level}
        assert not any(str(module).split(".")[0] in ("torch", "torchvision", "supervision") for module in modules)
