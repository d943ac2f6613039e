"""Faults of image files: missing, empty, truncated, of another kind than they say, of another size than annotated.

Shapes: I images.
"""

from __future__ import annotations

import io
import os
import posixpath
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from detrkit.curation.check.source import ImageFacts, SplitData
from detrkit.data.exif import Turning, judge_turning
from detrkit.data.faults import Findings, Location
from detrkit.data.index import list_folder
from detrkit.data.names import find_names
from detrkit.files import format_of_suffix
from detrkit.ops.pixel_range import FULL, WIDE_MODES, WideImage, narrow_words, wide_values

Progress = Callable[[str, int, int], None]

_COMPANIONS = (".txt", ".xml", ".json", ".yaml", ".yml", ".csv", ".md", ".db", ".ini", ".cache")
_SAME_FORMAT = {"MPO": "JPEG", "DIB": "BMP"}
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM", b"RIFF", b"II*\0", b"MM\0*")
_STRANGERS = (
    (re.compile(rb"\s*(<!doctype html|<html|<head)", re.IGNORECASE), "a web page"),
    (re.compile(rb"version https://git-lfs"), "a Git LFS pointer: run git lfs pull"),
    (re.compile(rb"/annex/objects/"), "a git-annex pointer: run git annex get"),
    (re.compile(rb"\.\.?/[^\0\r\n]+\s*$"), "a link that was written as text: check it out with core.symlinks"),
    (re.compile(rb"\s*<(\?xml|svg)", re.IGNORECASE), "XML or SVG"),
    (re.compile(rb"%PDF"), "a PDF"),
    (re.compile(rb"PK\x03\x04"), "a ZIP archive"),
)
_CUT_WORDS = ("truncat", "unexpected end", "not enough", "broken data stream", "image file is", "premature", "eof")


def find_files(splits: Sequence[SplitData], found: Findings) -> None:
    """Find the file of every listed image; fills ``resolved`` of the splits."""
    for split in splits:
        names = find_names(split.table.file_names, split.files.images)
        for row, name in enumerate(split.table.file_names):
            split.resolved[row] = names.files[row] or names.guesses.get(row)
            fault = names.fault(row, name)
            if fault:
                found.add(fault, names.words(row, name), Location(split.name, row))
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
        turning = _judge_turning(split)
        split.is_turned |= turning.turned
        for row, known in enumerate(split.facts):
            if known is not None:
                _report(split, row, known, turning, found)
    return len(paths)


def inspect_image(path: Path, decode: bool = True) -> ImageFacts:
    """Look at an image file: its header, and whether it can be decoded; never raises."""
    facts = ImageFacts()
    try:
        content = path.read_bytes()
    except OSError as error:
        return facts._replace(fault="image_unreadable", detail=error.strerror or str(error))
    if not content:
        return facts._replace(fault="image_empty", detail="0 bytes")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")
            with Image.open(io.BytesIO(content)) as image:
                facts = _header_facts(image)
                if decode:
                    image.load()
                    if image.mode in WIDE_MODES:
                        facts = _with_depth(facts, wide_values(image))
                return facts
    except UnidentifiedImageError:
        fault, detail = _stranger(content)
        return facts._replace(fault=fault, detail=detail)
    except Exception as error:  # Pillow's plugins raise nearly anything on a corrupt file
        return facts._replace(fault=_fault_of(error), detail=str(error) or type(error).__name__)


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
    is_turned = image.format == "TIFF" and orientation in (5, 6, 7, 8)  # Pillow gives its size upright already
    return ImageFacts(
        format=image.format or "",
        mode=image.mode,
        stored_hw=(image.width, image.height) if is_turned else (image.height, image.width),
        orientation=orientation if isinstance(orientation, int) else 0,
        frames=1 if image.format == "MPO" else int(getattr(image, "n_frames", 1)),
    )


def _with_depth(facts: ImageFacts, wide: WideImage) -> ImageFacts:
    no_data = "" if wide.no_data is None else f", {wide.no_data:g} is taken for no data"
    return facts._replace(depth=f"{facts.mode}{no_data}", narrow=narrow_words(wide, FULL))


def _fault_of(error: Exception) -> str:
    if isinstance(error, (Image.DecompressionBombError, MemoryError)):
        return "image_too_large"
    text = str(error).lower()
    return "image_truncated" if any(word in text for word in _CUT_WORDS) else "image_unreadable"


def _stranger(content: bytes) -> tuple[str, str]:
    """Return the kind of fault of a file that Pillow knows no format of, and what the file is."""
    for pattern, words in _STRANGERS:
        if pattern.match(content[:512]):
            return "image_unreadable", f"it is {words}"
    if content.startswith(_MAGIC):
        return "image_truncated", f"the header is cut off or corrupt, {len(content)} bytes"
    if not content.strip(b"\0"):
        return "image_unreadable", f"{len(content)} bytes of zero"
    is_text = all(byte >= 32 or byte in b"\t\r\n" for byte in content[:512])
    return "image_unreadable", "it is text" if is_text else "not an image"


def _judge_turning(split: SplitData) -> Turning:
    """Decide whether boxes were drawn before EXIF turns the pictures."""
    table, known = split.table, [facts or ImageFacts() for facts in split.facts]
    stored_hw = np.array([facts.stored_hw for facts in known], dtype=np.int64).reshape(-1, 2)
    orientation = np.array([facts.orientation if facts.orientation in range(1, 9) else 1 for facts in known])
    if split.files.format == "yolo":
        orientation[:] = 1
    return judge_turning(table.sizes_hw, stored_hw, orientation, table.boxes_xywh, split.image_rows)


def _report(split: SplitData, row: int, facts: ImageFacts, turning: Turning, found: Findings) -> None:
    """Count the faults of one image file."""
    name, place = split.resolved[row] or split.table.file_names[row], Location(split.name, row)
    if facts.fault:
        found.add(facts.fault, f"{name}: {facts.detail}", place)
        return
    _report_size(split, row, facts, turning, found)
    mode, orientation = facts.mode, facts.orientation
    for kind, is_so, words in (
        ("image_mislabelled", is_mislabelled(name, facts), f"{name} is {facts.format}"),
        ("exif_orientation", 2 <= orientation <= 8, f"{name}: orientation {orientation}"),
        ("exif_broken", not 1 <= orientation <= 8, f"{name}: orientation {orientation}"),
        ("image_animated", facts.frames > 1, f"{name}: {facts.frames} frames"),
        ("image_cmyk", mode == "CMYK", name),
        ("image_deep", mode in WIDE_MODES, f"{name}: {facts.depth or mode}"),
        ("image_narrow_range", bool(facts.narrow), f"{name}: {facts.narrow}"),
        ("image_transparent", mode in ("RGBA", "LA", "PA", "La", "RGBa"), f"{name}: {mode}"),
    ):
        if is_so:
            found.add(kind, words, place)


def _report_size(split: SplitData, row: int, facts: ImageFacts, turning: Turning, found: Findings) -> None:
    listed = tuple(split.table.sizes_hw[row].tolist())
    upright, name, place = facts.upright_hw, split.table.file_names[row], Location(split.name, row)
    if turning.turned[row] or turning.exchanged[row]:
        kind = "exif_ignored" if turning.turned[row] else "exif_rotated_size"
        found.add(kind, turning.words(name, split.table.sizes_hw[row], facts.orientation), place)
    elif all(listed) and listed != upright and split.files.format != "yolo":
        sizes = f"{name}: {listed[1]} x {listed[0]} in the annotations, {upright[1]} x {upright[0]} in the file"
        found.add("size_mismatch", sizes + (" (exchanged)" if listed == upright[::-1] else ""), place)
    elif all(listed):
        return
    # Boxes may be meant for either size; they are only told of where they fit neither.
    split.limits_hw[row] = facts.stored_hw if turning.turned[row] else np.maximum(listed, upright)


def _kind_not_read(name: str) -> str:
    """Return the kind of a file that no walk of an image folder reads; empty for pictures, labels and texts."""
    if name.startswith("."):
        return "hidden picture" if format_of_suffix(name) else ""
    suffix = Path(name).suffix.lower()
    return "" if format_of_suffix(name) or suffix in _COMPANIONS else suffix or "without suffix"


def _check_unlisted(splits: Sequence[SplitData], found: Findings) -> None:
    """Find image files in the image folders that no split names."""
    names = {split.name: [name for name in split.resolved if name is not None] for split in splits}
    listed = {os.path.realpath(split.files.images / name) for split in splits for name in names[split.name]}
    told: set[Path] = set()
    for split in splits:
        for folder in sorted({posixpath.dirname(name) for name in names[split.name]}):
            real = (split.files.images / folder).resolve()
            if real not in told:
                told.add(real)
                files = list_folder(real)
                for kind, count in sorted(Counter(filter(None, map(_kind_not_read, files))).items()):
                    found.add("files_not_read", f"{folder or '.'}: {count} {kind}", Location(split.name), count)
                for name in sorted(name for name in files if format_of_suffix(name) and not name.startswith(".")):
                    if str(real / name) not in listed:
                        found.add("unlisted_image", posixpath.join(folder, name), Location(split.name))
