from __future__ import annotations

from pathlib import Path

import pytest

from detrkit.errors import CheckpointError
from detrkit.training.telemetry.append import AppendFile, cut_lines
from tests.unit.training.disk import FullDisk


def test_a_full_disk_loses_no_piece_and_leaves_no_half_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "log"
    file = AppendFile(path)
    full_disk = FullDisk(monkeypatch, room=6)
    assert file.append(b"one\n")
    assert not file.append(b"two\n")  # half of it fits
    assert not file.append(b"three\n")
    assert path.read_bytes() == b"one\n"
    with pytest.raises(CheckpointError, match=f"no space left for {path}.*free space and go on"):
        file.sync()
    full_disk.room = 100
    assert file.append(b"four\n")
    file.sync()
    file.close()
    assert path.read_bytes() == b"one\ntwo\nthree\nfour\n"
    assert file.problem is None


def test_cut_keeps_whole_lines(tmp_path: Path):
    path = tmp_path / "log"
    path.write_bytes(b"one\ntwo\nhalf")
    assert cut_lines(path, 9) == 2
    assert path.read_bytes() == b"one\ntwo\n"
    assert cut_lines(path, 1) == 1
    assert path.read_bytes() == b"one\n"
    assert cut_lines(tmp_path / "none", 1) == 0
