"""Commands that messages advise: each one's verb and options are in the command tree, its keys in the config."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

import detrkit
from detrkit.cli import app
from detrkit.config import Config, flat_changes

SOURCES = Path(detrkit.__file__).parent
TREE: Any = typer.main.get_command(app)
KEYS = flat_changes(Config().model_dump()).keys()
NAMED = re.compile(r"\bdetrkit((?: [a-z]+)+)((?: (?:--[a-z0-9-]+|[A-Z][A-Z0-9_-]*|[A-Z]*[.=/][^ ;,)]*))*)")
SET = re.compile(r"--set ([a-z_.]+)")
PROSE = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]+")


def texts() -> Iterator[tuple[str, str]]:
    """Yield every text of the sources that is no docstring, with its place; what is filled in is X."""
    for path in sorted(SOURCES.rglob("*.py")):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        name = path.relative_to(SOURCES)
        passed_over = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}  # docstrings
        passed_over |= {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
        for node in nodes:
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "X" for part in node.values)
                yield f"{name}:{node.lineno}", "".join(map(str, parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in passed_over:
                yield f"{name}:{node.lineno}", node.value


def verb_of(words: list[str]) -> Any:
    """Return the command that the words name, as far as they are its; None if the first is none."""
    command: Any = TREE
    for word in words:
        if word not in getattr(command, "commands", {}):
            break
        command = command.commands[word]
    return None if command is TREE else command


def options_of(command: Any) -> set[str]:
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}


def all_options(command: Any = TREE) -> set[str]:
    inner = (all_options(each) for each in getattr(command, "commands", {}).values())
    return options_of(command).union(*inner)


def test_every_command_that_is_advised_exists_with_its_options_and_keys():
    wrong, seen = [], 0
    others = {
        "--max-restarts",
        "--nnodes",
        "--nproc-per-node",
        "--ipc",
        "--shm-size",
        "--force-reinstall",
        "--upgrade",
        "--trt-",
        "--val-range",
    }  # torchrun's, docker's, pip's, polygraphy's
    known = all_options() | others
    for place, text in texts():
        for words, rest in NAMED.findall(text):
            command = verb_of(words.split())
            if command is None:
                continue
            seen += 1
            if getattr(command, "commands", None) and not words.split()[1:]:
                wrong.append(f"{place}: detrkit{words} needs a verb")
            missing = set(PROSE.findall(rest)) - options_of(command)
            wrong += [f"{place}: detrkit{words} has no option {name}" for name in sorted(missing)]
        keys = [key.rstrip(".") for key in SET.findall(text)]
        wrong += [f"{place}: no config key {key}" for key in keys if "." in key and key not in KEYS]
        if " " in text and not text.startswith("#!"):  # words for people
            wrong += [f"{place}: no command has {name}" for name in set(PROSE.findall(text)) - known]
    assert seen > 20
    assert wrong == []
