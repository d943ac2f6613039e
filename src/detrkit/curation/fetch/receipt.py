"""What lies in the folder of a fetched data set and where it came from."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detrkit.errors import DataError
from detrkit.files import atomic_file

RECEIPT = ".detrkit-fetch.json"
_VERSION = 1


@dataclasses.dataclass(frozen=True)
class FetchedFile:
    """An archive that was fetched.

    Args:
        url: From where.
        size: Bytes.
        sha256: What it was, published or not.
        md5: The same; None where none is published.
        check: What it was checked against, in words.
        commit: Commit that GitHub says it is of.
    """

    url: str
    size: int
    sha256: str
    md5: str | None
    check: str
    commit: str | None = None


@dataclasses.dataclass(frozen=True)
class FetchedPart:
    """A part of a data set that is whole in the folder.

    Args:
        archives: What it was unpacked from.
        folders: Number of its files in each folder, so that a loss is noticed.
        bytes: Of all its files.
    """

    archives: tuple[FetchedFile, ...]
    folders: Mapping[str, int]
    bytes: int

    @property
    def files(self) -> int:
        """Number of its files."""
        return sum(self.folders.values())


def read_receipt(folder: Path, name: str) -> dict[str, FetchedPart]:
    """The parts that were fetched into a folder; none if it has no receipt.

    Raises:
        DataError: It cannot be read, or is of another data set.
    """
    path = folder / RECEIPT
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["version"] != _VERSION:
            raise ValueError(f"version {content['version']}, expected {_VERSION}")
        found = content["name"]
        parts = {key: _part(value) for key, value in content["parts"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: not a receipt of detrkit data fetch ({error}); give another folder, or remove this one"
        ) from error
    if found != name:
        raise DataError(f"{folder} holds the data set {found}, not {name}; give another folder")
    return parts


def write_receipt(folder: Path, head: Mapping[str, Any], parts: Mapping[str, FetchedPart]) -> None:
    """Replace the receipt; ``head`` holds the name, the title, the licence and the home page."""
    with atomic_file(folder / RECEIPT) as file:
        content = {name: dataclasses.asdict(part) for name, part in sorted(parts.items())}
        json.dump({"version": _VERSION, **head, "parts": content}, file, indent=1)
        file.write("\n")


def lost_parts(folder: Path, parts: Mapping[str, FetchedPart]) -> dict[str, str]:
    """Parts of which files are missing since, with what is missing in words.

    A folder that several parts put files into counts for all of them.
    """
    expected: dict[str, int] = {}
    for part in parts.values():
        for inside, count in part.folders.items():
            expected[inside] = expected.get(inside, 0) + count
    short = {}
    for inside, count in expected.items():
        found = count_files(folder / inside)
        if found < count:
            short[inside] = f"{inside} has {found:,} of {count:,} files"
    return {
        name: "; ".join(short[inside] for inside in part.folders if inside in short)
        for name, part in parts.items()
        if any(inside in short for inside in part.folders)
    }


def count_files(folder: Path) -> int:
    """Number of files right in a folder; 0 if it is not there. What starts with a dot does not count."""
    if not folder.is_dir():
        return 0
    return sum(path.is_file() and not path.name.startswith(".") for path in folder.iterdir())


def _part(value: Mapping[str, Any]) -> FetchedPart:
    archives = tuple(FetchedFile(**archive) for archive in value["archives"])
    return FetchedPart(archives, {str(key): int(count) for key, count in value["folders"].items()}, value["bytes"])
