"""The data sets that can be fetched, as ``catalogue.yaml`` lists them."""

from __future__ import annotations

from pathlib import Path

import msgspec

from detrkit.download import file_name_of
from detrkit.errors import UsageError


class Archive(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file to fetch and unpack.

    Args:
        url: address
        root: path inside that belongs to the top of the data set; the folders above it are dropped
        name: file name to keep it under; the end of the address if empty
        size: published number of bytes; None if none is published
        sha256: SHA-256 published by TensorFlow Datasets
        md5: MD5 published by torchvision
        commit: commit that a GitHub archive is of; GitHub writes it into the archive's comment
        unpacked: bytes once unpacked, roughly; the size of the archive if 0, as images hardly shrink
        nested: archives inside it, unpacked into the folder that they lie in
    """

    url: str
    root: str
    name: str = ""
    size: int | None = None
    sha256: str = ""
    md5: str = ""
    commit: str = ""
    unpacked: int = 0
    nested: tuple[str, ...] = ()

    @property
    def file_name(self) -> str:
        """Name of the file on the disk."""
        return self.name or file_name_of(self.url)

    @property
    def check(self) -> str:
        """What the content is checked against, in words."""
        if self.commit:
            return f"no published hash; commit {self.commit[:12]}"
        return "SHA-256 published by TensorFlow Datasets" + ("; MD5 by torchvision" if self.md5 else "")


class Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Archives that are fetched together.

    Args:
        summary: content in words
        archives: its files
        on_request: fetched only if named
        voc_folders: folders of the images and of their XML files, where these are to be laid out as Pascal VOC
    """

    summary: str
    archives: tuple[Archive, ...]
    on_request: bool = False
    voc_folders: tuple[str, ...] = ()

    @property
    def size(self) -> int | None:
        """Bytes to fetch; None where the server does not say before."""
        sizes = [archive.size for archive in self.archives]
        return None if None in sizes else sum(size or 0 for size in sizes)


class Licence(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Terms of use: short name, such as MIT, where it is stated, and what else to know."""

    name: str
    url: str
    note: str = ""


class DatasetEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A data set that can be fetched: its parts, and what people must know, in words."""

    name: str
    title: str
    images: str
    classes: str
    licence: Licence
    source: str
    layout: str
    parts: dict[str, Part]

    @property
    def defaults(self) -> tuple[str, ...]:
        """Names of the parts that are fetched if none is named."""
        return tuple(name for name, part in self.parts.items() if not part.on_request)


class RemovedEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A data set that earlier versions fetched: its page, and its format where detrkit does not read that."""

    page: str
    format: str = ""


class _Catalogue(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    data_sets: tuple[DatasetEntry, ...]
    removed: dict[str, RemovedEntry]


_READ = msgspec.yaml.decode(Path(__file__).with_suffix(".yaml").read_bytes(), type=_Catalogue)
CATALOGUE: dict[str, DatasetEntry] = {entry.name: entry for entry in _READ.data_sets}
"""Every data set that can be fetched by name."""
REMOVED = _READ.removed


def find_entry(name: str) -> DatasetEntry:
    """Return a data set of the catalogue.

    Raises:
        UsageError: There is none of this name, or none any more.
    """
    if name in REMOVED:
        then = "give its folder to any command, such as: detrkit data check FOLDER"
        if REMOVED[name].format:
            then = f"convert its {REMOVED[name].format} to COCO JSON, YOLO or Pascal VOC, then {then}"
        raise UsageError(f"{name} is fetched no longer; get it from {REMOVED[name].page}, unpack it, and {then}")
    if name not in CATALOGUE:
        raise UsageError(f"there is no data set {name!r} to fetch; known are {', '.join(CATALOGUE)}")
    return CATALOGUE[name]
