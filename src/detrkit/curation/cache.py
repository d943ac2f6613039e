"""Making the cache that :mod:`detrkit.data.cache` reads.

Work that is done stays done: every copy appears under its name only when it is whole, with the time of change of
its source. A run that was killed leaves these and ``SPLIT.building``, which says what they are like; the next run
with the same settings keeps them.
"""

from __future__ import annotations

import dataclasses
import errno
import io
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from detrkit.classes import SizeHW
from detrkit.data.cache import (
    VERSION,
    CacheSettings,
    Entry,
    copies_folder,
    copy_name,
    is_current,
    manifest_path,
    read_manifest,
)
from detrkit.data.coco import fit_boxes
from detrkit.data.formats import canonical_split
from detrkit.data.formats.coco.write import coco_content, write_coco_json
from detrkit.data.index import CocoIndex, check_inside, pack_names
from detrkit.download import size_text
from detrkit.errors import DataError, ImageError, UsageError, listed
from detrkit.files import atomic_bytes, make_folder, remove_leftovers, write_text
from detrkit.machine import usable_cpus
from detrkit.ops.images import DecodeTarget, decode_image, decode_reduced, read_image_size

Progress = Callable[[int, int], None]

_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
_TIMED = 32
"""Images whose decoding is timed before and after."""


@dataclasses.dataclass(frozen=True)
class CacheReport:
    """Counts and times of a cache that was made.

    Args:
        folder: cache
        images: images of the split
        resized: images made smaller now
        linked: images small enough as they are: linked, or copied byte for byte
        kept: copies found in the cache from before
        unreadable: fault of each image that cannot be read; it has no copy
        source_bytes: size of the images that have a copy
        copy_bytes: size of the copies
        source_ms: time to read one of the images that were made smaller, in milliseconds of one CPU
        copy_ms: time to read its copy
    """

    folder: Path
    images: int
    resized: int
    linked: int
    kept: int
    unreadable: tuple[str, ...]
    source_bytes: int
    copy_bytes: int
    source_ms: float | None
    copy_ms: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return numbers and text, ready for JSON."""
        return {**dataclasses.asdict(self), "folder": str(self.folder)}

    def lines(self) -> list[str]:
        """Return the same for people."""
        lines = [
            f"{self.images:,} images: {self.resized:,} made smaller, {self.linked:,} small enough as they are, "
            f"{self.kept:,} from before; {size_text(self.source_bytes)} became {size_text(self.copy_bytes)}"
        ]
        if self.source_ms is not None and self.copy_ms is not None:
            ratio = self.source_ms / max(self.copy_ms, 1e-9)
            lines.append(
                f"reading one that was made smaller takes {self.copy_ms:.1f} ms instead of {self.source_ms:.1f}: "
                f"{ratio:.1f} times as fast"
            )
        elif not self.unreadable or self.linked:
            lines.append("no image was larger than the copies may be: training will not be faster by this cache")
        if self.unreadable:
            shown = listed(self.unreadable, 3, "; ")
            lines.append(f"{len(self.unreadable)} cannot be read and have no copy: {shown}")
        return lines


def build_cache(
    index: CocoIndex,
    images: Path,
    split: str,
    out: Path,
    *,
    short: int = 800,
    quality: int = 90,
    workers: int | None = None,
    progress: Progress | None = None,
) -> CacheReport:
    """Copy the images of a split, none larger than training needs; go on where an earlier call ended.

    Args:
        index: images of the split
        images: their folder
        split: name of the split
        out: folder of the cache
        short: greatest short side of a copy in pixels; nothing is enlarged
        quality: quality of the JPEG files, 1 to 100
        workers: threads; one per CPU if not given. Pillow works outside of Python's lock
        progress: called with the images done and the images in all

    Raises:
        DataError: The disk is full; what is done is kept, and nothing is half-written.
        UsageError: The folder cannot be used.
    """
    make_folder(out)
    _check_target(out, split)
    settings = CacheSettings(short, quality, os.path.realpath(images))
    copies, building = copies_folder(out, split), out / f"{canonical_split(split)}.building"
    names = [index.file_name(row) for row in range(len(index))]
    entries: dict[str, Entry] = {}
    unreadable: list[str] = []
    try:
        # Keep what earlier calls left if it is like what is asked for; else remove it.
        known = _known(out, split, settings, building)
        make_folder(copies)
        for folder in {out, *(Path(where) for where, _, _ in os.walk(copies))}:
            remove_leftovers(folder)
        write_text(building, _settings_text(settings), own_folder=True)
        for name in names:
            entry = known.get(name) or _entry_of_copy(name, settings, copies)
            if entry is not None and _is_good(name, entry, settings, copies):
                entries[name] = entry
        # Make the copies that are missing.
        missing = [name for name in names if name not in entries]
        kept = len(entries)
        for done, (name, made) in enumerate(_copied(missing, settings, copies, workers), start=kept + 1):
            if isinstance(made, Entry):
                entries[name] = made
            else:
                unreadable.append(str(made))
            if progress is not None:
                progress(done, len(names))
        write_manifest(out, split, settings, {name: entries[name] for name in names if name in entries})
        _write_annotations(index, entries, short, out, split)
        building.unlink()
    except OSError as error:
        raise _disk_error(error, out, len(entries), len(names)) from error
    new = [entries[name] for name in missing if name in entries]
    linked = sum(entry.is_linked for entry in new)
    source_bytes = sum(entry.source_bytes for entry in entries.values())
    copy_bytes = sum(entry.copy_bytes for entry in entries.values())
    counts = len(names), len(new) - linked, linked, kept, tuple(unreadable), source_bytes, copy_bytes
    return CacheReport(out, *counts, *_reading_times(entries, settings, copies))


def reduced_hw(size_hw: SizeHW, short: int) -> SizeHW:
    """Return the size of the copy of an image: its short side at most ``short``."""
    height, width = size_hw
    if min(size_hw) <= short:
        return size_hw
    scale = short / min(size_hw)
    return max(short, round(height * scale)), max(short, round(width * scale))


def _check_target(out: Path, split: str) -> None:
    """Refuse a folder whose files are not a cache's: copies with other settings are deleted.

    Raises:
        UsageError: Something lies where copies or annotations belong, and no list or note of a cache does.
    """
    building, list_path = out / f"{canonical_split(split)}.building", manifest_path(out, split)
    if building.is_file() and re.fullmatch(rb"\d+ \d+ \d+ .*\n", building.read_bytes(), re.DOTALL):
        return
    try:
        read_manifest(out, split)
    except DataError as error:
        for path in (copies_folder(out, split), _annotations_path(out, split), list_path, building):
            if os.path.lexists(path):
                raise UsageError(f"{path} is no part of a cache and in its way; give another --out") from error


def _annotations_path(out: Path, split: str) -> Path:
    return out / "annotations" / f"instances_{canonical_split(split)}.json"


def _known(out: Path, split: str, settings: CacheSettings, building: Path) -> dict[str, Entry]:
    """Return the copies of an earlier call with the same settings; remove those of another."""
    try:
        before, entries = read_manifest(out, split)
    except DataError:  # none, or damaged: made anew
        before, entries = None, {}
    was_building = building.read_text(encoding="utf-8") if building.is_file() else ""
    if was_building == _settings_text(settings) or (before == settings and not was_building):
        return entries if before == settings else {}
    # Links go one by one: the sources stay.
    shutil.rmtree(copies_folder(out, split), ignore_errors=True)
    manifest_path(out, split).unlink(missing_ok=True)
    return {}


def _settings_text(settings: CacheSettings) -> str:
    return f"{VERSION} {settings.short} {settings.quality} {settings.source}\n"


def _entry_of_copy(name: str, settings: CacheSettings, copies: Path) -> Entry | None:
    """Return what a manifest would say of a copy that a killed run left; None if there is none of this source."""
    source = Path(settings.source) / name
    if not any((copies / copy_name(name, is_linked)).exists() for is_linked in (False, True)):
        return None
    try:
        size_hw = read_image_size(source)
        is_linked = min(size_hw) <= settings.short
        copy = copies / copy_name(name, is_linked)
        made, original = copy.stat(), source.stat()
        is_same = made.st_mtime_ns == original.st_mtime_ns
        if not is_same or read_image_size(copy) != reduced_hw(size_hw, settings.short):
            return None
    except (OSError, ImageError):
        return None
    return Entry(original.st_size, original.st_mtime_ns, *size_hw, made.st_size, is_linked)


def _is_good(name: str, entry: Entry, settings: CacheSettings, copies: Path) -> bool:
    """Return whether a copy is whole, and its source as it was."""
    try:
        whole = (copies / copy_name(name, entry.is_linked)).stat().st_size == entry.copy_bytes
    except OSError:
        return False
    return whole and is_current(entry, Path(settings.source) / name)


def _copied(
    names: list[str], settings: CacheSettings, copies: Path, workers: int | None
) -> Iterator[tuple[str, Entry | ImageError]]:
    """Copy images by several threads, a bounded number of them under way; yield what became of each, in order."""
    threads = workers or usable_cpus()
    many = 64 * threads
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(names), many):
            some = names[start : start + many]
            yield from zip(some, pool.map(lambda name: _copy(name, settings, copies), some), strict=True)


def _copy(name: str, settings: CacheSettings, copies: Path) -> Entry | ImageError:
    """Make the copy of one image; one that cannot be read gives its error.

    Raises:
        OSError: The copy cannot be written.
    """
    source = Path(settings.source) / name
    check_inside(name, Path(settings.source))
    try:
        status = source.stat()
    except OSError as error:
        return ImageError(f"{source}: {error.strerror}")
    try:
        size_hw = read_image_size(source)
        is_linked = min(size_hw) <= settings.short
        target = copies / copy_name(name, is_linked)
        check_inside(copy_name(name, is_linked), copies, links=False)
        target.parent.mkdir(parents=True, exist_ok=True)
        if is_linked:
            decode_image(source)  # one that is broken shall be told of now
            _link(source, target)
        else:
            _write_smaller(source, target, settings, status)
    except ImageError as error:
        return error
    return Entry(status.st_size, status.st_mtime_ns, *size_hw, target.stat().st_size, is_linked)


def _link(source: Path, target: Path) -> None:
    """Give the same file another name, or its bytes once more where the file system cannot do that."""
    source = source.resolve()
    if target.exists() and target.samefile(source):
        return
    target.unlink(missing_ok=True)
    try:
        target.hardlink_to(source)
    except OSError as error:
        if error.errno in _DISK_ERRORS:
            raise
        with source.open("rb") as original, atomic_bytes(target, durable=False, own_folder=True) as file:
            shutil.copyfileobj(original, file)
            file.flush()
            _set_time(file.name, source.stat())


def _write_smaller(source: Path, target: Path, settings: CacheSettings, status: os.stat_result) -> None:
    # half as large again: what a fraction of a JPEG leaves out is then not seen
    pixels, whole_hw = decode_reduced(source, DecodeTarget(settings.short * 3 // 2))
    height, width = reduced_hw(whole_hw, settings.short)
    image = Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))
    with atomic_bytes(target, durable=False, own_folder=True) as file:
        image.resize((width, height), Image.Resampling.LANCZOS).save(file, "JPEG", quality=settings.quality)
        file.flush()
        _set_time(file.name, status)


def _set_time(path: str, status: os.stat_result) -> None:
    """Give a copy the time of change of its source, by which a later run knows it."""
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _disk_error(error: OSError, out: Path, done: int, total: int) -> DataError:
    kept = f"{done:,} of {total:,} images are done and stay; the same command goes on from there"
    if error.errno in _DISK_ERRORS:
        free = size_text(shutil.disk_usage(out).free)
        return DataError(
            f"{out}: {error.strerror or error}, {free} are free; {kept}: make room, choose another "
            "folder with --out, or smaller copies with --size or --quality"
        )
    return DataError(f"{error.filename or out}: cannot be written: {error.strerror or error}; {kept}")


def _reading_times(
    entries: Mapping[str, Entry], settings: CacheSettings, copies: Path
) -> tuple[float | None, float | None]:
    """Return the milliseconds of CPU to read an image and its copy; None if none was made smaller."""
    smaller = [name for name, entry in entries.items() if not entry.is_linked]
    chosen = smaller[:: max(1, len(smaller) // _TIMED)][:_TIMED]
    if not chosen:
        return None, None

    def mean_ms(paths: list[Path]) -> float:
        start_s = time.process_time()
        for path in paths:
            decode_reduced(path, DecodeTarget(settings.short))
        return 1000 * (time.process_time() - start_s) / len(paths)

    sources = [Path(settings.source) / name for name in chosen]
    return mean_ms(sources), mean_ms([copies / copy_name(name, False) for name in chosen])


def _write_annotations(index: CocoIndex, entries: Mapping[str, Entry], short: int, out: Path, split: str) -> None:
    """Write the objects in pixels of the copies, so that the cache is a COCO data set by itself."""
    rows = [row for row in range(len(index)) if index.file_name(row) in entries]
    index = index.select(np.array(rows, dtype=np.int64))
    boxes, area, sizes_hw = index.boxes_xyxy.copy(), index.area.copy(), index.sizes_hw.copy()
    names = []
    for row in range(len(index)):
        entry, own = entries[index.file_name(row)], index.annotation_rows(row)
        names.append(copy_name(index.file_name(row), entry.is_linked))
        # From the size that the annotations speak of to that of the file, and on to that of the copy.
        source_hw, copy_hw = (entry.height, entry.width), reduced_hw((entry.height, entry.width), short)
        listed_hw = (int(sizes_hw[row, 0]), int(sizes_hw[row, 1]))
        fitted = fit_boxes(*fit_boxes(boxes[own], area[own], listed_hw, source_hw), source_hw, copy_hw)
        boxes[own], area[own], sizes_hw[row] = fitted[0].round(3), fitted[1].round(3), copy_hw
    fitted_index = dataclasses.replace(index, boxes_xyxy=boxes, area=area, sizes_hw=sizes_hw)
    write_coco_json(_annotations_path(out, split), coco_content(fitted_index, names))


def write_manifest(folder: Path, split: str, settings: CacheSettings, entries: Mapping[str, Entry]) -> None:
    """Write the list of copies, whole or not at all."""
    name_bytes, name_offsets = pack_names(list(entries))
    content = io.BytesIO()
    np.savez(
        content,
        settings=np.array([VERSION, settings.short, settings.quality], dtype=np.int64),
        source=np.frombuffer(os.fsencode(settings.source), dtype=np.uint8),
        name_bytes=name_bytes,
        name_offsets=name_offsets,
        entries=np.array(list(entries.values()), dtype=np.int64).reshape(len(entries), len(Entry._fields)),
    )
    with atomic_bytes(manifest_path(folder, split), own_folder=True) as file:
        file.write(content.getbuffer())
