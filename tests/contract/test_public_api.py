"""What users may rely on: the public names, and what stays light."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import detrkit


def run_python(code: str) -> str:
    """Standard output of a Python process of its own, which ends well."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_public_name_can_be_imported_and_is_listed():
    assert list(detrkit.__all__) == sorted(detrkit.__all__)
    for name in detrkit.__all__:
        assert getattr(detrkit, name) is not None
        assert name in dir(detrkit)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = detrkit.nonsense


def test_modules_that_have_moved_say_where_to():
    for old, new in detrkit._MOVED.items():
        with pytest.raises(ModuleNotFoundError, match=rf"{old} has moved; import {new}$"):
            importlib.import_module(old)
        importlib.import_module(new)


def test_a_verb_stays_a_verb_when_the_room_of_its_name_is_imported():
    room = importlib.import_module("detrkit.preflight.run")
    assert callable(detrkit.preflight)
    assert room.__name__ == "detrkit.preflight.run"


def test_help_of_every_command_is_there_and_nothing_of_it_imports_torch():
    output = run_python("""
import sys
import detrkit, detrkit.families
from typer.main import get_command
from typer.testing import CliRunner
from detrkit.cli import app

def commands(command, way=()):
    yield way
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*way, name))

for way in commands(get_command(app)):
    result = CliRunner().invoke(app, [*way, "--help"])
    assert result.exit_code == 0 and "Usage: " in result.output and len(result.output) > 150, (way, result.output)
    print(*way)
heavy = {"torch", "supervision", "matplotlib", "tensorboard"} & set(sys.modules)
assert not heavy, heavy
""")
    assert {"train", "eval", "data check", "doctor"} <= set(output.splitlines())
