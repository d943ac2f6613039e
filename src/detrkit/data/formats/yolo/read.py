"""Reading YOLO labels: one text file an image, one object a line, numbers as shares of the image.

A line is ``class x y width height`` (centre of the box), or ``class x1 y1 x2 y2 x3 y3 ...`` (a polygon, read as
the box around it), or a box with a confidence or with keypoints behind it, which are not read.

Why not the readers of others, measured on the same files: hotcoco 1.3 wants ``data.yaml`` among the labels,
finds no names in it where they are a list over several lines, ends at the first polygon, and drops both the
suffix of image names and images without a label file. supervision 0.31 agrees to 0.0003 pixels (it rounds to
float32) and takes polygons, but ends at the first class without a name or line that it cannot parse. Neither
knows lists of images.

Shapes: I images, N annotations of all of them.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from detrkit.classes import SizeHW
from detrkit.data.faults import Findings
from detrkit.data.formats.base import SplitFiles, read_text, relative, walk_files
from detrkit.data.formats.yolo.data_yaml import locate, read_data_yaml
from detrkit.data.formats.yolo.find import NOT_LABELS
from detrkit.data.table import AnnotationTable
from detrkit.errors import AnnotationError, DataError, ImageError
from detrkit.files import IMAGE_SUFFIXES
from detrkit.ops.images import read_image_size

BOX_NUMBERS = 4
_THREADS = 8
_FEW_FILES = 64

Row = tuple[int, int, float, float, float, float]
"""Line from 1, class, and the box as written: centre, width and height."""


def load_yolo_table(files: SplitFiles) -> AnnotationTable:
    """Read the labels of a split; images without a label file have no objects.

    Raises:
        AnnotationError: The list of images cannot be read, or names a file outside the data set.
        DataError: There are no images or no classes.
    """
    return _Reader(files).table()


def label_name(image: str) -> str:
    """Return where the labels of an image lie by YOLO's rule: its last folder ``images`` becomes ``labels``."""
    head, slash, tail = f"/{image}".rpartition("/images/")
    path = f"{head}/labels/{tail}" if slash else f"/{image}"
    stem, dot, suffix = path.rpartition(".")
    return (stem if dot and "/" not in suffix else path).lstrip("/") + ".txt"


class _Reader:
    def __init__(self, files: SplitFiles):
        self.files, self.source = files, files.listings[0]
        self.root = files.annotations.parent if files.annotations.is_file() else files.annotations
        self.report = Findings(str(self.source))
        is_yaml = files.annotations.suffix.lower() in (".yaml", ".yml")
        self.content = read_data_yaml(files.annotations) if is_yaml else None
        self.keypoints = self.content.keypoint_values if self.content else 0
        self.prefix = ""  # of images inside the data set, whose own path may hold a folder called images too
        if files.images != self.root and files.images.is_relative_to(self.root):
            self.prefix = files.images.relative_to(self.root).as_posix() + "/"
        self._listed: dict[str, frozenset[str]] = {}

    def table(self) -> AnnotationTable:
        names = self._image_names()
        if not names:
            raise DataError(f"{self.source}: holds no images; expected {', '.join(sorted(IMAGE_SUFFIXES))}")
        labels = [self._label_of(name) for name in names]
        self._report_orphans(names, labels)
        if not any(labels):
            example = f"{len(names)} images, for instance {names[0]}"
            self.report.add("split_without_label_files", example, count=len(names))
        with ThreadPoolExecutor(_THREADS if len(names) > _FEW_FILES else 1) as pool:
            sizes = list(pool.map(self._size_hw, names, chunksize=32))
            texts = list(pool.map(_read_label, labels, chunksize=32))
        rows = [self._parse(text, label) for text, label in zip(texts, labels, strict=True)]
        keep = [place for place, found in enumerate(rows) if found is not None]
        if len(keep) < len(names):
            names, labels = [names[place] for place in keep], [labels[place] for place in keep]
            sizes = [sizes[place] for place in keep]
        return self._columns(names, labels, sizes, [found for found in rows if found is not None])

    def _columns(
        self, names: list[str], labels: list[str], sizes: list[SizeHW], rows: list[list[Row]]
    ) -> AnnotationTable:
        class_names = self._class_names()
        sizes_hw = np.array(sizes, dtype=np.int32).reshape(-1, 2)
        counts = [len(found) for found in rows]
        flat = np.array(list(itertools.chain.from_iterable(rows)), dtype=np.float64).reshape(-1, 6)
        # Boxes on an image that cannot be opened stay inside the 1 x 1 pixels that repair gives it.
        scale = np.maximum(np.repeat(sizes_hw, counts, axis=0), 1)[:, [1, 0, 1, 0]]
        boxes = flat[:, 2:] * scale
        with np.errstate(invalid="ignore"):  # infinities; repair leaves them out
            boxes[:, :2] -= boxes[:, 2:] / 2
        image_ids = np.arange(1, len(names) + 1, dtype=np.int64)
        return AnnotationTable(
            source=self.source,
            image_ids=image_ids,
            file_names=names,
            sizes_hw=sizes_hw,
            category_ids=list(class_names),
            category_names=list(class_names.values()),
            annotation_ids=np.arange(1, len(flat) + 1, dtype=np.int64),
            image_refs=np.repeat(image_ids, counts),
            category_refs=flat[:, 1].astype(np.int64),
            boxes_xywh=boxes,
            area=np.full(len(flat), np.nan),
            iscrowd=np.zeros(len(flat), dtype=bool),
            report=self.report.report(),
            label_files=[relative(Path(label), self.root) if label else "" for label in labels],
            places=flat[:, 0].astype(np.int64),
            unit="line",
        )

    def _image_names(self) -> list[str]:
        """List the images of the split relative to ``files.images``, by name; those of lists in their order."""
        names: list[str] = []
        for listing in self.files.listings:
            if listing.is_dir():
                prefix = "" if listing == self.files.images else relative(listing, self.files.images) + "/"
                names += [prefix + name for name in walk_files(listing, *IMAGE_SUFFIXES)]
            else:
                names += self._listed_names(listing)
        return names

    def _listed_names(self, listing: Path) -> list[str]:
        bases = (listing.parent, self.root)
        names = []
        for number, line in enumerate(read_text(listing, "surrogateescape").splitlines(), start=1):
            if not line.strip():
                continue
            path, _ = locate(line, bases, self.files.images)
            if path is None:
                outside = Path(os.path.abspath(listing.parent / line.strip()))  # noqa: PTH100
                if outside.is_file():
                    raise AnnotationError(
                        f"{listing} line {number}: {line.strip()!r} is {outside}, outside the data set {self.root}"
                        "; list images by their path inside it"
                    )
                name = os.path.normpath(line.strip().replace("\\", "/")).lstrip("/")
                names.append(name.removeprefix("../"))  # reported as missing later
            else:
                names.append(relative(path, self.files.images))
        return names

    def _label_of(self, name: str) -> str:
        """Find the label file of an image, by YOLO's rule, beside it or in a folder near it; empty if none."""
        folder, base = os.path.split(str(self.files.images / name))
        stem = base.rpartition(".")[0] + ".txt"
        upper, last = os.path.split(folder)
        for path in (
            *(f"{where}/{name.rpartition('.')[0]}.txt" for where in self.files.label_folders),
            f"{self.root}/{label_name(self.prefix + name)}",
            os.path.join(folder, stem),  # noqa: PTH118 - a hundred thousand times, and pathlib is slow
            os.path.join(folder, "labels", stem),  # noqa: PTH118
            os.path.join(upper, "labels", stem),  # noqa: PTH118
            os.path.join(upper, "labels", last, stem),  # noqa: PTH118
        ):
            place, label = os.path.split(path)
            if label in self._names_in(place):
                return path
        return ""

    def _names_in(self, folder: str) -> frozenset[str]:
        if folder not in self._listed:
            try:
                with os.scandir(folder) as entries:
                    names = [entry.name for entry in entries if entry.name.endswith(".txt")]
            except OSError:
                names = []
            self._listed[folder] = frozenset(name for name in names if name.lower() not in NOT_LABELS)
        return self._listed[folder]

    def _report_orphans(self, names: Sequence[str], labels: Sequence[str]) -> None:
        """Report labels in the folders of this split whose image is lost; lists may share folders with others."""
        if not all(listing.is_dir() for listing in self.files.listings):
            return
        used = {label for label in labels if label}
        beside = {os.path.split(str(self.files.images / name))[0] for name in names}
        for folder in sorted({os.path.split(label)[0] for label in used} - beside):
            for name in sorted(self._names_in(folder)):
                if f"{folder}/{name}" not in used:
                    self.report.add("label_file_without_image", relative(Path(folder, name), self.root))

    def _size_hw(self, name: str) -> SizeHW:
        try:
            return read_image_size(self.files.images / name)
        except ImageError:
            return 0, 0  # repair says so

    def _parse(self, text: str | None, label: str) -> list[Row] | None:
        """Parse the objects of a label file; None if it could not be read, so that its image is left out."""
        if text is None:
            self.report.add("label_file_unreadable", relative(Path(label), self.root))
            return None
        found: list[Row] = []
        for number, line in enumerate(text.splitlines(), start=1):
            words = line.split()
            if not words:
                continue
            row = self._row(words, number, label)
            if row is None:
                place = f"{relative(Path(label), self.root)} line {number}"
                self.report.add("label_line_unreadable", f"{place}: {line.strip()[:60]!r}")
            else:
                found.append(row)
        return found

    def _row(self, words: list[str], number: int, label: str) -> Row | None:
        try:
            values = [float(word) for word in words]
        except ValueError:
            return None
        class_id, *numbers = values
        if not math.isfinite(class_id) or class_id != int(class_id) or abs(class_id) >= 2**31:
            return None
        if len(numbers) > BOX_NUMBERS:
            place = f"{relative(Path(label), self.root)} line {number}"
            if len(numbers) == BOX_NUMBERS + 1 or len(numbers) == BOX_NUMBERS + self.keypoints:
                self.report.add("extra_numbers", place)
                numbers = numbers[:BOX_NUMBERS]
            elif len(numbers) >= 6 and len(numbers) % 2 == 0:
                self.report.add("polygons_in_labels", place)
                numbers = _box_around(numbers)
        if len(numbers) != BOX_NUMBERS:
            return None
        return (number, int(class_id), *numbers)  # type: ignore[return-value]

    def _class_names(self) -> dict[int, str]:
        content = self.content
        if content is not None and content.names:
            if content.count not in (None, len(content.names)):
                example = f"{content.path.name}: nc is {content.count}, names has {len(content.names)}"
                self.report.add("class_count_differs", example)
            return dict(sorted(content.names.items()))
        if self.files.names is not None:
            lines = [line.strip() for line in read_text(self.files.names).splitlines()]
            names = {number: line for number, line in enumerate(lines) if line}
            if names:
                return names
            raise DataError(f"{self.files.names}: holds no class names; expected one a line")
        count = content.count if content is not None else None
        if not count:  # by the labels of every split, so that all agree on the classes
            labelled = (class_id for folder in self.files.label_folders for class_id in _classes_in(folder))
            count = max(labelled, default=-1) + 1
        if count < 1:
            raise DataError(f"{self.source}: no label file holds an object, so there is nothing to detect")
        return {number: f"class_{number}" for number in range(count)}


def _classes_in(folder: Path) -> Iterator[int]:
    for name in walk_files(folder, ".txt"):
        if name.rpartition("/")[2].lower() in NOT_LABELS:
            continue
        for line in (_read_label(str(folder / name)) or "").splitlines():
            words = line.split()
            if len(words) > BOX_NUMBERS and words[0].isdigit():
                yield int(words[0])


def _read_label(path: str) -> str | None:
    if not path:
        return ""
    try:
        return Path(path).read_bytes().decode("utf-8-sig", "replace")
    except OSError:
        return None


def _box_around(numbers: Sequence[float]) -> list[float]:
    x, y = numbers[::2], numbers[1::2]
    if any(math.isnan(value) for value in numbers):
        return [math.nan] * BOX_NUMBERS
    left, right, top, bottom = min(x), max(x), min(y), max(y)
    return [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]
