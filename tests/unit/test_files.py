"""Files that are either whole or not there."""

import pytest

from detrkit.files import atomic_bytes, atomic_file, free_name


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
        with atomic_file(path) as file:
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
    assert list(path.parent.iterdir()) == [path]


def test_a_name_as_long_as_the_file_system_allows_can_be_written(tmp_path):
    path = tmp_path / ("n" * 255)
    with atomic_file(path) as file:
        file.write("long")
    assert path.read_text() == "long"


def test_a_name_that_is_taken_gets_the_first_free_number():
    assert free_name("a", []) == "a"
    assert free_name("a", ["a", "a-2"]) == "a-3"
    assert free_name("a", ["a"], "{} ({})") == "a (2)"
