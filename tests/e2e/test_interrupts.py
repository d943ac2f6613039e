"""Ctrl-C in every verb that writes: one line, no traceback, nothing half written, and it works again."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Trained
from tests.e2e.test_foreign_files import FAST, PRECIOUS, Verb, words_of
from tests.support.killing import Ended, Moment, Victims

INTERRUPTED = 130
# verbs that write into a folder that may hold something already
VERBS = {name: verb for name, verb in FAST.items() if not name.startswith("data") or name == "data check"}


@pytest.fixture(scope="module")
def victims(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victims]:
    folder = tmp_path_factory.mktemp("interrupts")
    with Victims(folder / "said", folder) as victims:
        yield victims


@pytest.mark.slow
@pytest.mark.parametrize("name", VERBS)
def test_ctrl_c_leaves_nothing_half_written(
    name: str, victims: Victims, tiny_run: Trained, tiny_data: Path, tmp_path: Path
):
    verb = VERBS[name]
    photos = [tiny_data / "train2017", tiny_data / "val2017"]

    def run(out: Path, moment: Moment | None = None) -> Ended:
        return victims.run(words_of(verb, out, tiny_run.run, tiny_data, photos), moment)

    def begin(folder: str) -> Path:
        out = tmp_path / folder
        out.mkdir()
        (out / "mine.txt").write_bytes(PRECIOUS)
        return out

    whole = begin("whole")
    ended = run(whole)
    assert ended.code in verb.codes, ended.said
    names = {path.relative_to(whole) for path in whole.rglob("*")}
    # before the first file gets its name, in the middle, and after the last; and while the data is read
    count = ended.counts["rename"]
    places = [("rename", at) for at in sorted({1, (count + 1) // 2, count})]
    for what, at in [*places, *([("start", 1)] if ended.counts["start"] else [])]:
        out = begin(f"{what}-{at}")
        ended = run(out, Moment(what, at, (signal.SIGINT,)))
        assert_interrupted_well(ended, verb, is_last=at == count)
        found = {path.relative_to(out) for path in out.rglob("*")} if out.exists() else set()
        assert not [path for path in found if path.name.endswith(".tmp")], found
        assert found <= names
        assert (out / "mine.txt").read_bytes() == PRECIOUS
        ended = run(out)  # the same command again
        assert ended.code in verb.codes, ended.said


def assert_interrupted_well(ended: Ended, verb: Verb, *, is_last: bool) -> None:
    """One line at most beside what was said before; a signal that finds all done may find the command ended."""
    allowed = {INTERRUPTED, *(verb.codes if is_last else ())}
    assert ended.code in allowed, ended.said
    assert "Traceback" not in ended.said, ended.said
    assert ended.said.count("error:") <= 1


@pytest.mark.parametrize("module", ["typer", "pydantic", "detrkit.config", "detrkit.cli.shared"])
def test_ctrl_c_while_modules_are_imported_is_one_line(module: str):
    code = f"""
import builtins, runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell in the background takes away
plain = builtins.__import__
def find(name, *rest, **more):
    if name == {module!r}:
        signal.raise_signal(signal.SIGINT)
    return plain(name, *rest, **more)
builtins.__import__ = find
runpy.run_module("detrkit", run_name="__main__")
"""
    ended = subprocess.run([sys.executable, "-c", code, "models"], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (INTERRUPTED, "error: interrupted\n")
