"""What is known of a data set that can be fetched."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit


@dataclasses.dataclass(frozen=True)
class Archive:
    """One file to fetch and unpack.

    Args:
        url: Where it lies.
        root: A path inside that belongs to the top of the data set; whatever folders lie above it are dropped.
        name: File name to keep it under; the end of the address if empty.
        size: Bytes, where published; another size at the address is an error.
        about: Bytes, roughly, where no size is published.
        sha256: Published SHA-256.
        md5: Published MD5, checked too.
        hash_source: Who published the hashes.
        commit: Commit that a GitHub archive is of; GitHub writes it into the archive's comment.
        unpacked: Bytes once unpacked, roughly; the size of the archive if 0, as images hardly shrink.
        nested: Archives inside it, and the folder that each is unpacked into.
    """

    url: str
    root: str
    name: str = ""
    size: int | None = None
    about: int | None = None
    sha256: str | None = None
    md5: str | None = None
    hash_source: str = ""
    commit: str | None = None
    unpacked: int = 0
    nested: tuple[tuple[str, str], ...] = ()

    @property
    def file_name(self) -> str:
        """Name of the file on the disk."""
        return self.name or Path(unquote(urlsplit(self.url).path)).name

    @property
    def check(self) -> str:
        """What the content is checked against, in words."""
        if self.sha256:
            return f"SHA-256 published by {self.hash_source}"
        if self.md5:
            return f"MD5 published by {self.hash_source}; no published SHA-256"
        return f"no published hash; commit {self.commit[:12]}" if self.commit else "no published hash"


@dataclasses.dataclass(frozen=True)
class Part:
    """What is fetched together.

    Args:
        name: As in ``--part``.
        summary: What it holds.
        archives: Its files.
        arrange: Turns the unpacked folder into a layout that detrkit reads, in place.
    """

    name: str
    summary: str
    archives: tuple[Archive, ...]
    arrange: Callable[[Path], None] | None = None

    @property
    def size(self) -> int | None:
        """Bytes to fetch, roughly; None where the server does not say before."""
        sizes = [archive.size or archive.about for archive in self.archives]
        return None if None in sizes else sum(size or 0 for size in sizes)


@dataclasses.dataclass(frozen=True)
class Licence:
    """Under which terms a data set may be used.

    Args:
        name: Short name, such as MIT.
        url: Where it is stated.
        note: What else to know.
    """

    name: str
    url: str
    note: str = ""


@dataclasses.dataclass(frozen=True)
class DatasetEntry:
    """A data set that can be fetched.

    Args:
        name: As on the command line.
        title: Its full name.
        images: Number of images, in words.
        classes: Classes, in words.
        licence: Terms of use.
        source: Home page.
        layout: The layout that detrkit reads it as.
        parts: What it is made of.
        default_parts: What is fetched if no part is named; all parts if empty.
    """

    name: str
    title: str
    images: str
    classes: str
    licence: Licence
    source: str
    layout: str
    parts: tuple[Part, ...]
    default_parts: tuple[str, ...] = ()

    @property
    def defaults(self) -> tuple[str, ...]:
        """Names of the parts that are fetched if none is named."""
        return self.default_parts or tuple(part.name for part in self.parts)


def size_text(count: int) -> str:
    """A number of bytes for people: 19.3 GB, 815.6 MB, 450 kB."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if count >= factor:
            return f"{count / factor:,.1f} {unit}"
    return f"{count / 1e3:,.0f} kB"
