"""Files that are either whole or not there, and the ends of the names of images."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import itertools
import json
import os
import re
import tomllib
import uuid
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import msgspec

from detrkit.errors import UsageError, listed


def read_facts(module_file: str, name: str = "") -> dict[str, Any]:
    """Read the TOML file of facts that lies beside a module.

    Args:
        module_file: ``__file__`` of the module.
        name: Name of the file; that of the module if empty.
    """
    path = Path(module_file)
    path = path.with_name(name) if name else path.with_suffix(".toml")
    return tomllib.loads(path.read_text(encoding="utf-8"))


SUFFIXES_BY_FORMAT: Mapping[str, tuple[str, ...]] = {
    name: tuple(suffixes) for name, suffixes in read_facts(__file__, "suffixes.toml").items()
}
"""Ends of the names of image files by Pillow's name of their format, the usual one first."""

IMAGE_SUFFIXES = tuple(suffix for suffixes in SUFFIXES_BY_FORMAT.values() for suffix in suffixes)
"""Ends of the names of image files, in small letters."""

NOTES = ".detrkit-written"
"""File in a folder of results that notes what was written there."""
_NOTES_HEAD = b"# Hashes of the files that detrkit wrote here, by which it knows them; it replaces no others.\n"

LOCK = ".in-use"
"""File in a folder that a process holds; left there when that is killed."""
_TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.tmp")


def make_folder(path: str | os.PathLike[str], *names: str) -> Path:
    """Make a folder if it is not there, before the work whose results it is to hold.

    Args:
        path: The folder.
        names: Names of the results, to be refused now where something else lies under one.

    Raises:
        UsageError: It is a file, cannot be made or written, or something lies in the way of the results.
    """
    folder = Path(path)
    try:
        _make_durably(folder)
    except OSError as error:
        is_file = folder.exists() and not folder.is_dir()
        reason = "it is a link to nothing" if folder.is_symlink() else error.strerror or error
        reason = "it is a file" if is_file else reason
        raise UsageError(f"{folder} cannot be used as a folder for results: {reason}; give another") from error
    if not os.access(folder, os.W_OK):
        raise UsageError(f"{folder} cannot be written: permission denied; give another folder for results")
    check_free(*(folder / name for name in names))
    return folder


@contextlib.contextmanager
def results_folder(path: str | os.PathLike[str], *names: str) -> Iterator[Path]:
    """Make a folder for results as :func:`make_folder` does; if nothing gets into it, take it away again."""
    folder = Path(path)
    made = [part for part in (folder, *folder.parents) if not part.exists()]
    try:
        yield make_folder(folder, *names)
    finally:
        with contextlib.suppress(OSError):  # it holds something
            for part in made:
                part.rmdir()


def to_plain(value: object, *, str_keys: bool = False) -> Any:
    """Return a value as JSON can hold it: dataclasses as dicts, numbers and arrays of NumPy as Python has them."""
    return msgspec.to_builtins(value, str_keys=str_keys, enc_hook=plain_value)


def parse_json(text: str | bytes, kind: Any = None) -> Any:
    """Parse a JSON text that somebody else may have written.

    Args:
        text: The text.
        kind: Type that it is to have, for msgspec; None for any, and for what is only nearly JSON, such as NaN.

    Raises:
        ValueError: It is none, or nested beyond all reason, or of another type.
    """
    try:
        return json.loads(text) if kind is None else msgspec.json.decode(text, type=kind)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def plain_value(value: Any) -> Any:
    """Return what msgspec cannot encode by itself: a number or an array of NumPy, or a path.

    Raises:
        TypeError: It is nothing of these.
    """
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def is_free(path: Path) -> bool:
    """Return whether a result may be written to a path: nothing lies there, or what detrkit wrote, unchanged."""
    notes = path.with_name(NOTES)
    if os.path.lexists(notes) and not _is_notes(notes):
        return False
    if not os.path.lexists(path):
        return True
    is_known = not path.is_symlink() and path.is_file() and notes.exists()
    return is_known and _digest(path.name, path) in notes.read_bytes()


def check_free(*paths: Path) -> None:
    """Check that results may be written to paths, so that no file of the user's is ever replaced.

    Raises:
        UsageError: Something lies there that detrkit did not write, or that was changed since.
    """
    taken = [str(path if os.path.lexists(path) else path.with_name(NOTES)) for path in paths if not is_free(path)]
    if taken:
        raise UsageError(
            f"{listed(list(dict.fromkeys(taken)))}: not as this version of detrkit wrote it, which replaces "
            "nothing else; give another name or folder for results, or move it away"
        )


@contextlib.contextmanager
def atomic_bytes(path: Path, *, durable: bool = True, own_folder: bool = False) -> Iterator[IO[bytes]]:
    """Open a file for writing that takes the place of ``path`` only when all of it is written.

    The temporary file lies in the same folder: a rename across file systems is a copy, which can be cut off. Only
    what detrkit itself wrote is replaced; ``.detrkit-written`` beside it tells.

    Args:
        path: The final name; its folder is made if it is not there.
        durable: Wait until file and name are on the disk, so that a power cut leaves the old or the new file.
            Without, for thousands of small files, only a crash of the program is provided for.
        own_folder: The folder is detrkit's own, such as a run's: replace whatever is there.

    Raises:
        UsageError: Something lies there that detrkit did not write, or that was changed since.
    """
    if not own_folder:
        check_free(path)
    if durable:
        _make_durably(path.parent)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
    # The name is short, since that of the file may be as long as the file system allows.
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        if not own_folder:  # noted first: a kill in between leaves a note too many, not a file that nobody knows
            _note(path, temporary)
        temporary.replace(path)
        if durable:
            sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_file(path: Path, *, own_folder: bool = False) -> Iterator[IO[str]]:
    """Open a text file in UTF-8 as :func:`atomic_bytes` does, durable."""
    with atomic_bytes(path, own_folder=own_folder) as file:
        text = io.TextIOWrapper(file, encoding="utf-8")
        try:
            yield text
            text.flush()
        finally:
            with contextlib.suppress(OSError):  # what could not be written has been told
                text.detach()


def write_text(path: Path, text: str, *, own_folder: bool = False) -> None:
    """Write a text as :func:`atomic_file` does."""
    with atomic_file(path, own_folder=own_folder) as file:
        file.write(text)


def write_json(path: Path, content: Any) -> None:
    """Write a result as JSON, whole or not at all.

    Raises:
        ValueError: A number is not finite, which JSON cannot hold.
    """
    write_text(path, json.dumps(content, indent=1, default=to_plain, allow_nan=False) + "\n")


@contextlib.contextmanager
def growing_file(path: Path) -> Iterator[None]:
    """Let a file grow in its place, for hours perhaps, and be read meanwhile; at its end it is known as detrkit's.

    Raises:
        UsageError: Something lies there that detrkit did not write, or that was changed since.
    """
    check_free(path)
    _make_durably(path.parent)
    try:
        yield
    finally:
        if path.exists():
            _note(path, path)


def _is_notes(path: Path) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_NOTES_HEAD)) == _NOTES_HEAD


def _digest(name: str, content: Path) -> bytes:
    """Return a hash of a file's name and content, as the notes have it; names may hold any byte."""
    digest = hashlib.sha256(os.fsencode(name) + b"\0")
    with content.open("rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest().encode()


def _note(path: Path, content: Path) -> None:
    """Note what a file is going to hold."""
    with path.with_name(NOTES).open("ab") as file:
        file.write((b"" if file.tell() else _NOTES_HEAD) + _digest(path.name, content) + b"\n")


def is_leftover(path: Path) -> bool:
    """Return whether a file is what :func:`atomic_bytes` was writing when its process was killed."""
    return _TEMPORARY.fullmatch(path.name) is not None


@contextlib.contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Hold a folder for this process alone; the system releases it when the process ends, however it does.

    Raises:
        UsageError: Another process holds it.
    """
    path = folder / LOCK
    with path.open("a+") as file:
        # not flock, which the workers of a killed process would hold on to; Windows has neither
        with contextlib.suppress(ImportError):
            import fcntl

            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN):  # others come of file systems without locks
                    raise UsageError(
                        f"{folder}: another process is at work in it; wait for its end, or give another folder"
                    ) from error
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Delete what killed processes left half written; nobody may be writing into the folder now."""
    if folder.is_dir():
        for path in filter(is_leftover, list(folder.iterdir())):
            path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut; Windows has no such call and needs none."""
    if os.name != "posix":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # one may write there without being allowed to list it
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that know of no such thing
            raise
    finally:
        os.close(descriptor)


def _make_durably(folder: Path) -> None:
    """Make a folder and those above it; a power cut would otherwise take it away with all that is in it."""
    if folder.is_dir():
        return
    if not folder.parent.exists():
        _make_durably(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def walk_files(folder: Path, *suffixes: str) -> Iterator[str]:
    """Yield files below a folder with one of the suffixes, as ``/``-separated names relative to it, in order.

    Linked folders are followed once, except to what lies in the folder anyway, or around it.
    """
    top, followed = os.path.realpath(folder), {""}

    def is_new(place: str) -> bool:
        real = os.path.realpath(place)
        is_met = real in followed or f"{top}/".startswith(f"{real}/")
        is_met |= real.startswith(f"{top}/") and "/." not in real[len(top) :]
        followed.add(real)
        return not is_met

    def walk(where: str, prefix: str) -> Iterator[str]:
        try:
            with os.scandir(where) as entries:
                found = sorted((entry.name, entry.is_dir(), entry.is_symlink()) for entry in entries)
        except OSError:
            return
        yield from (prefix + name for name, is_folder, _ in found if not is_folder and is_kind(name, suffixes))
        for name, is_folder, is_link in found:
            inner = f"{where}/{name}"
            if is_folder and not name.startswith(".") and (not is_link or is_new(inner)):
                yield from walk(inner, f"{prefix}{name}/")

    yield from walk(str(folder), "")


def is_kind(name: str, suffixes: tuple[str, ...]) -> bool:
    """Return whether a name ends in one of the suffixes and is not of a hidden file, as macOS's ``._1.jpg``."""
    return not name.startswith(".") and name[name.rfind(".") :].lower() in suffixes if "." in name else False


def format_of_suffix(name: str) -> str:
    """Return the format that a file's suffix stands for, as Pillow names it; empty if it is none of an image."""
    suffix = Path(name).suffix.lower()
    return next((name for name, suffixes in SUFFIXES_BY_FORMAT.items() if suffix in suffixes), "")


def free_name(name: str, taken: Container[str], form: str = "{}-{}") -> str:
    """Return a name, or with the first number from 2 on where it is taken, as ``name-2``."""
    numbered = (form.format(name, number) for number in itertools.count(2))
    return next(candidate for candidate in itertools.chain([name], numbered) if candidate not in taken)
