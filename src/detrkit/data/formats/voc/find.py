"""Pascal VOC: one XML file an image, with ``ImageSets`` or without."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from detrkit.data.formats.base import (
    SplitCandidates,
    SplitFiles,
    canonical_split,
    child,
    described,
    holds,
    relative,
    split_of_folder,
    subfolders,
)
from detrkit.errors import UsageError
from detrkit.files import IMAGE_SUFFIXES

ANNOTATION_FOLDERS = ("Annotations", "Annotation", "annots", "xml", "xmls", "labels")
VOC_IMAGE_FOLDERS = ("JPEGImages", "images", "image", "imgs", "img", "PNGImages", "pics", "data")
LABELS_FILE = "labels.txt"
_READ_STEMS = 50


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
    if not inner and not has_files:
        return
    lists = list(_lists(root, xml_folder))
    for path in lists:
        more = f", listed by {relative(path, root)}"
        yield canonical_split(path.stem), _files(root, xml_folder, images, more, (path,))
    if lists:
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
    return any((annotations / f"{stem}.xml").is_file() for stem in stems)


def stem_of_line(line: str) -> str:
    """Return the name of an XML file without suffix, from a line that may name an image or add a number."""
    words = line.split()
    if len(words) == 2 and words[1] in ("1", "0", "-1"):
        line = words[0]
    name = line.strip().replace("\\", "/")
    suffix = name[name.rfind(".") :].lower() if "." in name else ""
    return name[: -len(suffix)] if suffix == ".xml" or suffix in IMAGE_SUFFIXES else name
