"""Files that are either whole or not there."""

import dataclasses
import json

import numpy as np
import pytest

from detrkit.errors import UsageError
from detrkit.files import (
    NOTES,
    atomic_bytes,
    atomic_file,
    check_free,
    free_name,
    make_folder,
    parse_json,
    to_plain,
)


def test_file_appears_whole_and_replaces_the_old_one(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with atomic_file(path) as file:
        file.write("one")
        assert not path.exists()
    assert path.read_text() == "one"
    with path.open() as reader:
        with atomic_file(path) as file:
            file.write("two")
            assert path.read_text() == "one"
        assert reader.read() == "one", "who reads meanwhile sees the old file to its end"
    assert path.read_text() == "two"


def test_failure_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def fail_half_way():
        with atomic_file(path, own_folder=True) as file:
            file.write("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_half_way()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_bytes_are_whole_or_not_there(tmp_path):
    path = tmp_path / "new" / "file.bin"
    for durable, content in ((True, b"one"), (False, b"two")):
        with atomic_bytes(path, durable=durable) as file:
            file.write(content)
        assert path.read_bytes() == content

    def fail_half_way():
        with atomic_bytes(path) as file:
            file.write(b"half")
            raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        fail_half_way()
    assert path.read_bytes() == b"two"
    assert sorted(path.parent.iterdir()) == [path.with_name(NOTES), path]


FOREIGN = {
    "file": lambda path, precious: path.write_bytes(precious.read_bytes()),
    "changed": lambda path, precious: (_write(path, "ours"), path.write_text("edited")),
    "folder": lambda path, precious: path.mkdir(),
    "symlink": lambda path, precious: path.symlink_to(precious),
    "dangling symlink": lambda path, precious: path.symlink_to(precious.with_name("none")),
    "symlink to ours": lambda path, precious: (
        _write(path, "ours"),
        path.rename("moved"),
        path.symlink_to("moved"),
    ),
    "hard link": lambda path, precious: path.hardlink_to(precious),
    "renamed": lambda path, precious: (_write(path.with_name("b"), "ours"), path.with_name("b").rename(path)),
    "notes of somebody else": lambda path, precious: path.with_name(NOTES).write_text("mine"),
    "notes elsewhere": lambda path, precious: path.with_name(NOTES).symlink_to(precious),
}


def _write(path, text):
    with atomic_file(path) as file:
        file.write(text)


def state_of(folder):
    """All names below a folder, with what they are and hold."""
    paths = sorted(folder.rglob("*"))
    return {path: path.readlink() if path.is_symlink() else path.is_file() and path.read_bytes() for path in paths}


@pytest.mark.parametrize("kind", FOREIGN)
def test_only_what_was_written_here_is_replaced(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    precious = tmp_path / "precious.txt"
    precious.write_text("precious")
    path = make_folder("out") / "a"
    FOREIGN[kind](path, precious)
    before = state_of(tmp_path)
    for write in (lambda: _write(path, "new"), lambda: check_free(path), lambda: make_folder("out", "a")):
        with pytest.raises(UsageError, match="notes|a: " if "notes" not in kind else NOTES):
            write()
    assert state_of(tmp_path) == before


def test_what_was_written_is_replaced_again_and_again(tmp_path):
    path = tmp_path / "line\nbreak \udcff"
    for text in ("one", "two", "one"):
        _write(path, text)
        check_free(path)
        assert path.read_text() == text


def test_a_name_as_long_as_the_file_system_allows_can_be_written(tmp_path):
    path = tmp_path / ("n" * 255)
    _write(path, "long")
    assert path.read_text() == "long"


def test_a_name_that_is_taken_gets_the_first_free_number():
    assert free_name("a", []) == "a"
    assert free_name("a", ["a", "a-2"]) == "a-3"
    assert free_name("a", ["a"], "{} ({})") == "a (2)"


def test_numbers_of_numpy_and_paths_become_plain_whatever_holds_them(tmp_path):
    @dataclasses.dataclass
    class Found:
        share: float
        counts: dict

    found = Found(np.float64(0.5), {np.int64(3).item(): [np.float32(0.25), np.bool_(True)], 4: np.arange(2)})
    plain = to_plain([found, tmp_path], str_keys=True)
    assert plain == [{"share": 0.5, "counts": {"3": [0.25, True], "4": [0, 1]}}, str(tmp_path)]
    assert json.loads(json.dumps(plain)) == plain
    with pytest.raises(TypeError, match="cannot be written as JSON"):
        to_plain(object())


def test_json_nested_beyond_all_reason_is_no_json():
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json("[" * 100_000)
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json('{"study": ' + "[" * 100_000, dict[str, list[object]])
