"""Fetching a data set: what is missing is downloaded, checked, unpacked aside, laid out and moved in place."""

from __future__ import annotations

import contextlib
import filecmp
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from detrkit.curation.fetch.catalogue import Archive, DatasetEntry, Licence, Part, find_entry
from detrkit.curation.fetch.unpack import commit_of, unpack
from detrkit.download import Report, disk_errors, download, hash_of, mismatch, need_space, no_report
from detrkit.errors import DataError, UsageError, listed
from detrkit.files import IMAGE_SUFFIXES, make_folder, parse_json, remove_leftovers, write_text

ARCHIVES = "archives"
"""Folder of kept archives, and of archives that were fetched by other means."""
LICENCE_FILE = "LICENCE.txt"
RECEIPT = ".detrkit-fetch.json"

_WORK = ".detrkit-fetch"
_VERSION = 1
_EVERY_FIFTH = 5
"""Where a data set has no split of its own, every fifth image in the order of the names is for validation."""


class FetchedFile(msgspec.Struct, frozen=True):
    """An archive that was fetched: its hashes, published or not, and what it was checked against, in words."""

    url: str
    size: int
    sha256: str
    md5: str | None
    check: str
    commit: str | None = None


class FetchedPart(msgspec.Struct, frozen=True):
    """A part of a data set that is whole in the folder.

    Args:
        archives: files that it was unpacked from
        folders: number of its files in each folder, so that a loss is noticed
        bytes: size of all its files
    """

    archives: tuple[FetchedFile, ...]
    folders: Mapping[str, int]
    bytes: int

    @property
    def files(self) -> int:
        """Number of its files."""
        return sum(self.folders.values())


class Receipt(msgspec.Struct, frozen=True):
    """Content of ``.detrkit-fetch.json``: which parts of which data set lie in the folder."""

    version: int
    name: str
    title: str
    source: str
    licence: Licence
    layout: str
    parts: Mapping[str, FetchedPart]


class FetchResult(msgspec.Struct, frozen=True):
    """Name and folder of a data set, the parts that were fetched now, and all that are there."""

    name: str
    folder: Path
    fetched: tuple[str, ...]
    present: Mapping[str, FetchedPart]


def fetch_dataset(
    data_set: str | DatasetEntry,
    out: str | os.PathLike[str] | None = None,
    *,
    parts: Sequence[str] | None = None,
    keep_archives: bool = False,
    force: bool = False,
    say: Callable[[str], None] = print,
    report: Report = no_report,
) -> FetchResult:
    """Fetch what is missing of a data set into its folder.

    Args:
        data_set: data set, or its name in the catalogue
        out: its folder, made if it is not there; one of its name if None
        parts: names of the parts wanted; the usual ones if None
        keep_archives: keep what was downloaded in the folder ``archives``
        force: fetch parts that are there already once more
        say: called with every message for people
        report: called with what is being done, and the bytes done and in all

    Raises:
        UsageError: There is no such data set or part, or the folder holds something else.
        DataError: It is not what was published.
        DownloadError: It cannot be fetched, or the disk is full.
    """
    entry = find_entry(data_set) if isinstance(data_set, str) else data_set
    wanted = _chosen(entry, parts)
    folder = _folder_for(entry, entry.name if out is None else out)
    work = folder / _WORK
    with disk_errors(work), _alone(work):
        present = _read_receipt(folder, entry.name)
        missing = _missing(entry, folder, wanted, present, force, say)
        # The licence comes before the first byte, and so does the refusal of what cannot fit.
        if missing:
            _tell_licence(entry, folder, say)
            _check_space([entry.parts[name] for name in missing], work, keep_archives)
        for name in missing:
            part = entry.parts[name]
            archives = {archive: _get(archive, folder, force, say, report) for archive in part.archives}
            tree = work / f"{name}.tree"
            present[name] = _lay_out(part, archives, tree, report)
            # The disk may write the receipt before the files that it vouches for, unless told to write all first.
            if hasattr(os, "sync"):
                os.sync()
            if not force:
                _check_merge(tree, folder)
            _merge(tree, folder)
            _write_receipt(entry, folder, present)
            # The archives are needed no longer; what lies in the folder archives stays.
            for path in archives.values():
                if path.parent == work and keep_archives:
                    path.replace(make_folder(folder / ARCHIVES) / path.name)
                elif path.parent == work:
                    path.unlink()
    _remove_if_empty(work)
    return FetchResult(entry.name, folder, tuple(missing), present)


def _chosen(entry: DatasetEntry, names: Sequence[str] | None) -> list[str]:
    wanted = names or entry.defaults
    unknown = [name for name in wanted if name not in entry.parts]
    if unknown:
        raise UsageError(f"{entry.name} has no part {unknown[0]!r}; it has {', '.join(entry.parts)}")
    return [name for name in entry.parts if name in wanted]


def _folder_for(entry: DatasetEntry, out: str | os.PathLike[str]) -> Path:
    folder = make_folder(out)
    names = {path.name for path in folder.iterdir()}
    # A disk of its own for the data starts with lost+found; hidden files are nobody's data set.
    others = {name for name in names if not name.startswith(".") and name != "lost+found"}
    if others - {ARCHIVES} and not names & {RECEIPT, _WORK}:
        raise UsageError(
            f"{folder} is not empty and was not made by fetching; give an empty or a new folder for {entry.name}"
        )
    return folder


@contextlib.contextmanager
def _alone(work: Path) -> Iterator[None]:
    """Keep a second fetch out of the same folder while this one is at work.

    Raises:
        UsageError: There is one at work.
    """
    from filelock import FileLock, Timeout

    work.mkdir(exist_ok=True)
    try:
        with FileLock(work / "lock", timeout=0):
            yield
    except Timeout as error:
        raise UsageError(f"{work.parent}: another fetch is at work here; wait for it, or stop it") from error


def _missing(
    entry: DatasetEntry,
    folder: Path,
    wanted: Sequence[str],
    present: Mapping[str, FetchedPart],
    force: bool,
    say: Callable[[str], None],
) -> list[str]:
    """Return the parts to fetch: not there, no longer whole, or asked for once more."""
    # A folder that several parts put files into counts for all of them.
    expected = Counter[str]()
    for part in present.values():
        expected.update(part.folders)
    found = {inside: len(_files_in(folder / inside)) for inside in expected}
    missing = []
    for name in wanted:
        folders = present[name].folders if name in present else {}
        lost = [inside for inside in folders if found[inside] < expected[inside]]
        if lost:
            counts = "; ".join(f"{inside} has {found[inside]:,} of {expected[inside]:,} files" for inside in lost)
            say(f"{entry.name}: {name} is no longer complete ({counts}); fetching it again")
        elif name in present and not force:
            say(f"{entry.name}: {name} is complete in {folder} ({present[name].files:,} files)")
            continue
        missing.append(name)
    return missing


def _files_in(folder: Path) -> list[Path]:
    """Return the files right in a folder, none if it is not there; what starts with a dot does not count."""
    return [path for path in folder.glob("*") if path.is_file() and not path.name.startswith(".")]


def _tell_licence(entry: DatasetEntry, folder: Path, say: Callable[[str], None]) -> None:
    licence = entry.licence
    note = f" {licence.note}" if licence.note else ""
    say(f"{entry.title}: licence {licence.name}, see {licence.url}.{note}")
    lines = [entry.title, f"Home page: {entry.source}", f"Licence: {licence.name}", f"Stated at: {licence.url}"]
    if not (folder / LICENCE_FILE).exists():
        text = "\n".join([*lines, *([licence.note] if licence.note else [])]) + "\n"
        write_text(folder / LICENCE_FILE, text, own_folder=True)


def _check_space(parts: Sequence[Part], work: Path, keep_archives: bool) -> None:
    """Refuse what cannot fit before anything is fetched; sizes that are not known count as nothing."""
    archives = [archive for part in parts for archive in part.archives]
    sizes = [archive.size or 0 for archive in archives]
    begun = [work / f"{archive.file_name}{end}" for archive in archives for end in ("", ".part")]
    kept = sum(path.stat().st_size for path in begun if path.is_file())
    to_fetch = sum(sizes) if keep_archives else max(sizes, default=0)
    unpacked = sum(archive.unpacked or archive.size or 0 for archive in archives)
    need_space(work.parent, max(0, to_fetch + unpacked - kept))


def _get(archive: Archive, folder: Path, force: bool, say: Callable[[str], None], report: Report) -> Path:
    """Return the archive on this disk: put there by hand, left by an earlier run, or downloaded."""
    given, path = folder / ARCHIVES / archive.file_name, folder / _WORK / archive.file_name
    published: dict[str, Any] = {"sha256": archive.sha256, "md5": archive.md5, "size": archive.size}
    for found in () if force else (given, path):
        if not found.is_file():
            continue
        wrong = mismatch(found, **published, report=report)
        if wrong is None:
            say(f"{found.name}: it is here already, nothing to download")
            return found
        if found == given:
            raise DataError(f"{found}: {wrong}; remove it to have it fetched")
        found.unlink()
    say(f"Fetching {archive.url} ({archive.check})")
    by_hand = f"put it as {archive.file_name} into {given.parent}"
    download(archive.url, path, **published, by_hand=by_hand, say=say, report=report)
    return path


def _lay_out(part: Part, archives: Mapping[Archive, Path], tree: Path, report: Report) -> FetchedPart:
    """Unpack the archives of a part into a folder of their own, as they are to lie in the data set."""
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    files = []
    for archive, path in archives.items():
        commit = commit_of(path)
        if archive.commit and commit and commit != archive.commit:
            raise DataError(f"{archive.url}: holds commit {commit}, expected {archive.commit}")
        sha256 = archive.sha256 or hash_of(path, "sha256", report)
        md5 = archive.md5 or None
        files.append(FetchedFile(archive.url, path.stat().st_size, sha256, md5, archive.check, commit or None))
        _unpack_into(archive, path, tree, report)
    if part.voc_folders:
        _lay_out_voc(tree, *part.voc_folders)
    # Count what is there, so that a later run notices what was lost since.
    paths = [path for path in tree.rglob("*") if path.is_file()]
    shown = [path.parent for path in paths if not path.name.startswith(".")]
    folders = Counter(parent.relative_to(tree).as_posix() for parent in shown)
    return FetchedPart(tuple(files), dict(sorted(folders.items())), sum(path.stat().st_size for path in paths))


def _unpack_into(archive: Archive, path: Path, tree: Path, report: Report) -> None:
    """Unpack an archive and move its data set into ``tree``, without the folders that wrap it."""
    aside = tree.with_name(f"{archive.file_name}.unpacked")
    try:
        unpack(path, aside, report)
        # Archives wrap a data set in up to three folders.
        found = [path for depth in range(4) for path in sorted(aside.glob("*/" * depth + archive.root))]
        if not found:
            raise DataError(
                f"{archive.file_name} does not hold {archive.root}, as it should: the file at {archive.url} is "
                "another one"
            )
        top = found[0].parents[len(Path(archive.root).parts) - 1]
        for name in archive.nested:
            inner = top / name
            if not inner.is_file():
                raise DataError(f"{archive.file_name} does not hold {name}, expected a zip file inside it")
            unpacked = inner.with_name(f"{inner.name}.unpacked")
            unpack(inner, unpacked, report)
            inner.unlink()
            _merge(unpacked, inner.parent)
        _merge(top, tree)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _lay_out_voc(tree: Path, images: str, xmls: str) -> None:
    """Move images that have an XML file, and those files, into Pascal VOC folders; list every fifth as val."""
    names = sorted(path.stem for path in (tree / xmls).glob("*.xml"))
    known = set(names)
    if not names or not (tree / images).is_dir():
        raise DataError(f"the archive has no images in {images} or no XML files in {xmls}: it is another data set")
    # What is called as a folder of the result but for its capitals would be in its way on some disks.
    new = tree / "new"
    for folder, found, suffixes in (("JPEGImages", images, IMAGE_SUFFIXES), ("Annotations", xmls, (".xml",))):
        (new / folder).mkdir(parents=True)
        for path in list((tree / found).iterdir()):
            if path.stem in known and path.suffix.lower() in suffixes:
                path.rename(new / folder / path.name)
    for top in {Path(images).parts[0], Path(xmls).parts[0]}:
        shutil.rmtree(tree / top)
    _merge(new, tree)
    lists = tree / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    train = [name for number, name in enumerate(names) if number % _EVERY_FIFTH]
    for split, chosen in (("train", train), ("val", names[::_EVERY_FIFTH])):
        (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in chosen), encoding="utf-8")


def _check_merge(tree: Path, folder: Path) -> None:
    """Refuse to replace files of other content, which somebody else put there or has changed."""
    names = [path.relative_to(tree) for path in tree.rglob("*") if path.is_file()]
    both = [(tree / name, folder / name) for name in names if (folder / name).is_file()]
    changed = [there for new, there in both if not filecmp.cmp(new, there, shallow=False)]
    if changed:
        advice = "move it elsewhere, or replace it with --force"
        raise DataError(f"{listed(changed)}: not as published, and not replaced; {advice}")


def _merge(source: Path, target: Path) -> None:
    """Move a folder into another: at once what is not there, file by file what is."""
    target.mkdir(exist_ok=True)
    for path in sorted(source.iterdir()):
        there = target / path.name
        if path.is_dir() and there.is_dir():
            _merge(path, there)
        elif path.is_dir() and not there.exists():
            path.rename(there)
        elif there.is_dir() or path.is_dir():
            raise DataError(f"{there} is in the way: one is a file, the other a folder; move it elsewhere")
        else:
            path.replace(there)
    source.rmdir()


def _read_receipt(folder: Path, name: str) -> dict[str, FetchedPart]:
    """Return the parts that were fetched into a folder; none if it has no receipt.

    Raises:
        DataError: It cannot be read, or is of another data set.
    """
    path = folder / RECEIPT
    if not path.exists():
        return {}
    try:
        receipt: Receipt = parse_json(path.read_bytes(), Receipt)
        if receipt.version != _VERSION:
            raise ValueError(f"version {receipt.version}, expected {_VERSION}")
    except ValueError as error:
        raise DataError(
            f"{path}: not a receipt of detrkit data fetch ({error}); give another folder, or remove this one"
        ) from error
    if receipt.name != name:
        raise DataError(f"{folder} holds the data set {receipt.name}, not {name}; give another folder")
    return dict(receipt.parts)


def _write_receipt(entry: DatasetEntry, folder: Path, parts: Mapping[str, FetchedPart]) -> None:
    receipt = Receipt(
        _VERSION, entry.name, entry.title, entry.source, entry.licence, entry.layout, dict(sorted(parts.items()))
    )
    text = msgspec.json.format(msgspec.json.encode(receipt), indent=1).decode() + "\n"
    write_text(folder / RECEIPT, text, own_folder=True)


def _remove_if_empty(work: Path) -> None:
    """Remove the folder of unfinished work, unless another part is unfinished in it."""
    remove_leftovers(work)
    for stale in (work / "lock", *work.glob("*.part.json")):  # the second of earlier versions
        stale.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        work.rmdir()
