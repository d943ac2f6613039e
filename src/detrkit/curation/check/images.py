"""Faults of image files: missing, empty, truncated, of another kind than they say, of another size than annotated.

Shapes: I images.
"""

from __future__ import annotations

import io
import os
import posixpath
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from detrkit.curation.check.source import ImageFacts, SplitData
from detrkit.data.faults import Findings, Location
from detrkit.data.index import check_inside
from detrkit.errors import AnnotationError

Progress = Callable[[str, int, int], None]

IMAGE_SUFFIXES: Mapping[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".mpo"),
    "PNG": (".png", ".apng"),
    "GIF": (".gif",),
    "BMP": (".bmp", ".dib"),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "JPEG2000": (".jp2", ".j2k", ".jpx", ".jpf"),
    "AVIF": (".avif",),
}
_SAME_FORMAT = {"MPO": "JPEG", "DIB": "BMP"}
_KNOWN_SUFFIXES = frozenset(suffix for suffixes in IMAGE_SUFFIXES.values() for suffix in suffixes)
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM", b"RIFF", b"II*\0", b"MM\0*")
_STRANGERS = (
    (re.compile(rb"\s*(<!doctype html|<html|<head)", re.IGNORECASE), "a web page"),
    (re.compile(rb"version https://git-lfs"), "a Git LFS pointer: run git lfs pull"),
    (re.compile(rb"\s*<(\?xml|svg)", re.IGNORECASE), "XML or SVG"),
    (re.compile(rb"%PDF"), "a PDF"),
    (re.compile(rb"PK\x03\x04"), "a ZIP archive"),
)
_DRIVE = re.compile(r"^[A-Za-z]:[\\/]|^\\\\")
_CUT_WORDS = ("truncat", "unexpected end", "not enough", "broken data stream", "image file is", "premature", "eof")


def find_files(splits: Sequence[SplitData], found: Findings) -> None:
    """Find the file of every listed image; fills ``resolved`` of the splits."""
    for split in splits:
        folders: dict[Path, dict[str, bool]] = {}
        for row, name in enumerate(split.table.file_names):
            fault, detail, split.resolved[row] = _resolve(name, split.files.images, folders)
            if fault:
                words = f"{name}: {detail}" if detail else name
                found.add(fault, words, Location(split.name, row))
    _check_unlisted(splits, found)


def inspect_files(
    splits: Sequence[SplitData], found: Findings, decode: bool, workers: int | None, progress: Progress | None
) -> int:
    """Open every image file once; fills ``facts`` and ``limits_hw`` of the splits.

    Args:
        splits: Splits with their files found.
        found: Findings to add to.
        decode: Whether to decode the pixels too: nothing else shows that a file is cut off.
        workers: Number of threads; as many as there are CPUs, eight at most, if None.
        progress: Function told the step, images done and images in all.

    Returns:
        Number of files that were opened.
    """
    rows_of_file: defaultdict[Path, list[tuple[SplitData, int]]] = defaultdict(list)
    for split in splits:
        for row, name in enumerate(split.resolved):
            if name is not None and (decode or not split.table.sizes_hw[row].all()):
                rows_of_file[split.files.images / name].append((split, row))
    paths = list(rows_of_file)
    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
        # Pillow decodes without the interpreter's lock, so that threads are enough.
        for done, facts in enumerate(pool.map(lambda path: inspect_image(path, decode), paths)):
            for split, row in rows_of_file[paths[done]]:
                split.facts[row] = facts
            if progress is not None:
                progress("images", done + 1, len(paths))
    for split in splits:
        for row, known in enumerate(split.facts):
            if known is not None:
                _report(split, row, known, found)
    return len(paths)


def inspect_image(path: Path, decode: bool = True) -> ImageFacts:
    """Look at an image file: its header, and whether it can be decoded; never raises."""
    try:
        content = path.read_bytes()
    except OSError as error:
        return ImageFacts(fault="image_unreadable", detail=error.strerror or str(error))
    if not content:
        return ImageFacts(fault="image_empty", detail="0 bytes")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")
            with Image.open(io.BytesIO(content)) as image:
                facts = _header_facts(image)
                fault, detail = _decoding_fault(image) if decode else ("", "")
                return facts._replace(fault=fault, detail=detail)
    except UnidentifiedImageError:
        return _stranger(content)
    except Image.DecompressionBombError as error:
        return ImageFacts(fault="image_too_large", detail=str(error))
    except Exception as error:  # Pillow's plugins raise nearly anything on a corrupt header
        fault = _fault_of(error)
        return ImageFacts(fault=fault, detail=str(error) or type(error).__name__)


def format_of_suffix(name: str) -> str:
    """Return the format that a file extension stands for; empty if it is none of an image."""
    suffix = posixpath.splitext(name)[1].lower()
    return next((name for name, suffixes in IMAGE_SUFFIXES.items() if suffix in suffixes), "")


def is_mislabelled(name: str, facts: ImageFacts) -> bool:
    """Return whether the extension of a file stands for another format than its content."""
    format_ = _SAME_FORMAT.get(facts.format, facts.format)
    expected = format_of_suffix(name)
    return bool(format_ and expected and format_ != expected)


def _header_facts(image: Image.Image) -> ImageFacts:
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:  # a broken EXIF block; the pixels are still good
        orientation = 0
    return ImageFacts(
        format=image.format or "",
        mode=image.mode,
        stored_hw=(image.height, image.width),
        orientation=orientation if isinstance(orientation, int) else 0,
        frames=1 if image.format == "MPO" else int(getattr(image, "n_frames", 1)),
    )


def _decoding_fault(image: Image.Image) -> tuple[str, str]:
    try:
        image.load()
    except Image.DecompressionBombError as error:
        return "image_too_large", str(error)
    except MemoryError:
        return "image_too_large", "too large to decode in memory"
    except Exception as error:  # as above
        return _fault_of(error), str(error) or type(error).__name__
    return "", ""


def _fault_of(error: Exception) -> str:
    text = str(error).lower()
    return "image_truncated" if any(word in text for word in _CUT_WORDS) else "image_unreadable"


def _stranger(content: bytes) -> ImageFacts:
    for pattern, words in _STRANGERS:
        if pattern.match(content[:512]):
            return ImageFacts(fault="image_unreadable", detail=f"it is {words}")
    if content.startswith(_MAGIC):
        return ImageFacts(
            fault="image_truncated", detail=f"the header is cut off or corrupt, {len(content)} bytes"
        )
    if not content.strip(b"\0"):
        return ImageFacts(fault="image_unreadable", detail=f"{len(content)} bytes of zero")
    is_text = all(byte >= 32 or byte in b"\t\r\n" for byte in content[:512])
    return ImageFacts(fault="image_unreadable", detail="it is text" if is_text else "not an image")


def _report(split: SplitData, row: int, facts: ImageFacts, found: Findings) -> None:
    """Count the faults of one image file."""
    name, place = split.table.file_names[row], Location(split.name, row)
    if facts.fault:
        found.add(facts.fault, f"{name}: {facts.detail}", place)
        return
    if is_mislabelled(name, facts):
        found.add("image_mislabelled", f"{name} is {facts.format}", place)
    _report_size(split, row, facts, found)
    if facts.orientation in range(2, 9):
        found.add("exif_orientation", f"{name}: orientation {facts.orientation}", place)
    elif facts.orientation != 1:
        found.add("exif_broken", f"{name}: orientation {facts.orientation}", place)
    if facts.frames > 1:
        found.add("image_animated", f"{name}: {facts.frames} frames", place)
    if facts.mode == "CMYK":
        found.add("image_cmyk", name, place)
    elif facts.mode.startswith("I") or facts.mode == "F":
        found.add("image_deep", f"{name}: {facts.mode}", place)
    elif facts.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        found.add("image_transparent", f"{name}: {facts.mode}", place)


def _report_size(split: SplitData, row: int, facts: ImageFacts, found: Findings) -> None:
    listed = tuple(split.table.sizes_hw[row].tolist())
    upright = facts.upright_hw
    if not all(listed):
        split.limits_hw[row] = upright
        return
    if listed == upright or split.files.format == "yolo":
        return
    name, place = split.table.file_names[row], Location(split.name, row)
    sizes = f"{name}: {listed[1]} x {listed[0]} in the annotations, {upright[1]} x {upright[0]} in the file"
    if listed == facts.stored_hw:
        found.add("exif_rotated_size", f"{sizes} once upright (EXIF orientation {facts.orientation})", place)
    else:
        found.add("size_mismatch", sizes + (" (exchanged)" if listed == upright[::-1] else ""), place)
    # Boxes may be meant for either size; they are only told of where they fit neither.
    split.limits_hw[row] = np.maximum(listed, upright)


def _resolve(name: str, images: Path, folders: dict[Path, dict[str, bool]]) -> tuple[str, str, str | None]:
    """Find an image file; return the kind of fault, words about it, and the name relative to the image folder."""
    if posixpath.isabs(name) or _DRIVE.match(name):
        return "absolute_file_name", *_suggested(_tail_in(name, images, folders))
    normal = posixpath.normpath(name)
    if normal == ".." or normal.startswith("../"):
        return "escaping_file_name", *_suggested(_tail_in(name, images, folders))
    folder, _, base = normal.rpartition("/")
    entries = _entries(images / folder, folders)
    if base in entries:
        if entries[base] or (images / folder).is_symlink():
            try:
                check_inside(normal, images)
            except AnnotationError:
                return "escaping_file_name", "a link that leads out of the image folder", None
        return "", "", normal
    actual = _by_case(normal, images, folders)
    if actual is not None:
        return "file_name_case", f"the file is {actual}", actual
    return "missing_image", *_suggested(_tail_in(name, images, folders) or _other_suffix(normal, images, folders))


def _suggested(name: str | None) -> tuple[str, str | None]:
    return (f"{name} exists" if name else "", name)


def _tail_in(name: str, images: Path, folders: dict[Path, dict[str, bool]]) -> str | None:
    """Return the longest end of a path that is a file in the image folder."""
    parts = [part for part in re.split(r"[\\/]+", name) if part not in ("", ".", "..")]
    for start in range(len(parts)):
        tail = "/".join(parts[start:])
        folder, _, base = tail.rpartition("/")
        if tail != name and _entries(images / folder, folders).get(base) is False:
            return tail
    return None


def _by_case(name: str, images: Path, folders: dict[Path, dict[str, bool]]) -> str | None:
    folder, _, base = name.rpartition("/")
    found = [entry for entry in _entries(images / folder, folders) if entry.casefold() == base.casefold()]
    return posixpath.join(folder, found[0]) if len(found) == 1 else None


def _other_suffix(name: str, images: Path, folders: dict[Path, dict[str, bool]]) -> str | None:
    """Return a single image of the same name with another extension, or with one where none is given."""
    folder, _, base = name.rpartition("/")
    stem, suffix = posixpath.splitext(base)
    stems = {base} if suffix.lower() not in _KNOWN_SUFFIXES else {stem}
    found = [
        entry
        for entry in _entries(images / folder, folders)
        if posixpath.splitext(entry)[0] in stems and format_of_suffix(entry)
    ]
    return posixpath.join(folder, found[0]) if len(found) == 1 else None


def _entries(folder: Path, folders: dict[Path, dict[str, bool]]) -> dict[str, bool]:
    """List the files in a folder, and whether each is a link; every folder is listed once."""
    if folder not in folders:
        try:
            with os.scandir(folder) as entries:
                folders[folder] = {entry.name: entry.is_symlink() for entry in entries if entry.is_file()}
        except (FileNotFoundError, NotADirectoryError, OSError):
            folders[folder] = {}
    return folders[folder]


def _check_unlisted(splits: Sequence[SplitData], found: Findings) -> None:
    """Find image files in the image folders that no split names."""
    listed = {
        os.path.realpath(split.files.images / name)
        for split in splits
        for name in split.resolved
        if name is not None
    }
    told: set[Path] = set()
    for split in splits:
        for folder in sorted({posixpath.dirname(name) for name in split.resolved if name is not None}):
            path = split.files.images / folder
            real = path.resolve()
            if real in told:
                continue
            told.add(real)
            names = sorted(name for name in _image_names(path) if str(real / name) not in listed)
            for name in names:
                found.add("unlisted_image", posixpath.join(folder, name), Location(split.name))


def _image_names(folder: Path) -> Iterable[str]:
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries if entry.is_file() and format_of_suffix(entry.name)]
