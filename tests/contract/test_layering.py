"""Who may import whom. The rows are the floors of the house, from the ground up (docs: CONTRIBUTING.md)."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import detrkit

ROOT = Path(detrkit.__file__).parent

FLOORS: tuple[tuple[str, ...], ...] = (
    (
        "errors",
        "arguments",
        "classes",
        "latency",
        "machine",
        "files",
        "config",
        "model_config",
        "types",
        "masks",
        "detections",
        "threshold_file",
        "preprocess",
    ),
    ("ops", "visual", "checkpoint", "distributed", "download", "hardware"),
    ("data", "nn", "losses", "runtimes"),
    ("evaluation", "runtime"),
    ("families",),
    ("curation",),
    ("detectors",),
    ("training",),
    ("serving", "deployment", "export", "tuning", "preflight", "profiling", "comparison", "robustness"),
    ("optimizing", "monitoring"),
    ("api",),
    ("cli",),
)
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
# One floor, but not one room: a runtime never imports torch, and training is handed its evaluation.
DOORS = {"detectors": {"training/run.py"}}
WITHOUT_TORCH = (
    "errors",
    "arguments",
    "classes",
    "files",
    "machine",
    "config",
    "threshold_file",
    "preprocess",
    "runtimes",
    "runtime",
    "serving",
    "visual/colors",
    "visual/text",
    "detections",
    "masks",
    "ops/images",
    "ops/pixel_range",
    "ops/sources",
    "cli",
)
WITHOUT_TORCH += ("families/configs", "families/presets")
TORCH = {"torch", "torchvision", "supervision", "lightning_fabric", "tensorboard", "matplotlib"}


def name_of(path: Path) -> str:
    """Dotted name of a file inside the package, such as ``data.formats.yolo.read``."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(path): path for path in sorted(ROOT.rglob("*.py"))}


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def imports_of(path: Path, *, at_the_top: bool = False) -> set[str]:
    """Files of detrkit that a file imports, inside functions and type checks too unless ``at_the_top``."""
    tree = tree_of(path)
    found = set()
    for node in tree.body if at_the_top else ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names] + [str(node.module)]
        else:
            continue
        found |= {
            name.removeprefix("detrkit.")
            for name in names
            if name.startswith("detrkit.") and name.removeprefix("detrkit.") in FILES
        }
    return found - {name_of(path)}


def room_of(name: str) -> str:
    """The room of a file; the config sections of families lie on the ground, being part of the config."""
    parts = name.split(".")
    return "config" if parts[0] == "families" and parts[-1] in ("config", "configs") else parts[0]


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Circles of a graph, one for each that a walk along its arrows runs into."""
    found: list[list[str]] = []
    done: set[str] = set()

    def visit(name: str, way: list[str]) -> None:
        if name in way:
            found.append([*way[way.index(name) :], name])
        elif name not in done:
            for other in sorted(graph[name]):
                visit(other, [*way, name])
            done.add(name)

    for name in sorted(graph):
        visit(name, [])
    return found


def breaches(files: dict[str, Path]) -> list[str]:
    """Arrows that run upwards or sideways, and those through a wall that has one door."""
    found = []
    for name, path in files.items():
        room = room_of(name)
        if not name or name == "__main__":
            continue
        if room not in FLOOR_OF:
            found.append(f"{name}: room {room} has no floor; add it to FLOORS where it belongs")
            continue
        for other in imports_of(path):
            into = room_of(other)
            door = path.relative_to(ROOT).as_posix() in DOORS.get(into, {path.relative_to(ROOT).as_posix()})
            if into not in FLOOR_OF or room == into:
                continue
            ground = FLOOR_OF[room] == FLOOR_OF[into] == 0
            if not ground and FLOOR_OF[into] >= FLOOR_OF[room]:
                found.append(f"{name} ({room}) imports {other}")
            if room == "training" and not door:
                found.append(f"{name} imports {other}: of training, only {DOORS[into]} may")
    return found


def test_a_room_imports_only_from_floors_below():
    assert breaches(FILES) == []


def test_no_circle():
    graph = {name: imports_of(path) for name, path in FILES.items() if name}
    graph = {name: {other for other in others if other in graph} for name, others in graph.items()}
    # A package's own __init__ names what lies in it, which is no arrow from outside.
    for name in graph:
        graph[name] = {other for other in graph[name] if not name.startswith(f"{other}.")}
    assert [" -> ".join(circle) for circle in circles(graph)] == []


def test_no_family_is_named_outside_families():
    found = []
    for name, path in FILES.items():
        if name.split(".")[0] == "families":
            continue
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Compare):
                texts = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
                if any(isinstance(text, str) and text.startswith(("detr", "rtdetr", "dfine")) for text in texts):
                    found.append(f"{name}: line {node.lineno} compares with a family's name")
        found += [
            f"{name} imports {other}"
            for other in imports_of(path)
            if other.startswith("families.") and FILES[other].parent != ROOT / "families"
        ]
    assert found == []


def test_what_prints_help_does_not_import_torch():
    found = []
    for name, path in FILES.items():
        relative = path.relative_to(ROOT).with_suffix("").as_posix()
        if not any(relative == start or relative.startswith(f"{start}/") for start in WITHOUT_TORCH):
            continue
        for node in tree_of(path).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                module = getattr(node, "module", None) or node.names[0].name
                if str(module).split(".")[0] in TORCH:
                    found.append(f"{name} imports {module}")
    assert found == []


def test_planted_breaches_are_found(tmp_path, monkeypatch):
    """The rules above can fail: an arrow upwards, one through the wall of training, and a circle."""
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    texts = {
        "data/reading.py": "import detrkit.training.loop",
        "training/loop.py": "from detrkit.detectors import load",
        "detectors/load.py": "from detrkit.detectors import stages",
        "detectors/stages.py": "def late():\n    from detrkit.detectors.load import find",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    files = {name_of(tmp_path / name): tmp_path / name for name in texts}
    monkeypatch.setitem(globals(), "FILES", files)
    assert [line.split(" imports ")[0] for line in breaches(files)] == ["data.reading (data)", "training.loop"]
    graph = {name: imports_of(path) for name, path in files.items()}
    assert circles(graph) == [["detectors.load", "detectors.stages", "detectors.load"]]
