"""Count lines of code of the package, by room and by what a command imports: `python -m tests.support.size`."""

from __future__ import annotations

import ast
import functools
import io
import tokenize
from collections import Counter
from pathlib import Path

import detrkit

ROOT = Path(detrkit.__file__).parent


def lines_of_code(text: str) -> int:
    """Lines that hold code: no blank lines, comments or docstrings."""
    documented: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        body = getattr(node, "body", None)
        if not isinstance(body, list):
            continue
        for statement in body:
            # a docstring, or a string that documents the name above it
            value = statement.value if isinstance(statement, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                documented |= set(range(statement.lineno, (statement.end_lineno or 0) + 1))
    layout = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    layout |= {tokenize.ENDMARKER, tokenize.ENCODING}
    used: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in layout:
            used |= set(range(token.start[0], token.end[0] + 1))
    return len(used - documented)


@functools.cache
def _lines_of(path: Path) -> int:
    return lines_of_code(path.read_text(encoding="utf-8"))


def module_files() -> dict[str, Path]:
    """Every file of the package by its dotted name."""
    files = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


def imports_of(path: Path, files: dict[str, Path]) -> set[str]:
    """Files of the package that a file imports, inside functions and type checks too, with their packages."""
    found = set()
    for name in _names_imported(path) & files.keys():
        parts = name.split(".")
        # the package's own lazy face imports every verb by name: it is no way from one file to another
        found |= {".".join(parts[:count]) for count in range(2, len(parts) + 1)}
    return found


@functools.cache
def _names_imported(path: Path) -> frozenset[str]:
    named: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            named |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(named)


def closure_of(start: str, files: dict[str, Path]) -> set[str]:
    """A file and all that it imports, lazily or not."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += imports_of(files[name], files) - seen
    return seen


def size_table() -> dict[str, int]:
    """Lines of code by what DESIGN.md limits."""
    files = module_files()
    code = {name: _lines_of(path) for name, path in files.items()}
    ways = {"train": "detrkit.api.train", "load": "detrkit.api.load"}
    table = {
        way: sum(code[name] for name in closure_of(start, files)) for way, start in ways.items() if start in files
    }
    return {**table, "src": sum(code.values())}


def rooms_table() -> Counter[str]:
    """Lines of code of each room, two levels deep."""
    rooms: Counter[str] = Counter()
    for name, path in module_files().items():
        parts = name.split(".")[1:]
        deep = parts[:2] if len(parts) > 2 or path.name == "__init__.py" else parts[:1]
        rooms["/".join(deep) or "detrkit"] += _lines_of(path)
    return rooms


if __name__ == "__main__":
    for room, lines in sorted(rooms_table().items()):
        print(f"{room:28} {lines:6}")
    for what, lines in size_table().items():
        print(f"{what:28} {lines:6}")
