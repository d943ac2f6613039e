"""A folder of releases: each version whole and unchanging, and a link to the one that is in use."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import msgspec

from detrkit.errors import DataError, UsageError
from detrkit.files import NOTES, atomic_bytes, make_folder, parse_json, sole_writer, sync_folder
from detrkit.runtimes.bundle import Bundle

CURRENT = "current"
"""Link to the release in use."""
RELEASES = "releases"
RECORD, CARD, SUMS, BUNDLE = "release.json", "MODEL_CARD.md", "SHA256SUMS", "bundle"
_STAGING = ".staging-"
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Record(msgspec.Struct, frozen=True):
    """Content of ``release.json``.

    Args:
        version: Name of the release.
        created: When, in UTC.
        previous: Release in use before; empty for the first.
        source: Model that was released, as it was named.
        gate: What :meth:`detrkit.comparison.release_gate.GateResult.to_dict` gave.
    """

    version: str
    created: str
    previous: str
    source: str
    gate: dict[str, Any]


def current_version(folder: Path) -> str:
    """Return the version in use; empty where there is none.

    Raises:
        UsageError: Something else lies in the link's place.
    """
    link = folder / CURRENT
    if not os.path.lexists(link):
        return ""
    target = link.readlink() if link.is_symlink() else Path()
    if target.parent != Path(RELEASES) or not (folder / target / RECORD).is_file():
        raise UsageError(f"{link} is no link to a release in {folder / RELEASES}; give another folder")
    return target.name


def check_version(folder: Path, version: str) -> str:
    """Return the version to be, the next number if none is given.

    Raises:
        UsageError: It is no name for a folder, or there is such a release.
    """
    taken = {path.name for path in (folder / RELEASES).glob("*")}
    numbers = [int(name[1:]) for name in taken if re.fullmatch(r"v\d{1,9}", name)]
    version = version or f"v{max(numbers, default=0) + 1}"
    if not _VERSION.fullmatch(version):
        raise UsageError(
            f"version is {version!r}, expected up to 64 letters, digits, dots, - and _, such as 1.2.0"
        )
    if version in taken:
        raise UsageError(f"{folder / RELEASES / version} is there already, and releases are never changed")
    return version


@contextlib.contextmanager
def staged_release(folder: Path) -> Iterator[Path]:
    """Give an empty folder beside the releases, and take it away if it did not become one.

    Other processes are kept out meanwhile, and what killed ones left behind is deleted.
    """
    with sole_writer(make_folder(folder)):
        releases = make_folder(folder / RELEASES)
        for left in releases.glob(f"{_STAGING}*"):
            shutil.rmtree(left)
        staging = releases / f"{_STAGING}{uuid.uuid4().hex}"
        staging.mkdir()
        try:
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def publish(folder: Path, staging: Path, record: Record) -> Path:
    """Make a staged folder a release and the one in use; a kill at any moment leaves the old one or it."""
    _write(staging / RECORD, msgspec.json.format(msgspec.json.encode(record), indent=1))
    files = sorted(path for path in staging.rglob("*") if path.is_file() and path.name not in (SUMS, NOTES))
    lines = [f"{_sha256(path)}  {path.relative_to(staging).as_posix()}\n" for path in files]
    _write(staging / SUMS, "".join(lines).encode())
    for path in [*staging.rglob("*"), staging]:
        if path.is_dir():
            sync_folder(path)
    place = folder / RELEASES / record.version
    staging.rename(place)
    sync_folder(place.parent)
    switch(folder, record.version)
    return place


def roll_back(folder: Path) -> tuple[str, str]:
    """Put the release in use before back into use.

    Returns:
        The version that was in use, and the one that is now.

    Raises:
        UsageError: There is none before.
        DataError: A file of it is not what was released.
    """
    with sole_writer(make_folder(folder)):
        version = current_version(folder)
        if not version:
            raise UsageError(f"{folder} holds no release; make one with: detrkit release RUN --to {folder}")
        before = read_record(folder, version).previous
        if not before:
            raise UsageError(f"{folder}: {version} is the first release, there is none to go back to")
        check_sums(folder / RELEASES / before)
        switch(folder, before)
    return version, before


def read_record(folder: Path, version: str) -> Record:
    """Read what is known of a release.

    Raises:
        DataError: It is missing or damaged.
    """
    path = folder / RELEASES / version / RECORD
    try:
        found: Record = parse_json(path.read_bytes(), Record)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    return found


def check_sums(place: Path) -> None:
    """Check every file of a release by its hash.

    Raises:
        DataError: One is missing or was changed.
    """
    path = place / SUMS
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        for line in lines:
            digest, _, name = line.partition("  ")
            if _sha256(place / name) != digest:
                raise DataError(f"{place / name} was changed since it was released")
    except OSError as error:
        raise DataError(f"{error.filename or path} is missing from the release: {error.strerror}") from error


def switch(folder: Path, version: str) -> None:
    """Let the link point to a release; it points to the old or the new one at any moment."""
    link = folder / f".{CURRENT}-{uuid.uuid4().hex}"
    link.symlink_to(Path(RELEASES) / version)
    link.replace(folder / CURRENT)
    sync_folder(folder)


def write_card(path: Path, bundle: Bundle, record: Record) -> None:
    """Write the model card."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )
    environment.filters["cell"] = lambda text: (
        str(text).replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
    )
    text = environment.get_template("model_card.md.jinja").render(
        manifest=bundle.manifest, classes=bundle.class_map.names, record=record
    )
    _write(path, text.encode())


def _write(path: Path, content: bytes) -> None:
    with atomic_bytes(path) as file:
        file.write(content)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
