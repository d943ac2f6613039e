"""What describes every layout: the files of a split, and the names that people give to both."""

from __future__ import annotations

import codecs
import contextlib
import dataclasses
import json
import os
import re
import string
from collections.abc import Callable, Iterator
from pathlib import Path

from detrkit.classes import SizeHW
from detrkit.data.faults import Findings
from detrkit.errors import AnnotationError, DataError, listed
from detrkit.files import IMAGE_SUFFIXES
from detrkit.files import is_kind as is_kind
from detrkit.files import walk_files as walk_files

SPLIT_ALIASES = {  # CVAT calls its only split default
    "train": ("train", "training", "default"),
    "val": ("val", "valid", "validation", "validate"),
    "test": ("test", "testing"),
}
COMBINED_SPLITS = {"trainval": ("train", "val"), "all": ("train",)}
"""Splits that repeat the images of others; they can be asked for by name, but are no further splits."""
IMAGE_FOLDERS = ("images", "JPEGImages", "imgs", "img", "data")
PANOPTIC_FILE = re.compile(r"^panoptic_([A-Za-z]+?)(?:20\d\d)?(?:[_-].*)?$")
"""Name, without its suffix, of a COCO panoptic file; the group is its split."""

_CHUNK_BYTES = 1 << 20
_XML_ENCODING = re.compile(rb"""(?:\xef\xbb\xbf)?\s*<\?xml[^>]*?\sencoding\s*=\s*["']([A-Za-z][A-Za-z0-9._-]*)""")
_CERTAINLY_UTF8 = re.compile(rb"[\xe1-\xef][\x80-\xbf]{2}")
"""Three bytes of one character; in valid UTF-8 they are no accident, whatever is declared."""
_HIGH_BYTES = re.compile(rb"[A-Za-z]?[\x80-\xff]+[A-Za-z]?")
_GB2312 = re.compile(rb"(?:[\xa1\xa3\xb0-\xf7][\xa1-\xfe])+")
"""Signs, wide letters and Chinese characters."""
_HANGUL = re.compile(rb"(?:[\xb0-\xc8][\xa1-\xfe])+")
"""Korean in its own encoding (EUC-KR, CP949); half of the Chinese characters lie there too."""
_WESTERN = re.compile(
    rb"[\xc0-\xcf\xd1-\xd6\xd8-\xdc\xdf-\xef\xf1-\xf6\xf8-\xfc\xff]{1,2}|[\x9c\xaa\xb0\xb2\xb3\xb5\xba]"
)
"""Letters of western Europe but the Icelandic ones, whose bytes are Turkish letters elsewhere; a sign alone."""


class ImagesNotFoundError(DataError):
    """The images of an annotation file are in none of the likely folders."""

    annotations: Path


@dataclasses.dataclass(frozen=True)
class SplitFiles:
    """Where one split of a data set lies.

    Args:
        annotations: COCO JSON file; data.yaml or the folder of labels (YOLO), folder of XML files (Pascal VOC).
        images: Folder that its file names are relative to.
        layout: Name of the layout, for printing.
        reason: Why this was chosen, in words.
        format: name of the format that reads it, a key of :data:`detrkit.data.formats.FORMATS`
        listings: What lists the images of this split, where the annotations do not: YOLO's image folders or text
            files, Pascal VOC's ImageSets file; for COCO panoptic the folder of PNG files.
        names: File that holds the class names, where they are neither in the annotations nor in data.yaml.
        label_folders: Folders with the label files of every split, from which classes are gathered that no file
            names.
        class_files: Files like ``names`` of every split, where they have several.
    """

    annotations: Path
    images: Path
    layout: str
    reason: str
    format: str = "coco"
    listings: tuple[Path, ...] = ()
    names: Path | None = None
    label_folders: tuple[Path, ...] = ()
    class_files: tuple[Path, ...] = ()


@dataclasses.dataclass(frozen=True)
class SplitCandidate:
    """A split that a layout has.

    Args:
        evidence: The file or folder that shows it.
        files: Gives the whole description, with the image folder that a person named, or None; called for the
            split that is asked for only, since it may have to look into large files.
    """

    evidence: Path
    files: Callable[[Path | None], SplitFiles]


SplitCandidates = dict[str, SplitCandidate]
"""Splits that a way of looking found, by canonical name."""


def described(evidence: Path, files: SplitFiles) -> SplitCandidate:
    """Return a candidate whose description is known already."""

    def with_images(images: Path | None) -> SplitFiles:
        if images is None:
            return files
        is_folder = files.format == "yolo" and all(listing.is_dir() for listing in files.listings)
        return dataclasses.replace(files, images=images, listings=(images,) if is_folder else files.listings)

    return SplitCandidate(evidence, with_images)


def canonical_split(name: str) -> str:
    """Return one spelling for a split: valid, validation and val are val."""
    lowered = name.lower()
    return next((split for split, aliases in SPLIT_ALIASES.items() if lowered in aliases), lowered)


def split_of_folder(name: str) -> str | None:
    """Return the split of a folder called so: train for ``Train``, val for ``val2017``; None for other names."""
    split = canonical_split(re.sub(r"[_-]?20\d\d$", "", name))
    return split if split in SPLIT_ALIASES else None


def usable_size(height: float, width: float) -> SizeHW:
    """Return a size as whole pixels; 0, 0 where it is none."""
    usable = 1 <= height < 2**31 and 1 <= width < 2**31
    return (int(height), int(width)) if usable else (0, 0)


def read_text(path: Path, errors: str = "strict", found: Findings | None = None) -> str:
    """Read a text file by :func:`decode_text`.

    Raises:
        AnnotationError: It cannot be read, or its encoding cannot be told.
    """
    return decode_text(_read(path), path, errors, found)


def read_utf8(path: Path, found: Findings | None = None) -> bytes:
    """Read a large text as bytes of UTF-8 without a byte order mark; nothing is decoded if it is UTF-8 already.

    Raises:
        AnnotationError: It cannot be read, or its encoding cannot be told; see :func:`decode_text`.
    """
    data = _read(path)
    if json.detect_encoding(data).startswith("utf-8") and _is_utf8(data):
        return data.removeprefix(codecs.BOM_UTF8)
    return decode_text(data, path, found=found).encode()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise AnnotationError(f"{path}: cannot be read: {error.strerror or error}; check the path") from error


def _is_utf8(data: bytes) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        # by parts, since the whole as text may take four times its memory
        for start in range(0, 0 if data.isascii() else len(data), _CHUNK_BYTES):
            decoder.decode(data[start : start + _CHUNK_BYTES], start + _CHUNK_BYTES >= len(data))
    except UnicodeDecodeError:
        return False
    return True


def decode_text(data: bytes, path: Path, errors: str = "strict", found: Findings | None = None) -> str:
    """Decode a text as its byte order mark or XML declaration says, as UTF-8, or as what its bytes must be.

    Args:
        data: Content of a file.
        path: Its name, for messages.
        errors: ``surrogateescape`` for lists of file names: bytes that are not UTF-8 are kept, as file systems
            have such names.
        found: Takes up ``text_not_utf8`` where the file is in another encoding.

    Raises:
        AnnotationError: It is not UTF-8 and could be in several encodings: a guess would make other class names.
    """
    for encoding in _encodings(data):
        try:
            text = data.decode(encoding, errors if encoding == "utf-8" else "strict").removeprefix("\ufeff")
        except (UnicodeDecodeError, LookupError):
            continue
        if found is not None and encoding.lower() != "utf-8" and text.encode() != data:
            found.add("text_not_utf8", f"{path.name}: read as {encoding}")
        return text
    try:
        data.decode("utf-8")
        at = 0  # a byte order mark of UTF-16 before something else
    except UnicodeDecodeError as error:
        at = error.start
    raise AnnotationError(
        f"{path}: byte {at} is {data[at]:#04x}, which is not UTF-8, and nothing says which encoding it is; "
        "save it as UTF-8 (iconv -f ITS_ENCODING -t UTF-8)"
    )


def _encodings(data: bytes) -> Iterator[str]:
    """Yield the encodings that a text may be in, the likeliest first."""
    marked = json.detect_encoding(data)  # by a byte order mark, or the zeros of ASCII in UTF-16 and UTF-32
    if not marked.startswith("utf-8"):
        yield marked.upper()
        return
    declaration = _XML_ENCODING.match(data)
    if declaration is None or _CERTAINLY_UTF8.search(data):
        yield "utf-8"
    if declaration is not None:
        declared = declaration[1].decode("ascii")
        # it can be read as bytes of ASCII, so a declared UTF-16 is not true
        with contextlib.suppress(UnicodeDecodeError, LookupError):
            if declaration[0].decode(declared).isascii():
                yield declared
        yield "utf-8"
    yield from _detected_encoding(data)


def _detected_encoding(data: bytes) -> list[str]:
    """Return GBK or Windows-1252 (Latin-1) where the bytes above ASCII can be only that of them; else nothing.

    In GBK they come in pairs, words of their own; of western words, one or two letters are above ASCII. Korean in
    pairs of the same range, Cyrillic in long runs and Turkish letters are told apart from both.
    """
    runs = set(_HIGH_BYTES.findall(data))
    words = [run.strip(string.ascii_letters.encode()) for run in runs]
    is_chinese, is_western = (all(map(kind.fullmatch, words)) for kind in (_GB2312, _WESTERN))
    if is_chinese and is_western:  # AÇÃO, or words of one sign: letters around them decide
        inside = {run != word for run, word in zip(runs, words, strict=True)}
        is_chinese, is_western = inside == {False}, inside == {True}
    is_chinese = is_chinese and not all(map(_HANGUL.fullmatch, words))
    return ["GBK"] * is_chinese + ["Windows-1252"] * is_western


def subfolders(folder: Path) -> list[Path]:
    """List the folders inside a folder, by name, hidden ones left out."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        return []
    return [folder / name for name in names]


def child(folder: Path, *names: str) -> Path | None:
    """Find the first folder inside a folder with one of the names, whatever its capitals."""
    by_name = {path.name.lower(): path for path in subfolders(folder)}
    return next((by_name[name.lower()] for name in names if name.lower() in by_name), None)


def holds(folder: Path, *suffixes: str) -> bool:
    """Return whether a folder directly holds a file with one of the suffixes."""
    try:
        with os.scandir(folder) as entries:
            return any(is_kind(entry.name, suffixes) and entry.is_file() for entry in entries)
    except OSError:
        return False


def file_names(folder: str | Path) -> list[str]:
    """List the names of the files in a folder; none if it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_file())
    except OSError:
        return []


def passed_over(folder: Path, suffix: str, found: Findings) -> None:
    """Report files in a folder of label files that are no labels, where they are most of it."""
    names = [name for name in file_names(folder) if not name.startswith(".") and not is_kind(name, IMAGE_SUFFIXES)]
    others = [name for name in names if not is_kind(name, (suffix,))]
    if 2 * len(others) > len(names):
        found.add("label_files_of_other_kind", f"{folder.name}: {listed(others, 3)}", count=len(others))


def relative(path: Path, root: Path) -> str:
    """Return a path as said to people: relative to the data set where it lies in it."""
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
