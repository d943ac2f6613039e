"""Files that are either whole or not there."""

import pytest

from detrkit.files import atomic_file


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
