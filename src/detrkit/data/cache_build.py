"""Making the cache that :mod:`detrkit.data.cache` reads.

Work that is done stays done: every copy appears under its name only when it is whole, and is then noted in a
journal, from which a run that was killed goes on.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
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
    write_manifest,
)
from detrkit.data.coco import fit_boxes
from detrkit.data.formats import canonical_split
from detrkit.data.index import CocoIndex, check_inside
from detrkit.data.loader import available_cpus
from detrkit.errors import DataError, ImageError
from detrkit.files import atomic_bytes, atomic_file, make_folder
from detrkit.ops.images import DecodeTarget, decode_image, decode_reduced, read_image_size

Progress = Callable[[int, int], None]

_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
_SAMPLE = 32
"""Images whose decoding is timed before and after."""


@dataclasses.dataclass(frozen=True)
class CacheReport:
    """What was made.

    Args:
        folder: The cache.
        images: Images of the split.
        resized: Made smaller now.
        linked: Small enough as they are: linked, or copied byte for byte.
        kept: Found in the cache from before.
        unreadable: What is wrong with each image that cannot be read; it has no copy.
        source_bytes: Size of the images that have a copy.
        copy_bytes: Size of the copies.
        source_ms: Time to read one of the images that were made smaller, in milliseconds of one CPU.
        copy_ms: Time to read its copy.
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
        """Numbers and text, ready for JSON."""
        return {**dataclasses.asdict(self), "folder": str(self.folder)}

    def lines(self) -> list[str]:
        """The same for people."""
        made = (
            f"{self.resized:,} made smaller, {self.linked:,} small enough as they are, {self.kept:,} from before"
        )
        sizes = f"{_megabytes(self.source_bytes)} became {_megabytes(self.copy_bytes)}"
        lines = [f"{self.images:,} images: {made}; {sizes}"]
        if self.source_ms is not None and self.copy_ms is not None:
            ratio = self.source_ms / max(self.copy_ms, 1e-9)
            lines.append(
                f"reading one that was made smaller takes {self.copy_ms:.1f} ms instead of {self.source_ms:.1f}: "
                f"{ratio:.1f} times as fast"
            )
        elif not self.unreadable or self.linked:
            lines.append("no image was larger than the copies may be: training will not be faster by this cache")
        if self.unreadable:
            shown = "; ".join(self.unreadable[:3]) + ("; ..." if len(self.unreadable) > 3 else "")
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
        index: The images.
        images: Their folder.
        split: Name of the split.
        out: Folder of the cache.
        short: Greatest short side of a copy in pixels; nothing is enlarged.
        quality: Of the JPEG, 1 to 100.
        workers: Threads; one per CPU if not given. Pillow works outside of Python's lock.
        progress: Called with the images done and the images in all.

    Raises:
        DataError: The disk is full; what is done is kept, and nothing is half-written.
        UsageError: The folder cannot be used.
    """
    make_folder(out)
    settings = CacheSettings(short, quality, os.path.realpath(images))
    copies = copies_folder(out, split)
    make_folder(copies)
    _remove_leftovers(out, copies)
    known = _known(out, split, settings)
    names = [index.file_name(row) for row in range(len(index))]
    entries = {
        name: known[name] for name in names if name in known and _is_good(name, known[name], settings, copies)
    }
    kept = len(entries)
    missing = [name for name in names if name not in entries]
    unreadable: list[str] = []
    with _Journal(_journal_path(out, split), settings, entries) as journal:
        for done, (name, found) in enumerate(_copied(missing, settings, copies, workers), start=kept + 1):
            if isinstance(found, Entry):
                entries[name] = found
                journal.add(name, found)
            elif isinstance(found, ImageError):
                unreadable.append(str(found))
            else:
                raise _disk_error(found, out, len(entries), len(names)) from found
            if progress is not None:
                progress(done, len(names))
    try:
        write_manifest(out, split, settings, {name: entries[name] for name in names if name in entries})
        _write_annotations(index, entries, short, out, split)
    except OSError as error:
        raise _disk_error(error, out, len(entries), len(names)) from error
    _journal_path(out, split).unlink(missing_ok=True)
    new = [entries[name] for name in missing if name in entries]
    source_ms, copy_ms = _reading_times(entries, settings, copies)
    return CacheReport(
        folder=out,
        images=len(names),
        resized=sum(not entry.is_linked for entry in new),
        linked=sum(entry.is_linked for entry in new),
        kept=kept,
        unreadable=tuple(unreadable),
        source_bytes=sum(entry.source_bytes for entry in entries.values()),
        copy_bytes=sum(entry.copy_bytes for entry in entries.values()),
        source_ms=source_ms,
        copy_ms=copy_ms,
    )


class _Journal:
    """The copies made so far, one line each; the first line says what they are like."""

    def __init__(self, path: Path, settings: CacheSettings, entries: Mapping[str, Entry]):
        self.path = path
        with atomic_file(path) as file:  # without what was torn or is of other settings
            file.write(json.dumps(_header(settings)) + "\n")
            file.writelines(json.dumps([name, *entry]) + "\n" for name, entry in entries.items())

    def __enter__(self) -> _Journal:
        self._file = self.path.open("a", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, name: str, entry: Entry) -> None:
        """Note a copy."""
        self._file.write(json.dumps([name, *entry]) + "\n")
        self._file.flush()


def reduced_hw(size_hw: SizeHW, short: int) -> SizeHW:
    """Size of the copy of an image: its short side at most ``short``."""
    height, width = size_hw
    if min(size_hw) <= short:
        return size_hw
    scale = short / min(size_hw)
    return max(short, round(height * scale)), max(short, round(width * scale))


def _copied(
    names: list[str], settings: CacheSettings, copies: Path, workers: int | None
) -> Iterator[tuple[str, Entry | ImageError | OSError]]:
    """Copy images by several threads; what became of each, in the order in which they are done."""
    threads = workers or available_cpus()
    waiting = iter(names)
    with ThreadPoolExecutor(threads) as pool:
        running: dict[Future[Entry | ImageError | OSError], str] = {}

        def start(count: int) -> None:
            for name in islice(waiting, count):
                running[pool.submit(_copy, name, settings, copies)] = name

        start(4 * threads)
        try:
            while running:
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield running.pop(future), future.result()
                start(len(done))
        finally:
            for future in running:
                future.cancel()


def _copy(name: str, settings: CacheSettings, copies: Path) -> Entry | ImageError | OSError:
    """Make the copy of one image."""
    source = Path(settings.source) / name
    check_inside(name, Path(settings.source))
    try:
        status = source.stat()
        size_hw = read_image_size(source)
    except ImageError as error:
        return error
    except OSError as error:
        return ImageError(f"{source}: {error.strerror}")
    is_linked = min(size_hw) <= settings.short
    target = copies / copy_name(name, is_linked)
    try:
        check_inside(copy_name(name, is_linked), copies)
        target.parent.mkdir(parents=True, exist_ok=True)
        if is_linked:
            decode_image(source)  # one that is broken shall be told of now
            _link(source, target)
        else:
            _write_smaller(source, target, settings)
        copy_bytes = target.stat().st_size
    except ImageError as error:
        return error
    except OSError as error:
        return error
    return Entry(status.st_size, status.st_mtime_ns, *size_hw, copy_bytes, is_linked)


def _link(source: Path, target: Path) -> None:
    """The same file under another name, or its bytes once more where the file system cannot do that."""
    source = source.resolve()
    if target.exists() and target.samefile(source):
        return
    target.unlink(missing_ok=True)
    try:
        target.hardlink_to(source)
    except OSError as error:
        if error.errno in _DISK_ERRORS:
            raise
        with source.open("rb") as original, atomic_bytes(target, durable=False) as file:
            shutil.copyfileobj(original, file)


def _write_smaller(source: Path, target: Path, settings: CacheSettings) -> None:
    # half as large again: what a fraction of a JPEG leaves out is then not seen
    pixels, whole_hw = decode_reduced(source, DecodeTarget(settings.short * 3 // 2))
    height, width = reduced_hw(whole_hw, settings.short)
    image = Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))
    with atomic_bytes(target, durable=False) as file:
        image.resize((width, height), Image.Resampling.LANCZOS).save(file, "JPEG", quality=settings.quality)


def _is_good(name: str, entry: Entry, settings: CacheSettings, copies: Path) -> bool:
    """Whether a copy is whole, and its source as it was."""
    try:
        whole = (copies / copy_name(name, entry.is_linked)).stat().st_size == entry.copy_bytes
    except OSError:
        return False
    return whole and is_current(entry, Path(settings.source) / name)


def _known(out: Path, split: str, settings: CacheSettings) -> dict[str, Entry]:
    """Copies of earlier calls with the same settings."""
    known: dict[str, Entry] = {}
    if manifest_path(out, split).is_file():
        try:
            before, entries = read_manifest(out, split)
        except DataError:  # damaged: made anew
            entries, before = {}, settings
        known = entries if before == settings else {}
    try:
        lines = _journal_path(out, split).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return known
    parsed = [line for line in map(_parsed, lines) if line is not None]
    if not parsed or parsed[0] != _header(settings):
        return known
    for line in parsed[1:]:
        if isinstance(line, list) and len(line) == 1 + len(Entry._fields):
            known[line[0]] = Entry(*line[1:])
    return known


def _parsed(line: str) -> Any:
    """A line of the journal; None if it was torn."""
    try:
        return json.loads(line)
    except ValueError:
        return None


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB" if count >= 10e6 else f"{count / 1e6:.2f} MB"


def _header(settings: CacheSettings) -> dict[str, Any]:
    return {"version": VERSION, **dataclasses.asdict(settings)}


def _journal_path(out: Path, split: str) -> Path:
    return out / f"{canonical_split(split)}.journal.jsonl"


def _remove_leftovers(out: Path, copies: Path) -> None:
    """Temporary files of a run that was killed."""
    for leftover in (*out.glob(".*.tmp"), *copies.rglob(".*.tmp")):
        leftover.unlink(missing_ok=True)


def _disk_error(error: OSError, out: Path, done: int, total: int) -> DataError:
    kept = f"{done:,} of {total:,} images are done and stay; the same command goes on from there"
    if error.errno in _DISK_ERRORS:
        free = shutil.disk_usage(out).free / 1e6
        return DataError(
            f"{out}: {error.strerror or error}, {free:,.0f} MB are free; {kept}: make room, choose another "
            "folder with --out, or smaller copies with --size or --quality"
        )
    return DataError(f"{error.filename or out}: cannot be written: {error.strerror or error}; {kept}")


def _reading_times(
    entries: Mapping[str, Entry], settings: CacheSettings, copies: Path
) -> tuple[float | None, float | None]:
    """Milliseconds of CPU to read an image as training does, and its copy; None if none was made smaller."""
    smaller = [name for name, entry in entries.items() if not entry.is_linked]
    chosen = smaller[:: max(1, len(smaller) // _SAMPLE)][:_SAMPLE]
    if not chosen:
        return None, None
    times = {True: 0.0, False: 0.0}
    for name in chosen:
        for is_source in (True, False):
            path = Path(settings.source) / name if is_source else copies / copy_name(name, False)
            start_s = time.process_time()
            decode_reduced(path, DecodeTarget(settings.short))
            times[is_source] += time.process_time() - start_s
    return 1000 * times[True] / len(chosen), 1000 * times[False] / len(chosen)


def _write_annotations(index: CocoIndex, entries: Mapping[str, Entry], short: int, out: Path, split: str) -> None:
    """The objects in pixels of the copies, so that the cache is a COCO data set by itself."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for row in range(len(index)):
        entry = entries.get(index.file_name(row))
        if entry is None:
            continue
        image_id = int(index.image_ids[row])
        height, width = reduced_hw((entry.height, entry.width), short)
        name = copy_name(index.file_name(row), entry.is_linked)
        images.append({"id": image_id, "file_name": name, "height": height, "width": width})
        rows = index.annotation_rows(row)
        listed_hw = (int(index.sizes_hw[row, 0]), int(index.sizes_hw[row, 1]))
        source_hw = (entry.height, entry.width)
        boxes, area = fit_boxes(index.boxes_xyxy[rows], index.area[rows], listed_hw, source_hw)
        boxes, area = fit_boxes(boxes, area, source_hw, (height, width))
        columns = zip(
            index.annotation_ids[rows].tolist(),
            index.labels[rows].tolist(),
            boxes.round(3).tolist(),
            area.round(3).tolist(),
            index.iscrowd[rows].tolist(),
            strict=True,
        )
        for annotation_id, label, (x1, y1, x2, y2), size, crowd in columns:
            annotation = {"id": annotation_id, "image_id": image_id, "area": size, "iscrowd": int(crowd)}
            annotation["category_id"] = index.class_map.category_ids[label]
            annotation["bbox"] = [x1, y1, round(x2 - x1, 3), round(y2 - y1, 3)]
            annotations.append(annotation)
    categories = [
        {"id": category_id, "name": name}
        for category_id, name in zip(index.class_map.category_ids, index.class_map.names, strict=True)
    ]
    content = {"images": images, "annotations": annotations, "categories": categories}
    with atomic_file(out / "annotations" / f"instances_{canonical_split(split)}.json") as file:
        json.dump(content, file)
