"""Unpacking archives, most of them hostile."""

from __future__ import annotations

import io
import random
import stat
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest

from detrkit.curation.fetch import unpack as module
from detrkit.curation.fetch.unpack import unpack
from detrkit.errors import DataError, DownloadError

Members = dict[str, bytes]
GOOD = {"set/images/a b.jpg": b"first", "set/labels/a b.txt": b"0 .5 .5 1 1\n", "ü.txt": b"", "top": b"x" * 5000}


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {"MAX_FILES": 20, "MAX_BYTES": 950_000, "MAX_RATIO": 50, "NO_RATIO_BYTES": 10_000}
    for name, value in limits.items():
        monkeypatch.setattr(module, name, value)


def make_zip(path: Path, members: Members, modes: dict[str, int] | None = None) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            info = zipfile.ZipInfo("x")
            info.filename = name  # the constructor would make some hostile names harmless
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = (modes or {}).get(name, stat.S_IFREG | 0o644) << 16
            file.writestr(info, content)
    return path


def make_tar(path: Path, members: Members, kinds: dict[str, bytes] | None = None, mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            if kind := (kinds or {}).get(name):
                info.type, info.linkname, info.size = kind, "/etc", 0
            file.addfile(info, io.BytesIO(content))
    return path


def both(folder: Path, members: Members) -> list[Path]:
    return [make_zip(folder / "set.zip", members), make_tar(folder / "set.tar.gz", members)]


def files_under(folder: Path) -> Members:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def unpack_into(archive: Path) -> Path:
    folder = archive.parent / "aside" / "unpacked"
    unpack(archive, folder, lambda *_what: None)
    return folder


def refused(archive: Path, reason: str) -> Members:
    """What was written before the archive was refused."""
    with pytest.raises(DataError, match=rf"{archive.name} is .*{reason}"):
        unpack_into(archive)
    return files_under(archive.parent / "aside")


@pytest.mark.parametrize("mode", ["zip", "w", "w:gz", "w:xz", "w:bz2"])
def test_an_archive_is_unpacked_without_what_file_browsers_leave_behind(tmp_path: Path, mode: str):
    junk = dict.fromkeys(["__MACOSX/set/._a", "set/._a", "set/.DS_Store", "set/Thumbs.db"], b"junk")
    if mode == "zip":
        archive = make_zip(tmp_path / "set.zip", {**GOOD, **junk, "set/empty/": b""})
    else:
        kinds = {"set": tarfile.DIRTYPE}
        archive = make_tar(tmp_path / "set.tar", {"set": b"", **GOOD, **junk}, kinds, mode)
    old = tmp_path / "aside" / "unpacked" / "half"  # left by a run that was killed
    old.mkdir(parents=True)
    (old / "file").write_text("old")
    assert files_under(unpack_into(archive)) == GOOD


def test_unpacked_files_get_no_rights_from_the_archive(tmp_path: Path):
    mode = stat.S_IFREG | stat.S_ISUID | 0o777
    folder = unpack_into(make_zip(tmp_path / "set.zip", {"run": b"#!"}, {"run": mode}))
    assert not (folder / "run").stat().st_mode & (stat.S_ISUID | 0o111)


OUTSIDE = ["../out", "a/../../out", "/tmp/out", "a/../../../out", "..\\out", "C:\\out", "c:out", "\\\\host\\out"]


@pytest.mark.parametrize("name", [*OUTSIDE, ".", "a\nb", "a\x1b[2J"])
def test_a_path_that_leads_outside_or_is_none_is_refused(tmp_path: Path, name: str):
    for archive in both(tmp_path, {"good": b"good", name: b"evil"}):
        left = refused(archive, "not unpacked: the path .*(leads outside|is absolute|holds control characters)")
        assert left == {"unpacked/good": b"good"}
    assert len(files_under(tmp_path)) == 3  # the two archives, and the good file


def test_links_and_devices_are_refused(tmp_path: Path):
    members = {"good": b"good", "evil": b"/etc/passwd", "evil/passwd": b"mine"}
    for mode in (stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK):
        archive = make_zip(tmp_path / "set.zip", members, {"evil": mode | 0o777})
        assert refused(archive, "'evil' is a link or a device") == {"unpacked/good": b"good"}
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE):
        archive = make_tar(tmp_path / "set.tar", members, {"evil": kind})
        assert refused(archive, "'evil' is a link or a device") == {"unpacked/good": b"good"}


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({str(number): b"" for number in range(21)}, "more than 20 files"),
        ({name: random.Random(name).randbytes(500_000) for name in "ab"}, "unpacks to more than 950 kB"),
        ({"zeros": bytes(900_000)}, "more than 50 times its own size"),
    ],
)
def test_floods_are_refused(tmp_path: Path, members: Members, reason: str):
    for archive in both(tmp_path, members):
        assert len(refused(archive, reason)) <= 20


@pytest.mark.parametrize("size", [10, 200_000])
def test_a_member_of_another_size_than_listed_is_refused(tmp_path: Path, size: int):
    archive = make_zip(tmp_path / "set.zip", {"liar": random.Random(0).randbytes(100_000)})
    content = bytearray(archive.read_bytes())
    for signature, at in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):  # both places that say the size
        struct.pack_into("<I", content, content.index(signature) + at, size)
    archive.write_bytes(content)
    assert sum(map(len, refused(archive, "").values())) <= 100_000


def test_the_same_path_twice_or_as_file_and_folder_is_refused(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "twice.zip", "w") as file:
        file.writestr("a", b"1")
        with pytest.warns(UserWarning, match="Duplicate name"):
            file.writestr("a", b"2")
    archives = [
        tmp_path / "twice.zip",
        make_tar(tmp_path / "1.tar", {"a": b"1", "./a": b"2"}),
        make_zip(tmp_path / "2.zip", {"a/b": b"1", "a": b"2"}),
        *both(tmp_path, {"a": b"1", "a/b": b"2"}),
    ]
    for archive in archives:
        refused(archive, "twice, or as a file and a folder")


def test_an_encrypted_zip_file_is_refused(tmp_path: Path):
    archive = make_zip(tmp_path / "set.zip", {"a": b"secret"})
    content = bytearray(archive.read_bytes())
    for signature, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + at] |= 1
    archive.write_bytes(content)
    refused(archive, "damaged, encrypted or cut off")


@pytest.mark.parametrize("part", [0.0, 0.3, 0.7, 0.99])
def test_a_cut_off_or_damaged_archive_is_an_error(tmp_path: Path, part: float):
    members = {f"{number}.jpg": random.Random(number).randbytes(10_000) for number in range(10)}
    for archive in both(tmp_path, members):
        content = bytearray(archive.read_bytes())
        archive.write_bytes(content[: int(len(content) * part)])
        refused(archive, "(neither a zip nor a tar file|damaged|not unpacked)")
    archive = make_zip(tmp_path / "set.zip", {"a": bytes(range(256)) * 40})
    content = bytearray(archive.read_bytes())
    content[60] ^= 0xFF
    archive.write_bytes(content)
    refused(archive, "damaged")


def test_too_little_space_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr("detrkit.download.shutil.disk_usage", lambda _path: usage)
    with pytest.raises(DownloadError, match="kB are needed"):
        unpack_into(make_zip(tmp_path / "set.zip", GOOD))
    assert not files_under(tmp_path / "aside")
