"""Finding and reading Pascal VOC: one XML file an image, with ``ImageSets`` or without.

``xmin`` to ``ymax`` are taken as they are: tools of today write corners in pixels from 0. (The original sets count
from 1 and include both ends, which is half a pixel of difference on either side.) Objects marked ``difficult`` are
read as crowd regions, since VOC's own protocol neither rewards nor punishes finding them.

Why not the readers of others, measured on the same files: both hotcoco 1.3 and supervision 0.31 take 1 from
``xmin`` and ``ymin``, and read all 364 files of BCCD as one set, since they do not know ``ImageSets``. hotcoco
takes image names from ``<filename>``, which may have no suffix; supervision decodes every image, ends at a
truncated one, and makes images without XML images without objects.

Shapes: I images, N annotations of all of them.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

import numpy as np

from detrkit.classes import SizeHW
from detrkit.data.faults import Findings
from detrkit.data.formats.base import (
    SplitCandidates,
    SplitFiles,
    canonical_split,
    child,
    described,
    holds,
    passed_over,
    read_text,
    relative,
    split_of_folder,
    subfolders,
    usable_size,
    walk_files,
)
from detrkit.data.formats.coco.read import json_number
from detrkit.data.formats.foreign import describe_foreign
from detrkit.data.table import AnnotationTable
from detrkit.errors import AnnotationError, DataError, UsageError, listed
from detrkit.files import IMAGE_SUFFIXES

ANNOTATION_FOLDERS = ("Annotations", "Annotation", "annots", "xml", "xmls", "labels")
VOC_IMAGE_FOLDERS = ("JPEGImages", "images", "image", "imgs", "img", "PNGImages", "pics", "data")
LABELS_FILE = "labels.txt"
_XML = ".xml"
_READ_STEMS = 50
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def find_voc(root: Path) -> SplitCandidates:
    """Find splits of a folder that holds Pascal VOC annotations."""
    found: dict[str, SplitFiles] = {}
    for split, files in _splits(root):
        found.setdefault(split, files)
    label_folders = tuple(dict.fromkeys(files.annotations for files in found.values()))
    names = root / LABELS_FILE if (root / LABELS_FILE).is_file() else None
    return {
        split: described(
            files.listings[0] if files.listings else files.annotations,
            dataclasses.replace(files, names=names, label_folders=label_folders),
        )
        for split, files in found.items()
    }


def voc_files(annotations: Path, images: Path | None) -> SplitFiles:
    """Describe XML files that a config names, with the images beside them or in the given folder.

    Raises:
        UsageError: The images are not given and not found.
    """
    folder = images or _images_of(annotations, annotations.parent)
    if folder is None:
        raise UsageError(
            f"{annotations}: its images are not found; name their folder: --set data.train_images=FOLDER"
        )
    reason = "named in the config"
    return SplitFiles(annotations, folder, "explicit", reason, "voc", label_folders=(annotations,))


def _splits(root: Path) -> Iterator[tuple[str, SplitFiles]]:
    """Yield every split, the plainest places first."""
    for xml_folder in _annotation_folders(root):
        images = _images_of(xml_folder, root)
        found = [] if images is None else list(_splits_of_folder(root, xml_folder, images))
        if found:
            yield from found
            return
    for folder in subfolders(root):
        split = split_of_folder(folder.name)
        if split is None:
            continue
        for xml_folder in (folder, *_annotation_folders(folder)):
            images = _images_of(xml_folder, folder)
            if images is not None and holds(xml_folder, ".xml"):
                yield split, _files(root, xml_folder, images)
    images = _images_of(root, root)
    if images is not None and holds(root, ".xml"):
        yield split_of_folder(root.resolve().name) or "train", _files(root, root, images)


def _splits_of_folder(root: Path, xml_folder: Path, images: Path) -> Iterator[tuple[str, SplitFiles]]:
    """Yield the splits of one folder of XML files: by lists, or by folders inside it, or all of it as train."""
    inner = [folder for folder in subfolders(xml_folder) if holds(folder, ".xml")]
    has_files = holds(xml_folder, ".xml")
    lists = list(_lists(root, xml_folder))  # may name files further down
    for path in lists:
        more = f", listed by {relative(path, root)}"
        yield canonical_split(path.stem), _files(root, xml_folder, images, more, (path,))
    if lists or not (inner or has_files):
        return
    named = [(split, folder) for folder in inner if (split := split_of_folder(folder.name)) is not None]
    for split, folder in named:
        yield split, _files(root, folder, child(images, folder.name) or images)
    if has_files or not named:
        yield "train", _files(root, xml_folder, images, "; no lists of splits, so all of it is train")


def _files(
    root: Path, xml_folder: Path, images: Path, more: str = "", listings: tuple[Path, ...] = ()
) -> SplitFiles:
    """Describe a split and say where its files lie, and ``more``."""
    where = "the folder itself" if xml_folder == root else relative(xml_folder, root)
    place = "beside them" if images == xml_folder else f"in {relative(images, root)}"
    reason = f"XML files in {where}, images {place}{more}"
    return SplitFiles(xml_folder, images, "Pascal VOC", reason, "voc", listings)


def _annotation_folders(root: Path) -> list[Path]:
    names = [name.lower() for name in ANNOTATION_FOLDERS]
    found = [folder for folder in subfolders(root) if folder.name.lower() in names]
    return sorted(found, key=lambda folder: names.index(folder.name.lower()))


def _images_of(annotations: Path, root: Path) -> Path | None:
    """Find the image folder of a folder of XML files: called so, or that folder itself, or the one above."""
    folder = child(root, *VOC_IMAGE_FOLDERS)
    if folder is not None:
        return folder
    return next((place for place in (annotations, root) if holds(place, *IMAGE_SUFFIXES)), None)


def _lists(root: Path, annotations: Path) -> Iterator[Path]:
    """Yield files that list the images of a split; those of one class, such as ``cat_train.txt``, are none."""
    sets = child(root, "ImageSets")
    main = child(sets, "Main") if sets is not None else None
    for folder in (main, sets, root):
        paths = [] if folder is None else sorted(folder.glob("*.txt"))
        known = ("train", "val", "test", "trainval")
        found = [path for path in paths if canonical_split(path.stem) in known and _lists_xml(path, annotations)]
        if found:
            yield from found
            return


def _lists_xml(path: Path, annotations: Path) -> bool:
    """Return whether the first lines of a file name XML files, with or without their suffix."""
    with path.open(encoding="utf-8", errors="replace") as file:
        stems = [stem_of_line(line) for line, _ in zip(file, range(_READ_STEMS), strict=False) if line.strip()]
    return any((annotations / f"{stem}{suffix}").is_file() for stem in stems for suffix in (_XML, _XML.upper()))


def stem_of_line(line: str) -> str:
    """Return the name of an XML file without suffix, from a line that may name an image or add a number."""
    words = line.split()
    if len(words) == 2 and words[1] in ("1", "0", "-1"):
        line = words[0]
    name = line.strip().replace("\\", "/")
    suffix = name[name.rfind(".") :].lower() if "." in name else ""
    return name[: -len(suffix)] if suffix == ".xml" or suffix in IMAGE_SUFFIXES else name


@dataclasses.dataclass(frozen=True)
class VocObject:
    """One object of an XML file; corners in pixels as written, NaN where there is no number.

    ``texts_with_commas`` has the numbers with a decimal comma; ``has_blanks``: blanks were taken from the name.
    """

    name: str
    corners: tuple[float, float, float, float]
    is_difficult: bool
    texts_with_commas: tuple[str, ...] = ()
    has_blanks: bool = False


@dataclasses.dataclass(frozen=True)
class VocFile:
    """One XML file. ``size_hw`` is 0, 0 where nothing usable is written."""

    file_name: str
    size_hw: SizeHW
    objects: tuple[VocObject, ...]


def load_voc_table(files: SplitFiles) -> AnnotationTable:
    """Read the XML files of a split.

    Raises:
        AnnotationError: The list of the split cannot be read.
        DataError: There is no XML file that can be read, or no object in any.
    """
    return _Reader(files).table()


def read_voc_file(path: Path, found: Findings | None = None) -> VocFile:
    """Parse an XML file; ``found`` takes up what is odd about its text.

    Raises:
        AnnotationError: It is no XML, or declares entities, which nothing needs and which can be made to fill the
            memory.
    """
    root = _parse_xml(path, found)
    if root.tag.lower() != "annotation" and root.find("object") is None:
        advice = describe_foreign(path) or "expected <annotation> with <object>"
        raise AnnotationError(f"{path}: begins with <{root.tag}>; {advice}")
    size = root.find("size")
    height, width = (_number(None if size is None else size.findtext(tag)) for tag in ("height", "width"))
    return VocFile(
        file_name=_plain(root.findtext("filename") or "").replace("\\", "/").rpartition("/")[2],
        size_hw=usable_size(height, width),
        objects=tuple(_objects(root)),
    )


class _Reader:
    def __init__(self, files: SplitFiles):
        self.files = files
        self.source = files.listings[0] if files.listings else files.annotations
        self.report = Findings(str(self.source))
        self.names = list(walk_files(files.images, *IMAGE_SUFFIXES))
        self.known = set(self.names)
        self.by_stem: defaultdict[str, list[str]] = defaultdict(list)
        self.parsed: dict[Path, VocFile] = {}
        self.by_last: defaultdict[str, list[str]] = defaultdict(list)
        for name in self.names:
            self.by_stem[name.rpartition(".")[0]].append(name)
            self.by_last[name.rpartition("/")[2].rpartition(".")[0]].append(name)

    def table(self) -> AnnotationTable:
        stems = self._stems()
        passed_over(self.files.annotations, _XML, self.report)
        parsed: list[tuple[str, str, VocFile]] = []
        first_error: AnnotationError | None = None
        used: set[str] = set()
        for stem, name in stems.items():
            path = self.files.annotations / name
            try:
                content = self.parsed[path] = read_voc_file(path, self.report)
            except AnnotationError as error:
                first_error = first_error or error
                used.update(self.by_stem.get(stem, ()))  # lost with its file
                self.report.add("label_file_unreadable", str(error).replace(str(path), name))
                continue
            parsed.append((self._image_of(stem, name, content), name, content))
        if not self.files.listings:
            used.update(name for name, _, _ in parsed)
            for name in self.names:
                if name not in used:
                    self.report.add("image_without_label_file", name)
        if not parsed:
            reason = f", for instance {first_error}" if first_error else ""
            raise DataError(f"{self.source}: no XML file in {self.files.annotations} can be read{reason}")
        parsed.sort(key=lambda entry: entry[0])
        return self._columns(parsed)

    def _columns(self, parsed: Sequence[tuple[str, str, VocFile]]) -> AnnotationTable:
        names = self._class_names()
        if not names:
            raise DataError(f"{self.source}: no XML file holds an object, so there is nothing to detect")
        ids = {name: number for number, name in enumerate(names, start=1)}
        image_ids = np.arange(1, len(parsed) + 1, dtype=np.int64)
        objects = [item for _, _, content in parsed for item in content.objects]
        counts = [len(content.objects) for _, _, content in parsed]
        corners = np.array([item.corners for item in objects], dtype=np.float64).reshape(-1, 4)
        difficult = np.array([item.is_difficult for item in objects], dtype=bool)
        for name, xml, content in parsed:
            for place, item in enumerate(content.objects, start=1):
                if item.texts_with_commas:
                    said = f"{xml} object {place}: {listed(item.texts_with_commas)}"
                    self.report.add("label_line_with_commas", said)
                if item.has_blanks:
                    self.report.add("class_name_spaces", f"{xml} object {place}: {item.name!r} with blanks")
            if any(item.is_difficult for item in content.objects):
                number = sum(item.is_difficult for item in content.objects)
                self.report.add("difficult_objects", f"{xml} ({name})", count=number)
        return AnnotationTable(
            source=self.source,
            image_ids=image_ids,
            file_names=[name for name, _, _ in parsed],
            sizes_hw=np.array([content.size_hw for _, _, content in parsed], dtype=np.int32).reshape(-1, 2),
            category_ids=list(ids.values()),
            category_names=names,
            annotation_ids=np.arange(1, len(objects) + 1, dtype=np.int64),
            image_refs=np.repeat(image_ids, counts),
            category_refs=np.array([ids.get(item.name, 0) for item in objects], dtype=np.int64),
            boxes_xywh=np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1),
            area=np.full(len(objects), np.nan),
            iscrowd=difficult,
            report=self.report.report(),
            label_files=[xml for _, xml, _ in parsed],
            places=np.array([place for count in counts for place in range(1, count + 1)], dtype=np.int64),
            unit="object",
        )

    def _stems(self) -> dict[str, str]:
        """XML files of the split by their names without suffix, relative to the folder of annotations."""
        found = {name[: -len(_XML)]: name for name in walk_files(self.files.annotations, _XML)}
        if not self.files.listings:
            return found
        lines = read_text(self.files.listings[0], "surrogateescape").splitlines()
        stems = {}
        for stem in dict.fromkeys(stem_of_line(line) for line in lines if line.strip()):
            if stem in found:
                stems[stem] = found[stem]
            else:
                self.report.add("image_without_label_file", f"{stem}: no {stem}.xml")
        return stems

    def _image_of(self, stem: str, xml: str, content: VocFile) -> str:
        """Return the image of an XML file: the one of its name, else the one that it names, there or anywhere."""
        written, last = content.file_name, stem.rpartition("/")[2]
        for candidates in (self.by_stem.get(stem), self.by_last.get(last)):
            if not candidates or (len(candidates) > 1 and candidates is not self.by_stem.get(stem)):
                continue
            own = next((name for name in candidates if name.rpartition("/")[2] == written), candidates[0])
            if written != own.rpartition("/")[2]:
                self.report.add("file_name_in_xml", f"{xml} says {written!r}, the image is {own}")
            return own
        folder = stem.rpartition("/")[0]
        beside = f"{folder}/{written}" if folder else written
        for name in (stem, beside, written):  # stem: a.jpg.xml
            if name in self.known:
                return name
        return beside or f"{stem}.jpg"  # reported as missing later

    def _class_names(self) -> list[str]:
        """Return classes in the order of ``labels.txt``, then others of every split by name: splits agree."""
        listed: list[str] = []
        if self.files.names is not None:
            lines = read_text(self.files.names).splitlines()
            listed = list(dict.fromkeys(" ".join(line.split()) for line in lines if line.strip()))
        found: set[str] = set()
        for folder in self.files.label_folders or (self.files.annotations,):
            for name in walk_files(folder, ".xml"):
                path = folder / name
                try:
                    content = self.parsed.get(path) or read_voc_file(path)
                except AnnotationError:
                    continue  # reported with its split
                found.update(item.name for item in content.objects)
        found.discard("")
        return listed + sorted(found - set(listed))


def _parse_xml(path: Path, found: Findings | None) -> Element:
    builder = TreeBuilder()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.EntityDeclHandler = _refuse_entities
    try:
        parser.Parse(read_text(path, found=found), True)  # as text, whatever encoding it declares
        root: Element = builder.close()
    except (expat.ExpatError, AssertionError, ValueError, LookupError) as error:
        raise AnnotationError(f"{path}: not valid XML: {error}") from error
    return root


def _refuse_entities(name: str, *_what: object) -> None:
    raise ValueError(f"it declares the entity {name!r}, which is refused")


def _objects(root: Element) -> Iterator[VocObject]:
    """Yield an object for each box, wherever a slip has put it, and for each ``<object>`` without one."""
    for element in root.iter():
        is_object = element.tag.lower() == "object"
        if is_object or (len(element) and element.tag != "part"):  # parts, such as people's heads, are no objects
            boxes: list[Element | None] = [*element.findall("bndbox")]
            yield from (_object(element, box) for box in boxes or [None] * is_object)


def _object(element: Element, box: Element | None) -> VocObject:
    texts = [(None if box is None else box.findtext(corner)) or "" for corner in _CORNERS]
    written = element.findtext("name") or ""
    name = " ".join(written.split())
    return VocObject(
        name=name,
        corners=tuple(map(_number, texts)),  # type: ignore[arg-type]
        is_difficult=_number(element.findtext("difficult")) == 1,
        texts_with_commas=tuple(text for text in texts if "," in text and math.isfinite(_number(text))),
        has_blanks=name != _plain(written),
    )


def _plain(text: str) -> str:
    """Return text without the line breaks and blanks of pretty-printing; blanks that somebody wrote stay."""
    return text.strip() if "\n" in text else text


def _number(text: str | None) -> float:
    text = text or ""
    try:
        return json_number(text) if "," in text else float(text)
    except ValueError:
        return math.nan
