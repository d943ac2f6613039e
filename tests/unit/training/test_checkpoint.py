from __future__ import annotations

import errno
import io
import os
import pickle
from pathlib import Path

import pytest
import torch

from detrkit import checkpoint
from detrkit.checkpoint import CheckpointStore, is_checkpoint, load_checkpoint, read_model, save_checkpoint
from detrkit.classes import ClassMap
from detrkit.config import Config, update_config
from detrkit.errors import CheckpointError
from detrkit.training.session import Progress


def payload(value: float = 1.0, **extra) -> dict:
    config = update_config(Config(), {"train.epochs": 7})
    return {
        "config": config.model_dump(mode="json"),
        "class_map": ClassMap(("cat", "dog"), (3, 9)).to_dict(),
        "model": {"weight": torch.full((100, 10), value), "count": torch.tensor(5)},
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"betas": (0.9, 0.99)}]},
        "ema": None,
        **extra,
    }


def flip_a_byte(path: Path, place: int = 1000) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_is_loaded(tmp_path):
    path = tmp_path / "new" / "a.pt"
    save_checkpoint(path, payload())
    loaded = load_checkpoint(path)
    assert torch.equal(loaded["model"]["weight"], torch.ones(100, 10))
    assert loaded["optimizer"]["param_groups"] == [{"betas": (0.9, 0.99)}]
    assert is_checkpoint(path)
    assert files_in(path.parent) == ["a.pt"]
    assert torch.load(path, weights_only=True)["format"] == checkpoint.FORMAT  # torch alone reads it too


@pytest.mark.parametrize("place", [0, 1000, -100, -70, -1])
def test_any_changed_byte_is_noticed(tmp_path, place):
    path = tmp_path / "a.pt"
    save_checkpoint(path, payload())
    flip_a_byte(path, place)
    with pytest.raises(CheckpointError, match=r"a\.pt is (damaged|cut off)"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("model", {"weight": 3}),
        ("model", {"weight": [1.0]}),
        ("ema", {"count": 1, "weights": {"weight": None}}),
        ("ema", {"weights": {}}),
        ("optimizer", {"state": {0: {"step": 3.0}}, "param_groups": []}),
        ("config", 3),
        ("class_map", None),
        ("log", {"records": -1}),
    ],
)
def test_a_part_of_another_type_is_named(part, value, tmp_path):
    save_checkpoint(tmp_path / "a.pt", payload(**{part: value}))
    with pytest.raises(CheckpointError, match=rf"a\.pt holds what no checkpoint does: .*\$\.{part}"):
        load_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "wrong", [{"step": "3"}, {"epoch": -1}, {"steps": 3}, {"metrics": {"AP": "high"}}, {"micro_batch": 0}, 7]
)
def test_progress_that_cannot_be_is_one_clear_error(wrong):
    with pytest.raises(CheckpointError, match="progress cannot be"):
        Progress.of({"progress": wrong})


def test_published_file_is_told_apart(tmp_path):
    torch.save({"model": {"weight": torch.ones(2)}}, tmp_path / "detr.pth")
    assert not is_checkpoint(tmp_path / "detr.pth")
    assert not is_checkpoint(tmp_path / "missing.pth")
    with pytest.raises(CheckpointError, match="not a detrkit checkpoint"):
        read_model(tmp_path / "detr.pth")
    with pytest.raises(CheckpointError, match="cannot read checkpoint"):
        read_model(tmp_path / "missing.pth")


class Payload:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return (os.mkdir, (str(self.marker),))


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_never_runs(tmp_path, zipped):
    path, marker = tmp_path / "evil.pt", tmp_path / "ran"
    buffer = io.BytesIO()
    if zipped:
        torch.save({"format": checkpoint.FORMAT, "x": Payload(marker)}, buffer)
    else:
        pickle.dump(Payload(marker), buffer)
    digest = checkpoint.hashlib.sha256(buffer.getvalue()).hexdigest()
    path.write_bytes(buffer.getvalue() + checkpoint._seal(digest))  # a correct hash proves no good will
    with pytest.raises(CheckpointError, match="cannot be loaded safely"):
        load_checkpoint(path)
    assert not marker.exists()


def test_other_format_or_version_is_named(tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    save_checkpoint(path, {"format": "other"})
    with pytest.raises(CheckpointError, match="no format: detrkit-checkpoint"):
        load_checkpoint(path)
    save_checkpoint(path, {"version": 99})
    with pytest.raises(CheckpointError, match="version 99, this detrkit reads version 1"):
        load_checkpoint(path)


class FullDisk(io.FileIO):
    room = 2000

    def write(self, data) -> int:
        if self.tell() + memoryview(data).nbytes > self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


@pytest.mark.parametrize("room", [0, 2000, 6000])
def test_full_disk_leaves_the_earlier_checkpoints(tmp_path, monkeypatch, room):
    store = CheckpointStore(tmp_path)
    store.save_last(payload(1.0))
    store.save_last(payload(2.0))
    before = files_in(store.folder)
    monkeypatch.setattr(FullDisk, "room", room)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda path, mode="r": FullDisk(path, mode.replace("b", "")))
        with pytest.raises(CheckpointError, match=r"no space left .* earlier checkpoints are untouched"):
            store.save_last(payload(3.0))
    assert files_in(store.folder) == before == ["last.pt", "previous.pt"]
    assert store.load_latest()["model"]["weight"][0, 0] == 2.0
    assert load_checkpoint(store.previous_path)["model"]["weight"][0, 0] == 1.0
    store.save_last(payload(3.0))
    assert store.load_latest()["model"]["weight"][0, 0] == 3.0


def test_damaged_newest_gives_the_one_before_with_a_warning(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save_last(payload(1.0))
    store.save_last(payload(2.0))
    flip_a_byte(store.last_path)
    again = CheckpointStore(tmp_path)
    with pytest.warns(UserWarning, match=r"last\.pt is damaged.*using previous\.pt instead"):
        assert again.load_latest()["model"]["weight"][0, 0] == 1.0
    # and the damaged one does not push the good one out
    again.save_last(payload(3.0))
    assert load_checkpoint(store.previous_path)["model"]["weight"][0, 0] == 1.0
    assert again.load_latest()["model"]["weight"][0, 0] == 3.0
    flip_a_byte(store.last_path)
    flip_a_byte(store.previous_path)
    with pytest.raises(CheckpointError, match=r"no usable checkpoint in .*last\.pt is damaged.*previous\.pt is"):
        store.load_latest()


@pytest.mark.parametrize("fails_at", [1, 2])
def test_crash_between_the_renames_loses_nothing(tmp_path, monkeypatch, fails_at):
    store = CheckpointStore(tmp_path)
    store.save_last(payload(1.0))
    store.save_last(payload(2.0))
    plain, calls = Path.replace, []

    def crash(path, target):
        calls.append(path)
        if len(calls) == fails_at + 1:  # the first is that of save_checkpoint
            raise KeyboardInterrupt
        return plain(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", crash)
        with pytest.raises(KeyboardInterrupt):
            store.save_last(payload(3.0))
    again = CheckpointStore(tmp_path)
    assert again.load_latest()["model"]["weight"][0, 0] == 3.0
    again.save_last(payload(4.0))
    assert again.load_latest()["model"]["weight"][0, 0] == 4.0
    assert files_in(store.folder) == ["last.pt", "previous.pt"]


def test_read_model_prefers_best_and_averages(tmp_path):
    store = CheckpointStore(tmp_path)
    with pytest.raises(CheckpointError, match="no usable checkpoint"):
        read_model(tmp_path)
    store.save_last(payload(1.0))
    assert read_model(tmp_path).state_dict["weight"][0, 0] == 1.0
    average = {"count": 4, "weights": {"weight": torch.full((100, 10), 8.0)}}
    store.save_best(payload(2.0, ema=average))
    config, class_map, state_dict = read_model(tmp_path)
    assert config.train.epochs == 7
    assert class_map == ClassMap(("cat", "dog"), (3, 9))
    assert state_dict["weight"][0, 0] == 8.0
    assert state_dict["count"] == 5
    assert "optimizer" not in load_checkpoint(store.best_path)
    assert read_model(store.last_path).state_dict["weight"][0, 0] == 1.0
    flip_a_byte(store.best_path)
    with pytest.warns(UserWarning, match=r"using last\.pt instead"):
        assert read_model(tmp_path).state_dict["weight"][0, 0] == 1.0


def test_checkpoint_without_model_or_with_bad_config_is_named(tmp_path):
    path = tmp_path / "a.pt"
    save_checkpoint(path, {"model": {}})
    with pytest.raises(CheckpointError, match="holds no model: config, class_map missing"):
        read_model(path)
    save_checkpoint(path, {**payload(), "config": {"train": {"speed": 3}}})
    with pytest.raises(CheckpointError, match=r"unknown config key train\.speed"):
        read_model(path)


class Disk:
    """Notes what reaches the disk, and when: (what, name of the file or folder)."""

    def __init__(self, patch: pytest.MonkeyPatch):
        self.done: list[tuple[str, str]] = []
        self.sizes: dict[str, int] = {}  # of each file when it was synced last
        self.before_rename: dict[str, dict[str, int]] = {}  # sizes by target
        self._fsync, self._replace = os.fsync, Path.replace
        patch.setattr(os, "fsync", self.fsync)
        patch.setattr(Path, "replace", lambda path, target: self.rename(path, Path(target)))

    def fsync(self, descriptor: int) -> None:
        self._fsync(descriptor)
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        self.sizes[path.name] = path.stat().st_size
        self.done.append(("sync", "temporary" if path.suffix == ".tmp" else path.name))

    def rename(self, path: Path, target: Path) -> None:
        self.before_rename[target.name] = dict(self.sizes)
        self._replace(path, target)
        self.done.append(("rename", target.name))


needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="names of open files are Linux's")


@needs_proc
def test_checkpoint_is_on_the_disk_before_an_older_one_goes(tmp_path, monkeypatch):
    """In this order power loss at any instant leaves a whole checkpoint under a name that is looked for."""
    store = CheckpointStore(tmp_path / "run")
    store.save_last(payload(1.0))
    disk = Disk(monkeypatch)
    store.save_last(payload(2.0))
    assert disk.done == [
        ("sync", "temporary"),
        ("rename", "next.pt"),
        ("sync", "checkpoints"),
        ("rename", "previous.pt"),
        ("rename", "last.pt"),
        ("sync", "checkpoints"),
    ]


@needs_proc
def test_log_is_on_the_disk_before_the_checkpoint_that_refers_to_it(toy, make_config, monkeypatch):
    disk = Disk(monkeypatch)
    toy.fit(make_config(epochs=1, log_every=1))
    log = load_checkpoint(CheckpointStore(toy.run_dir).last_path)["log"]
    synced = disk.before_rename["next.pt"]
    assert any(name.startswith("events.out.tfevents") and size for name, size in synced.items())
    lines = (toy.run_dir / "metrics.jsonl").read_bytes()[: synced["metrics.jsonl"]].count(b"\n")
    assert lines == log["records"] > 0
    assert disk.done.index(("sync", toy.run_dir.name)) < disk.done.index(("rename", "next.pt"))
