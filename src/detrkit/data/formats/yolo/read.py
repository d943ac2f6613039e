"""Reading YOLO labels: one text file an image, one object a line, numbers as shares of the image.

A line is ``class x y width height`` (centre of the box), or ``class x1 y1 x2 y2 x3 y3 ...`` (a polygon, read as
the box around it), or a box with a confidence, a track id or keypoints behind it, which are not read; which of
these is decided in :mod:`detrkit.data.formats.yolo.lines`.

Why not the readers of others, measured on the same files: hotcoco 1.3 wants ``data.yaml`` among the labels,
finds no names in it where they are a list over several lines, ends at the first polygon, and drops both the
suffix of image names and images without a label file. supervision 0.31 agrees to 0.0003 pixels (it rounds to
float32) and takes polygons, but ends at the first class without a name or line that it cannot parse. Neither
knows lists of images.

Shapes: I images, N annotations of all of them.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from detrkit.classes import SizeHW
from detrkit.data.faults import Findings
from detrkit.data.formats.base import SplitFiles, file_names, is_kind, passed_over, read_text, relative, walk_files
from detrkit.data.formats.foreign import describe_foreign
from detrkit.data.formats.yolo.class_list import read_names
from detrkit.data.formats.yolo.data_yaml import locate, read_data_yaml
from detrkit.data.formats.yolo.find import NOT_LABELS
from detrkit.data.formats.yolo.lines import (
    BOX_NUMBERS,
    Meaning,
    are_drawn,
    boxes_of,
    find_meanings,
    object_lines,
    split_numbers,
)
from detrkit.data.masks import ObjectMasks, polygon_text
from detrkit.data.names import find_names, without_prefix
from detrkit.data.table import AnnotationTable
from detrkit.errors import AnnotationError, DataError, ImageError, listed
from detrkit.files import IMAGE_SUFFIXES
from detrkit.ops.images import read_image_size

_THREADS = 8
_FEW_FILES = 64

Row = tuple[int, int, float, float, float, float]
"""Line from 1, class, and the box as written: centre, width and height."""
WideLine = tuple[list[Row], str, int, int]
"""Rows of its image, label file, line and class of a line with more numbers than a box."""


def load_yolo_table(files: SplitFiles, masks: bool = False) -> AnnotationTable:
    """Read the labels of a split; images without a label file have no objects.

    Args:
        files: The split.
        masks: Read polygons as masks too.

    Raises:
        AnnotationError: The list of images cannot be read, or names a file outside the data set.
        DataError: There are no images or no classes.
    """
    return _Reader(files, masks).table()


def label_name(image: str) -> str:
    """Return where the labels of an image lie by YOLO's rule: its last folder ``images`` becomes ``labels``."""
    head, slash, tail = f"/{image}".rpartition("/images/")
    path = f"{head}/labels/{tail}" if slash else f"/{image}"
    stem, dot, suffix = path.rpartition(".")
    return (stem if dot and "/" not in suffix else path).lstrip("/") + ".txt"


class _Reader:
    def __init__(self, files: SplitFiles, masks: bool):
        self.files, self.source = files, files.listings[0]
        self.polygons: dict[tuple[str, int], np.ndarray] | None = {} if masks else None  # by label file and line
        self.root = files.annotations.parent if files.annotations.is_file() else files.annotations
        self.report = Findings(str(self.source))
        is_yaml = files.annotations.suffix.lower() in (".yaml", ".yml")
        self.content = read_data_yaml(files.annotations, self.report) if is_yaml else None
        self.keypoints = self.content.keypoint_values if self.content else 0
        self.prefix = ""  # of images inside the data set, whose own path may hold a folder called images too
        if files.images != self.root and files.images.is_relative_to(self.root):
            self.prefix = files.images.relative_to(self.root).as_posix() + "/"
        self._listed: dict[str, dict[str, str]] = {}
        self._lost: list[tuple[str, str]] = []  # label file and place of every line that is not understood
        self._wide: defaultdict[int, list[tuple[WideLine, list[float]]]] = defaultdict(list)

    def table(self) -> AnnotationTable:
        names = self._image_names()
        if not names:
            raise DataError(f"{self.source}: holds no images; expected {', '.join(sorted(IMAGE_SUFFIXES))}")
        files = names
        if not all(listing.is_dir() for listing in self.files.listings):  # lists may spell names otherwise
            found_names = find_names(names, self.files.images).files
            files = [file or name for file, name in zip(found_names, names, strict=True)]
        labels = self._with_prefixes(files, [self._label_of(name) for name in files])
        self._report_files(files, labels)
        if 2 * labels.count("") > len(names):
            example = f"of {len(names)} images, for instance {names[labels.index('')]}"
            self.report.add("split_without_label_files", example, count=labels.count(""))
        with ThreadPoolExecutor(_THREADS if len(names) > _FEW_FILES else 1) as pool:
            sizes = list(pool.map(self._size_hw, files, chunksize=32))
            texts = list(pool.map(_read_label, labels, chunksize=32))
        rows = [self._parse(text, label) for text, label in zip(texts, labels, strict=True)]
        self._place_wide()
        self._refuse_most_lost(sum(len(found) for found in rows if found))
        keep = [place for place, found in enumerate(rows) if found is not None]
        if len(keep) < len(names):
            names, labels = [names[place] for place in keep], [labels[place] for place in keep]
            sizes = [sizes[place] for place in keep]
        return self._columns(names, labels, sizes, [found for found in rows if found is not None])

    def _columns(
        self, names: list[str], labels: list[str], sizes: list[SizeHW], rows: list[list[Row]]
    ) -> AnnotationTable:
        class_names, own_ids = self._classes()
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
            category_refs=self._class_ids(flat[:, 1].astype(np.int64), class_names, own_ids),
            boxes_xywh=boxes,
            area=np.full(len(flat), np.nan),
            iscrowd=np.zeros(len(flat), dtype=bool),
            report=self.report.report(),
            label_files=[relative(Path(label), self.root) if label else "" for label in labels],
            places=flat[:, 0].astype(np.int64),
            unit="line",
            masks=None if self.polygons is None else ObjectMasks.pack(self._mask_texts(labels, rows, sizes_hw)),
        )

    def _mask_texts(self, labels: list[str], rows: list[list[Row]], sizes_hw: np.ndarray) -> Iterator[bytes]:
        """Yield the polygon of each object in pixels, as text; empty where its line is a box."""
        assert self.polygons is not None
        for label, found, (height, width) in zip(labels, rows, sizes_hw.tolist(), strict=True):
            for number, *_ in found:
                polygon = self.polygons.get((label, number))
                yield b"" if polygon is None else polygon_text(polygon * (width, height))

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
                return f"{place}/{self._names_in(place)[label]}"
        return ""

    def _with_prefixes(self, names: Sequence[str], labels: Sequence[str]) -> list[str]:
        """Find labels where either they or most images have a name with the digits of Label Studio before it."""
        lacking = {name: self._folder_of(name) for name, label in zip(names, labels, strict=True) if not label}
        if 2 * len(lacking) <= len(names):
            return list(labels)
        images, files = defaultdict[str, list[str]](list), defaultdict[str, list[str]](list)
        for name, folder in lacking.items():
            stem = name.rpartition("/")[2].rpartition(".")[0]
            images[f"{folder}/{without_prefix(stem)}.txt"].append(name)
        for folder in dict.fromkeys(lacking.values()):
            for name, written in self._names_in(folder).items():
                files[f"{folder}/{without_prefix(name)}"].append(f"{folder}/{written}")
        pairs = {fits[0]: files[key][0] for key, fits in images.items() if len(fits) == len(files[key]) == 1}
        if 2 * len(pairs) <= len(names):
            return list(labels)
        for name, label in pairs.items():
            self.report.add("label_file_name_rule", f"{self._said(label)} of {name}")
        return [label or pairs.get(name, "") for name, label in zip(names, labels, strict=True)]

    def _folder_of(self, name: str) -> str:
        """Return the folder where the labels of an image lie by YOLO's rule."""
        return os.path.split(f"{self.root}/{label_name(self.prefix + name)}")[0]

    def _names_in(self, folder: str) -> dict[str, str]:
        """Return the names of the label files in a folder by their names with a suffix in small letters."""
        if folder not in self._listed:
            names = [name for name in file_names(folder) if is_kind(name, (".txt",))]
            labels = (name for name in names if name.lower() not in NOT_LABELS)
            self._listed[folder] = {f"{name[:-4]}.txt": name for name in labels}
        return self._listed[folder]

    def _report_files(self, names: Sequence[str], labels: Sequence[str]) -> None:
        """Report labels whose image is lost or that several images share, and what else lies beside them."""
        for label, count in Counter(filter(None, labels)).items():
            if count > 1:
                images = [name for name, own in zip(names, labels, strict=True) if own == label]
                self.report.add("label_file_shared", f"{self._said(label)} of {listed(images)}")
        used = set(filter(None, labels))
        beside = {os.path.split(str(self.files.images / name))[0] for name in names}
        folders = {os.path.split(label)[0] for label in used}
        folders |= {self._folder_of(name) for name, label in zip(names, labels, strict=True) if not label}
        deeper = {f"{top}/{name}".rpartition("/")[0] for top in folders for name in walk_files(Path(top), ".txt")}
        for folder in sorted((folders | deeper) - beside):
            passed_over(Path(folder), ".txt", self.report)
            if all(listing.is_dir() for listing in self.files.listings):  # lists may share folders with others
                for name in sorted(self._names_in(folder).values()):
                    label = f"{folder}/{name}"
                    if label not in used:
                        text = _read_label(label)
                        lines = len(object_lines(text)) if isinstance(text, str) else 0
                        self.report.add("label_file_without_image", self._said(label), objects=lines)

    def _said(self, label: str) -> str:
        return relative(Path(label), self.root)

    def _size_hw(self, name: str) -> SizeHW:
        try:
            return read_image_size(self.files.images / name)
        except ImageError:
            return 0, 0  # repair says so

    def _parse(self, text: str | AnnotationError, label: str) -> list[Row] | None:
        """Parse the objects of a label file; None if it could not be read, so that its image is left out."""
        if isinstance(text, AnnotationError):
            self.report.add("label_file_unreadable", str(text).replace(label, self._said(label)))
            return None
        found: list[Row] = []

        def tell(number: int, line: str) -> None:
            self.report.add("label_line_no_object", f"{self._said(label)} line {number}: {line[:60]!r}")

        if "\0" in text:
            self.report.add("label_file_damaged", self._said(label))
        for number, line in object_lines(text, tell):
            values = split_numbers(line)
            if values is None or len(values) <= BOX_NUMBERS or not _is_class(values[0]):
                place = f"{self._said(label)} line {number}: {line.strip()[:60]!r}"
                self._lose("label_line_unreadable", label, place)
                continue
            class_id, *numbers = values
            if len(numbers) == BOX_NUMBERS:
                found.append((number, int(class_id), *numbers))  # type: ignore[arg-type]
            else:
                self._wide[len(numbers)].append(((found, label, number, int(class_id)), numbers))
            if "," in line or ";" in line:
                place = f"{self._said(label)} line {number}: {line.strip()[:60]!r}"
                self.report.add("label_line_with_commas", place)
        return found

    def _place_wide(self) -> None:
        """Add the objects of lines with more numbers than a box to those of their image."""
        places = {label: place for place, label in enumerate({line[1] for line, _ in self._wide_lines()})}
        groups = {
            count: np.array([(places[label], class_id, *numbers) for (_, label, _, class_id), numbers in lines])
            for count, lines in self._wide.items()
        }
        meanings = self._meanings(groups)
        if None in meanings.values():  # the lines of other splits may tell
            meanings |= self._meanings(
                {**groups, **{n: np.array(rows) for n, rows in self._everywhere[1].items()}}
            )
        for count, lines in self._wide.items():
            meaning, rows = meanings[count], groups[count][:, 2:]
            corners = meaning.corners if meaning else count
            is_read = are_drawn(rows, corners) & (meaning is not None)
            with np.errstate(invalid="ignore"):  # infinities; repair leaves them out
                boxes = boxes_of(rows, *((meaning.corners, meaning.start) if meaning else (0,)))
            for (line, numbers), box, is_clear in zip(lines, boxes.tolist(), is_read.tolist(), strict=True):
                found, label, number, class_id = line
                place = f"{self._said(label)} line {number}"
                if meaning is None or not is_clear:
                    self._lose("label_line_unclear", label, f"{place}: {count} numbers after the class")
                    continue
                found.append((number, class_id, *box))
                if meaning.corners and self.polygons is not None:
                    self.polygons[label, number] = np.array(numbers[: meaning.corners]).reshape(-1, 2)
                if meaning.corners:
                    self.report.add("polygons_in_labels", place)
                if meaning.words:
                    self.report.add("extra_numbers", f"{place}: {meaning.words}")
        for found in {id(line[0]): line[0] for line, _ in self._wide_lines()}.values():
            found.sort()

    def _wide_lines(self) -> Iterator[tuple[WideLine, list[float]]]:
        return itertools.chain.from_iterable(self._wide.values())

    def _meanings(self, groups: Mapping[int, np.ndarray]) -> dict[int, Meaning | None]:
        """Decide what lines mean of which there are file, class and numbers, by their count."""
        rows, owners = ({n: lines[:, part] for n, lines in groups.items()} for part in (slice(2, None), slice(2)))
        return find_meanings(rows, self.keypoints, owners)

    def _lose(self, kind: str, label: str, place: str) -> None:
        self._lost.append((label, place))
        self.report.add(kind, place)

    def _refuse_most_lost(self, read: int) -> None:
        """Refuse a split of which most lines are not understood: it is not what it is taken for.

        Raises:
            AnnotationError: Fewer lines were read than not.
        """
        if len(self._lost) <= read:
            return
        label, place = self._lost[0]
        advice = describe_foreign(Path(label)) or (
            "expected class x y width height as shares of the image, or a polygon; for keypoints write kpt_shape: "
            "[number of keypoints, 2 or 3] into data.yaml; write turned boxes as their four corners"
        )
        lines = f"{len(self._lost)} of {len(self._lost) + read} lines"
        raise AnnotationError(f"{self.source}: {lines} of its labels cannot be understood: {place}; {advice}")

    def _classes(self) -> tuple[dict[int, str], dict[int, int]]:
        """Return the name of every class by its id, and the id of each number that labels of this split have."""
        content = self.content
        if content is not None and content.names:
            if content.count not in (None, len(content.names)):
                example = f"{content.path.name}: nc is {content.count}, names has {len(content.names)}"
                self.report.add("class_count_differs", example)
            names = dict(sorted(content.names.items()))
        elif self.files.names is not None:
            return self._named_classes(self.files.names)
        else:
            count = content.count if content is not None else None
            if not count:  # by the labels of every split, so that all agree on the classes
                count = max(self._everywhere[0], default=-1) + 1
            if count < 1:
                raise DataError(f"{self.source}: no label file holds an object, so there is nothing to detect")
            names = {number: f"class_{number}" for number in range(count)}
        return names, {number: number for number in names}

    def _named_classes(self, own: Path) -> tuple[dict[int, str], dict[int, int]]:
        """Return classes that files of the splits name, matched by name; each split has its own numbers."""
        files = self.files.class_files or (own,)
        first, *others = (read_names(path, lambda: self._everywhere[0], self.report) for path in files)
        names = dict(first)
        for other in others:
            new = [name for name in other.values() if name not in names.values()]
            names |= dict(enumerate(dict.fromkeys(new), start=max(names) + 1))
        if own == files[0]:
            return names, {number: number for number in first}
        ids = {name: number for number, name in reversed(names.items())}
        own_ids = {number: ids[name] for number, name in read_names(own, lambda: self._everywhere[0]).items()}
        moved = [number for number, class_id in own_ids.items() if number != class_id]
        if moved:
            where, first_file = (relative(path, self.root) for path in (own, files[0]))
            example = (
                f"{moved[0]} is {names[own_ids[moved[0]]]!r} in {where}, {names.get(moved[0])!r} in {first_file}"
            )
            self.report.add("class_order_differs", example)
        return names, own_ids

    def _class_ids(self, numbers: np.ndarray, names: Mapping[int, str], own_ids: Mapping[int, int]) -> np.ndarray:
        """Return the class id of each number in labels, which may count from 1; below 0 where there is none."""
        count, is_plain = len(own_ids), sorted(own_ids) == list(range(len(own_ids)))
        if len(numbers) and is_plain and numbers.min() >= 1 and numbers.max() <= count:
            used = self._everywhere[0]
            if (min(used), max(used)) == (1, count):
                example = f"0 is never used, {count} is, and there are {count} classes: 1 is {names[own_ids[0]]!r}"
                self.report.add("class_ids_from_1", example, count=len(numbers))
                numbers = numbers - 1
        if all(number == class_id for number, class_id in own_ids.items()):
            return numbers
        return np.array([own_ids.get(number, -1 - number) for number in numbers.tolist()], dtype=np.int64)

    @functools.cached_property
    def _everywhere(self) -> tuple[set[int], dict[int, list[list[float]]]]:
        """Class numbers in the labels of all splits; file, class and numbers of lines with more than a box has."""
        used: set[int] = set()
        wide: defaultdict[int, list[list[float]]] = defaultdict(list)
        for folder in self.files.label_folders or (self.root,):
            for place, name in enumerate(walk_files(folder, ".txt")):
                text = "" if name.rpartition("/")[2].lower() in NOT_LABELS else _read_label(str(folder / name))
                for _, line in object_lines(text) if isinstance(text, str) else ():
                    values = split_numbers(line)
                    if values is not None and len(values) > BOX_NUMBERS and _is_class(values[0]):
                        used.add(int(values[0]))
                        if len(values) > BOX_NUMBERS + 1:
                            wide[len(values) - 1].append([place, *values])
        return used, wide


def _is_class(number: float) -> bool:
    return math.isfinite(number) and number == int(number) and abs(number) < 2**31


def _read_label(path: str) -> str | AnnotationError:
    try:
        text = read_text(Path(path)) if path else ""
    except AnnotationError as error:
        return error
    if "\0" in text and not text.strip("\0\r\n\t "):
        return AnnotationError(f"{path}: holds only NUL bytes, as after a fault of the disk; restore it")
    return text
