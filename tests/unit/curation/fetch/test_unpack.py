"""Unpacking archives, most of them hostile."""

from __future__ import annotations

import io
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from detrkit.curation.fetch import unpack as module
from detrkit.curation.fetch.unpack import commit_of, unpack
from detrkit.errors import DataError, DownloadError


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {"MAX_FILES": 20, "MAX_BYTES": 1_000_000, "MAX_RATIO": 50, "NO_RATIO_BYTES": 10_000}
    for name, value in limits.items():
        monkeypatch.setattr(module, name, value)


def make_zip(path: Path, members: dict[str, bytes], modes: dict[str, int] | None = None) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            info = zipfile.ZipInfo("x")
            info.filename = name  # the constructor would make some hostile names harmless
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = (modes or {}).get(name, stat.S_IFREG | 0o644) << 16
            file.writestr(info, content)
    return path


def make_tar(path: Path, members: list[tarfile.TarInfo | tuple[str, bytes]], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as file:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                file.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                file.addfile(info, io.BytesIO(member[1]))
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def files_under(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def unpack_into(archive: Path) -> Path:
    folder = archive.parent / "aside" / "unpacked"
    unpack(archive, folder, lambda *_what: None)
    return folder


GOOD = {"set/images/a b.jpg": b"first", "set/labels/a b.txt": b"0 .5 .5 1 1\n", "ü.txt": b"", "top": b"x" * 5000}


def test_a_zip_file_is_unpacked(tmp_path: Path):
    archive = make_zip(tmp_path / "set.zip", {**GOOD, "set/empty/": b""})
    assert files_under(unpack_into(archive)) == GOOD


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz", "w:bz2"])
def test_a_tar_file_is_unpacked(tmp_path: Path, mode: str):
    folder = special("set", tarfile.DIRTYPE)
    archive = make_tar(tmp_path / "set.tar", [folder, *GOOD.items()], mode)
    assert files_under(unpack_into(archive)) == GOOD


def test_progress_counts_bytes_up_to_all(tmp_path: Path):
    seen: list[tuple[int, int | None]] = []
    archive = make_zip(tmp_path / "set.zip", GOOD)
    unpack(archive, tmp_path / "new", lambda _title, done, total: seen.append((done, total)))
    total = sum(map(len, GOOD.values()))
    assert seen[-1] == (total, total)


def test_what_file_browsers_leave_behind_is_not_unpacked(tmp_path: Path):
    junk = dict.fromkeys(["__MACOSX/set/._a", "set/._a", "set/.DS_Store", "set/Thumbs.db"], b"junk")
    archive = make_zip(tmp_path / "set.zip", {**GOOD, **junk})
    assert files_under(unpack_into(archive)) == GOOD


def test_a_half_unpacked_folder_is_started_anew(tmp_path: Path):
    archive = make_zip(tmp_path / "set.zip", GOOD)
    old = tmp_path / "aside" / "unpacked" / "half"
    old.mkdir(parents=True)
    (old / "file").write_text("old")
    assert files_under(unpack_into(archive)) == GOOD


def test_unpacked_files_get_no_rights_from_the_archive(tmp_path: Path):
    mode = stat.S_IFREG | stat.S_ISUID | 0o777
    folder = unpack_into(make_zip(tmp_path / "set.zip", {"run": b"#!"}, {"run": mode}))
    assert not (folder / "run").stat().st_mode & (stat.S_ISUID | 0o111)


OUTSIDE = ["../out", "a/../../out", "/tmp/out", "a/../../../out", "..\\out", "C:\\out", "c:out", "\\\\host\\out"]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("make", [make_zip, lambda path, members: make_tar(path, list(members.items()))])
def test_a_path_that_leads_outside_is_refused(
    tmp_path: Path, name: str, make: Callable[[Path, dict[str, bytes]], Path]
):
    archive = make(tmp_path / "set.archive", {"good": b"good", name: b"evil"})
    before = files_under(tmp_path)
    with pytest.raises(DataError, match=r"set.archive is not unpacked: the path .*(leads outside|is absolute)"):
        unpack_into(archive)
    written = {name for name in files_under(tmp_path) if name not in before}
    assert written <= {"aside/unpacked/good"}  # a tar file is judged member by member


@pytest.mark.parametrize(
    ("name", "reason"), [("a\nb", "control characters"), ("a\x1b[2J", "control"), (".", "leads outside")]
)
def test_a_name_that_is_no_file_name_is_refused(tmp_path: Path, name: str, reason: str):
    with pytest.raises(DataError, match=reason):
        unpack_into(make_zip(tmp_path / "set.zip", {name: b""}))
    with pytest.raises(DataError, match=reason):
        unpack_into(make_tar(tmp_path / "set.tar", [(name, b"")]))


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK], ids=hex)
def test_links_and_devices_in_a_zip_file_are_refused(tmp_path: Path, kind: int):
    archive = make_zip(tmp_path / "set.zip", {"good": b"good", "evil": b"/etc/passwd"}, {"evil": kind | 0o777})
    with pytest.raises(DataError, match="'evil' is a link or a device"):
        unpack_into(archive)
    assert files_under(tmp_path / "aside") == {"unpacked/good": b"good"}


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_in_a_tar_file_are_refused(tmp_path: Path, kind: bytes):
    archive = make_tar(tmp_path / "set.tar", [special("evil", kind, "/etc"), ("evil/passwd", b"mine")])
    with pytest.raises(DataError, match="'evil' is a link or a device"):
        unpack_into(archive)
    assert not any(path.is_symlink() or path.is_file() for path in (tmp_path / "aside").rglob("*"))


def test_too_many_files_are_refused(tmp_path: Path):
    members = {f"{number}": b"" for number in range(21)}
    with pytest.raises(DataError, match="more than 20 files"):
        unpack_into(make_zip(tmp_path / "set.zip", members))
    with pytest.raises(DataError, match="more than 20 files"):
        unpack_into(make_tar(tmp_path / "set.tar", list(members.items())))
    assert len(files_under(tmp_path / "aside")) <= 20


def test_too_many_bytes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "MAX_BYTES", 1_500)
    members = {"a": b"x" * 1_000, "b": b"y" * 1_000}
    for archive in (
        make_zip(tmp_path / "set.zip", members),
        make_tar(tmp_path / "set.tar", list(members.items())),
    ):
        with pytest.raises(DataError, match=r"unpacks to more than 2 kB"):
            unpack_into(archive)


def test_a_small_archive_that_unpacks_to_very_much_is_refused(tmp_path: Path):
    members = {"zeros": bytes(900_000)}
    with pytest.raises(DataError, match="more than 50 times its own size"):
        unpack_into(make_zip(tmp_path / "set.zip", members))
    with pytest.raises(DataError, match="more than 50 times its own size"):
        unpack_into(make_tar(tmp_path / "set.tar", list(members.items())))
    assert not files_under(tmp_path / "aside")


def lie_about_the_size(archive: Path, size: int) -> None:
    content = bytearray(archive.read_bytes())
    for signature, at in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):  # both places that say the size
        struct.pack_into("<I", content, content.index(signature) + at, size)
    archive.write_bytes(content)


def test_a_member_that_is_larger_than_listed_is_refused(tmp_path: Path):
    archive = make_zip(tmp_path / "set.zip", {"liar": bytes(100_000)})
    lie_about_the_size(archive, 10)
    with pytest.raises(DataError):
        unpack_into(archive)
    assert sum(map(len, files_under(tmp_path / "aside").values())) <= 10


def test_a_member_that_is_smaller_than_listed_is_refused(tmp_path: Path):
    archive = make_zip(tmp_path / "set.zip", {"liar": bytes(1_000)})
    lie_about_the_size(archive, 2_000)
    with pytest.raises(DataError, match="'liar' is cut off"):
        unpack_into(archive)


def test_the_same_path_twice_or_as_file_and_folder_is_refused(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as file:
        file.writestr("a", b"1")
        with pytest.warns(UserWarning, match="Duplicate name"):
            file.writestr("a", b"2")
    archives = [
        tmp_path / "set.zip",
        make_tar(tmp_path / "1.tar", [("a", b"1"), ("./a", b"2")]),
        make_zip(tmp_path / "2.zip", {"a": b"1", "a/b": b"2"}),
        make_zip(tmp_path / "3.zip", {"a/b": b"1", "a": b"2"}),
        make_tar(tmp_path / "4.tar", [("a", b"1"), ("a/b", b"2")]),
    ]
    for archive in archives:
        with pytest.raises(DataError, match="twice, or as a file and a folder"):
            unpack_into(archive)


def test_an_encrypted_zip_file_is_refused(tmp_path: Path):
    archive = make_zip(tmp_path / "set.zip", {"a": b"secret"})
    content = bytearray(archive.read_bytes())
    for signature, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + at] |= 1
    archive.write_bytes(content)
    with pytest.raises(DataError, match="is damaged, encrypted or cut off"):
        unpack_into(archive)


@pytest.mark.parametrize("part", [0.0, 0.3, 0.7, 0.99])
@pytest.mark.parametrize("name", ["set.zip", "set.tar"])
def test_a_cut_off_archive_is_an_error(tmp_path: Path, name: str, part: float):
    import random

    members = {f"{number}.jpg": random.Random(number).randbytes(10_000) for number in range(10)}
    path = tmp_path / name
    archive = make_zip(path, members) if name == "set.zip" else make_tar(path, list(members.items()))
    content = archive.read_bytes()
    archive.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(DataError, match=f"{name} is (neither a zip nor a tar file|damaged|not unpacked)"):
        unpack_into(archive)


def test_a_damaged_member_is_an_error(tmp_path: Path):
    archive = make_zip(tmp_path / "set.zip", {"a": bytes(range(256)) * 40})
    content = bytearray(archive.read_bytes())
    content[60] ^= 0xFF
    archive.write_bytes(content)
    with pytest.raises(DataError, match=r"set\.zip is damaged"):
        unpack_into(archive)


def test_a_web_page_is_not_an_archive(tmp_path: Path):
    page = tmp_path / "set.zip"
    page.write_text("<html>please log in</html>")
    with pytest.raises(DataError, match="neither a zip nor a tar file"):
        unpack_into(page)


def test_too_little_space_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr("detrkit.download.shutil.disk_usage", lambda _path: usage)
    with pytest.raises(DownloadError, match="kB are needed"):
        unpack_into(make_zip(tmp_path / "set.zip", GOOD))
    assert not files_under(tmp_path / "aside")


def test_the_commit_of_a_github_archive_is_read(tmp_path: Path):
    archive = make_zip(tmp_path / "set.zip", GOOD)
    assert commit_of(archive) == ""
    with zipfile.ZipFile(archive, "a") as file:
        file.comment = b"d272fb14cdff6e473fafeeeba32aba5f560e9e43"
    assert commit_of(archive) == "d272fb14cdff6e473fafeeeba32aba5f560e9e43"
    assert commit_of(make_tar(tmp_path / "set.tar", [("a", b"")])) == ""
