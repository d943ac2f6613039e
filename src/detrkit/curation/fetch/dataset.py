"""Fetching a data set: what is missing is downloaded, checked, unpacked aside, laid out and moved in place."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from detrkit.curation.fetch.catalogue import CATALOGUE
from detrkit.curation.fetch.download import Digests, disk_errors, download, hash_file, kept_bytes, mismatch
from detrkit.curation.fetch.entry import Archive, DatasetEntry, Part
from detrkit.curation.fetch.extract import Limits, commit_of, unpack
from detrkit.curation.fetch.pieces import Report, Say, Talk, need_space
from detrkit.curation.fetch.receipt import (
    RECEIPT,
    FetchedFile,
    FetchedPart,
    lost_parts,
    read_receipt,
    write_receipt,
)
from detrkit.curation.fetch.web import Policy
from detrkit.errors import DataError, UsageError
from detrkit.files import atomic_file, make_folder

ARCHIVES = "archives"
"""Folder of kept archives, and of archives that were fetched by other means."""
LICENCE_FILE = "LICENCE.txt"
MAX_CONNECTIONS = 16

_WORK = ".detrkit-fetch"


@dataclasses.dataclass(frozen=True)
class FetchResult:
    """Where a data set lies and what of it is there.

    Args:
        name: Name of the data set.
        folder: Its folder.
        fetched: Parts that were fetched now.
        present: Parts that are there, fetched now or before, with what they hold.
    """

    name: str
    folder: Path
    fetched: tuple[str, ...]
    present: dict[str, FetchedPart]


def fetch_dataset(
    name: str,
    out: str | os.PathLike[str] | None = None,
    *,
    parts: Sequence[str] | None = None,
    connections: int = 4,
    keep_archives: bool = False,
    force: bool = False,
    say: Say = print,
    report: Report | None = None,
) -> FetchResult:
    """Fetch a data set of the catalogue; see :func:`fetch`.

    Raises:
        UsageError: There is no data set or part of this name, or the folder cannot be used.
        DataError: It cannot be fetched, or is not what was published.
    """
    entry = CATALOGUE.get(name)
    if entry is None:
        known = ", ".join(CATALOGUE)
        raise UsageError(f"there is no data set {name!r} to fetch; known are {known}")
    return fetch(
        entry,
        name if out is None else out,
        parts=parts,
        connections=connections,
        keep_archives=keep_archives,
        force=force,
        say=say,
        report=report,
    )


def fetch(
    entry: DatasetEntry,
    out: str | os.PathLike[str],
    *,
    parts: Sequence[str] | None = None,
    connections: int = 4,
    keep_archives: bool = False,
    force: bool = False,
    limits: Limits | None = None,
    policy: Policy | None = None,
    say: Say = print,
    report: Report | None = None,
) -> FetchResult:
    """Fetch what is missing of a data set into its folder.

    Args:
        entry: Which data set.
        out: Its folder; made if it is not there.
        parts: Names of the parts wanted; the usual ones if None.
        connections: Connections to the server at once.
        keep_archives: Keep what was downloaded in the folder ``archives``.
        force: Fetch parts that are there already once more.
        limits: What an archive may hold.
        policy: How patiently to fetch.
        say: Called with every message for people.
        report: Called with what is being done, and the bytes done and in all.

    Raises:
        UsageError: There is no such part, or the folder holds something else.
        DataError: It cannot be fetched, is not what was published, or the disk is full.
    """
    wanted = _chosen(entry, parts)
    if not 1 <= connections <= MAX_CONNECTIONS:
        raise UsageError(f"{connections} connections at once, expected 1 to {MAX_CONNECTIONS}")
    folder = _folder_for(entry, out)
    talk = Talk(say, report or (lambda _title, _done, _total: None))
    with disk_errors(folder / _WORK), _alone(folder):
        present = read_receipt(folder, entry.name)
        missing = _missing(entry, folder, wanted, present, force, talk)
        if missing:
            say(f"{entry.title}: {_licence_line(entry)}")
            _write_licence(entry, folder)
            _check_space(missing, folder, keep_archives)
        work = _Work(
            entry, folder, talk, connections, keep_archives, force, limits or Limits(), policy or Policy()
        )
        for part in missing:
            before = present.get(part.name)
            present[part.name] = work.fetch_part(part, before)
            write_receipt(folder, _head(entry), present)
            work.clean(part)
        _remove_if_empty(folder / _WORK)
    return FetchResult(entry.name, folder, tuple(part.name for part in missing), present)


@dataclasses.dataclass(frozen=True)
class _Work:
    """Fetches parts of one data set into one folder; everything unfinished lies in a folder of its own there."""

    entry: DatasetEntry
    folder: Path
    talk: Talk
    connections: int
    keep_archives: bool
    force: bool
    limits: Limits
    policy: Policy

    def fetch_part(self, part: Part, before: FetchedPart | None) -> FetchedPart:
        """Download, unpack, arrange, and move into place."""
        files = []
        tree = self.folder / _WORK / f"{part.name}.tree"
        if tree.exists():
            shutil.rmtree(tree)
        tree.mkdir(parents=True)
        earlier = {file.url: file for file in before.archives} if before else {}
        for archive in part.archives:
            path, digests = self._get(archive)
            self._notice_change(archive, earlier.get(archive.url), digests)
            commit = commit_of(path)
            if archive.commit is not None and commit is not None and commit != archive.commit:
                raise DataError(f"{archive.url}: holds commit {commit}, expected {archive.commit}")
            self._unpack(archive, path, tree)
            files.append(
                FetchedFile(archive.url, digests.size, digests.sha256, digests.md5, archive.check, commit)
            )
        if part.arrange is not None:
            self.talk.say(f"laying out as {self.entry.layout}")
            part.arrange(tree)
        folders, size = _inventory(tree)
        self._place(tree)
        return FetchedPart(tuple(files), folders, size)

    def clean(self, part: Part) -> None:
        """Remove, or keep, the archives of a part that is in place."""
        for archive in part.archives:
            path = self.folder / _WORK / archive.file_name
            if path.exists() and self.keep_archives:
                path.replace(make_folder(self.folder / ARCHIVES) / path.name)
            path.unlink(missing_ok=True)

    def _get(self, archive: Archive) -> tuple[Path, Digests]:
        """The archive on this disk: put there by hand, left by an earlier run, or downloaded."""
        given = self.folder / ARCHIVES / archive.file_name
        path = self.folder / _WORK / archive.file_name
        for found in () if self.force else (given, path):
            if found.is_file():
                digests = hash_file(found, archive, self.talk.report)
                wrong = mismatch(archive, digests)
                if wrong is None:
                    self.talk.say(f"{found.name}: it is here already, nothing to download")
                    return found, digests
                if found == given:
                    raise DataError(f"{found}: {wrong}; remove it to have it fetched")
                found.unlink()
        kept = kept_bytes(path)
        self.talk.say(f"{'Going on with' if kept else 'Fetching'} {archive.url} ({archive.check})")
        digests = download(archive, path, connections=self.connections, policy=self.policy, talk=self.talk)
        if not archive.sha256:
            self.talk.say(f"{path.name}: SHA-256 {digests.sha256}, {archive.check}; noted in {RECEIPT}")
        return path, digests

    def _notice_change(self, archive: Archive, earlier: FetchedFile | None, digests: Digests) -> None:
        if earlier is not None and earlier.sha256 != digests.sha256:
            self.talk.say(
                f"WARNING: {archive.url} has changed: its SHA-256 is {digests.sha256}, and was {earlier.sha256} "
                "when it was fetched before"
            )

    def _unpack(self, archive: Archive, path: Path, tree: Path) -> None:
        aside = self.folder / _WORK / f"{archive.file_name}.unpacked"
        with disk_errors(aside):
            try:
                unpack(path, aside, self.limits, self.talk.report)
                top = _folder_holding(aside, archive)
                for inner, target in archive.nested:
                    self._unpack_inner(top / inner, top / target)
                _merge(top, tree)
            finally:
                shutil.rmtree(aside, ignore_errors=True)

    def _unpack_inner(self, path: Path, target: Path) -> None:
        if not path.is_file():
            raise DataError(f"{path.name} is not in the archive, expected a zip file inside it")
        aside = path.with_name(f"{path.name}.unpacked")
        unpack(path, aside, self.limits, self.talk.report)
        path.unlink()
        _merge(aside, target)
        aside.rmdir()

    def _place(self, tree: Path) -> None:
        """Move what was laid out into the folder, whole folders at once where they are not there yet."""
        # The disk may write the receipt before the files that it vouches for, unless told to write all first.
        if hasattr(os, "sync"):
            os.sync()
        _merge(tree, self.folder)
        tree.rmdir()


def _chosen(entry: DatasetEntry, names: Sequence[str] | None) -> list[Part]:
    wanted = list(names) if names else list(entry.defaults)
    known = {part.name: part for part in entry.parts}
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise UsageError(f"{entry.name} has no part {unknown[0]!r}; it has {', '.join(known)}")
    return [part for part in entry.parts if part.name in wanted]


def _folder_for(entry: DatasetEntry, out: str | os.PathLike[str]) -> Path:
    folder = make_folder(out)
    ours = {RECEIPT, _WORK, ARCHIVES, LICENCE_FILE}
    names = {path.name for path in folder.iterdir()}
    # A disk of its own for the data starts with lost+found; hidden files are nobody's data set.
    others = {name for name in names if not name.startswith(".") and name != "lost+found"}
    if others and not names & ours:
        raise UsageError(
            f"{folder} is not empty and was not made by fetching; give an empty or a new folder for {entry.name}"
        )
    return folder


def _missing(
    entry: DatasetEntry,
    folder: Path,
    wanted: Sequence[Part],
    present: dict[str, FetchedPart],
    force: bool,
    talk: Talk,
) -> list[Part]:
    """Parts to fetch: not there, no longer whole, or asked for once more."""
    lost = lost_parts(folder, present)
    missing = []
    for part in wanted:
        if part.name in present and part.name not in lost and not force:
            talk.say(f"{entry.name}: {part.name} is complete in {folder} ({present[part.name].files:,} files)")
            continue
        if part.name in lost:
            talk.say(f"{entry.name}: {part.name} is no longer complete ({lost[part.name]}); fetching it again")
        missing.append(part)
    return missing


def _check_space(parts: Sequence[Part], folder: Path, keep_archives: bool) -> None:
    """Refuse what cannot fit before anything is fetched; sizes that are not known count as nothing."""
    archives = [archive for part in parts for archive in part.archives]
    sizes = {archive.url: archive.size or archive.about or 0 for archive in archives}
    work = folder / _WORK
    here = {
        archive.url: sizes[archive.url]
        if (work / archive.file_name).exists()
        else kept_bytes(work / archive.file_name)
        for archive in archives
    }
    to_fetch = sum(sizes.values()) if keep_archives else max(sizes.values(), default=0)
    unpacked = sum(archive.unpacked or sizes[archive.url] for archive in archives)
    need_space(folder / RECEIPT, max(0, to_fetch + unpacked - sum(here.values())))


def _folder_holding(aside: Path, archive: Archive) -> Path:
    """The folder in what was unpacked that is the top of the data set; archives wrap it in up to three folders."""
    for depth in range(4):
        found = sorted(aside.glob("*/" * depth + archive.root))
        if found:
            return found[0].parents[len(Path(archive.root).parts) - 1]
    raise DataError(
        f"{archive.file_name} does not hold {archive.root}, as it should: the file at {archive.url} is another one"
    )


def _merge(source: Path, target: Path) -> None:
    """Move everything in a folder into another: at once what is not there, file by file what is."""
    target.mkdir(exist_ok=True)
    for path in sorted(source.iterdir()):
        there = target / path.name
        if path.is_dir() and there.is_dir():
            _merge(path, there)
            path.rmdir()
        elif path.is_dir() and not there.exists():
            path.rename(there)
        elif there.is_dir() or path.is_dir():
            raise DataError(f"{there} is in the way: one is a file, the other a folder; move it elsewhere")
        else:
            path.replace(there)


def _inventory(tree: Path) -> tuple[dict[str, int], int]:
    """Number of files in each folder, and their bytes together."""
    folders: dict[str, int] = {}
    size = 0
    for path in tree.rglob("*"):
        if path.is_file():
            size += path.stat().st_size
            if not path.name.startswith("."):
                inside = path.parent.relative_to(tree).as_posix()
                folders[inside] = folders.get(inside, 0) + 1
    return dict(sorted(folders.items())), size


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep a second fetch out of the same folder while this one is at work.

    Raises:
        UsageError: There is one at work.
    """
    try:
        import fcntl
    except ImportError:  # not on Windows; two fetches at once are then the user's care
        yield
        return
    work = folder / _WORK
    work.mkdir(exist_ok=True)
    with (work / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(f"{folder}: another fetch is at work here; wait for it, or stop it") from error
        except OSError:  # a network disk without locks
            pass
        yield


def _remove_if_empty(work: Path) -> None:
    """Remove the folder of unfinished work, unless another part is unfinished in it."""
    for stale in work.glob(".*.tmp"):  # of a run that was killed while it wrote its state
        stale.unlink()
    (work / "lock").unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        work.rmdir()


def _licence_line(entry: DatasetEntry) -> str:
    licence = entry.licence
    note = f" {licence.note}" if licence.note else ""
    return f"licence {licence.name}, see {licence.url}.{note}"


def _write_licence(entry: DatasetEntry, folder: Path) -> None:
    licence = entry.licence
    lines = [entry.title, f"Home page: {entry.source}", f"Licence: {licence.name}", f"Stated at: {licence.url}"]
    with atomic_file(folder / LICENCE_FILE) as file:
        file.write("\n".join([*lines, *([licence.note] if licence.note else [])]) + "\n")


def _head(entry: DatasetEntry) -> dict[str, object]:
    return {
        "name": entry.name,
        "title": entry.title,
        "source": entry.source,
        "licence": dataclasses.asdict(entry.licence),
        "layout": entry.layout,
    }
