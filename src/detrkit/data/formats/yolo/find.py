"""YOLO sets: ``data.yaml``, ``images/`` beside ``labels/``, lists of images, labels beside the images."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

from detrkit.data.formats.base import (
    SPLIT_ALIASES,
    SplitCandidates,
    SplitFiles,
    canonical_split,
    child,
    described,
    holds,
    is_kind,
    relative,
    split_of_folder,
    subfolders,
    walk_files,
)
from detrkit.data.formats.yolo.data_yaml import DataYaml, find_data_yaml, locate_split, read_data_yaml
from detrkit.data.formats.yolo.lines import BOX_NUMBERS, object_lines, split_numbers
from detrkit.errors import DataError, UsageError
from detrkit.files import IMAGE_SUFFIXES

NAMES_FILES = ("classes.txt", "obj.names", "_darknet.labels", "labels.txt", "classes.names", "names.txt")
NOT_LABELS = frozenset((*NAMES_FILES, "readme.txt", "licence.txt", "license.txt"))
_PROBED_LABELS = 200
_NO_NAMES = ", no class names"


def find_yolo(root: Path) -> SplitCandidates:
    """Find splits of a folder with a ``data.yaml``, named in it or beside it."""
    path = find_data_yaml(root)
    return {} if path is None else yaml_splits(path)


def yaml_splits(path: Path) -> SplitCandidates:
    """Find splits of a ``data.yaml``; those that it does not name are looked for beside it.

    Raises:
        AnnotationError: It cannot be read.
        DataError: What it names lies outside its folder, or nothing of it is there.
    """
    content = read_data_yaml(path)
    root = path.parent
    found = _in_folders(root, content)
    for split in content.splits:
        listings, reason = locate_split(content, split, root)
        if listings:
            found[split] = path, _files(root, listings, "YOLO", reason, content)
    if not found and content.splits:
        named = ", ".join(f"{content.keys[split]}: {' '.join(paths)}" for split, paths in content.splits.items())
        raise DataError(
            f"{path}: names {named}; none of it is in {root}; correct the paths, relative to that folder"
        )
    return _with_all_classes(found, root)


def find_yolo_folders(root: Path) -> SplitCandidates:
    """Find splits of a folder whose places and names alone say that it holds YOLO labels."""
    return _with_all_classes(_in_folders(root, None), root)


def _in_folders(root: Path, content: DataYaml | None) -> dict[str, tuple[Path, SplitFiles]]:
    found: dict[str, tuple[Path, SplitFiles]] = {}
    for split, evidence, listings, reason in _folder_splits(root):
        if split not in found:
            found[split] = evidence, _files(root, listings, "YOLO folders", reason, content)
    return found


def _with_all_classes(found: Mapping[str, tuple[Path, SplitFiles]], root: Path) -> SplitCandidates:
    """Tell every split the files that name the classes of the others, that of train first."""
    of_splits = [found[split][1].names for split in sorted(found, key=lambda split: (split != "train", split))]
    every = tuple(dict.fromkeys(path for path in of_splits if path is not None))
    candidates = {}
    for split, (evidence, files) in found.items():
        if files.names is None and every:
            reason = f"{files.reason.removesuffix(_NO_NAMES)}, class names in {relative(every[0], root)}"
            files = dataclasses.replace(files, names=every[0], reason=reason, label_folders=())
        candidates[split] = described(evidence, dataclasses.replace(files, class_files=every))
    return candidates


def folder_files(labels: Path, images: Path | None) -> SplitFiles:
    """Describe labels that a config names, with the images beside them or in the given folder.

    Raises:
        UsageError: The images are not given and not found.
    """
    root = labels.parent
    folder = images or mirror(labels, root, "labels", "images") or (labels if _has_labels_beside(labels) else None)
    if folder is None:
        raise UsageError(f"{labels}: its images are not found; name their folder: --set data.train_images=FOLDER")
    return SplitFiles(
        annotations=labels,
        images=folder,
        layout="explicit",
        reason="named in the config",
        format="yolo",
        listings=(folder,),
        names=_names_file(root, [labels]),
        label_folders=(labels,),
    )


def mirror(path: Path, root: Path, old: str, new: str) -> Path | None:
    """Find the folder at the same place under ``new`` as ``path`` is under ``old``; None if there is none."""
    parts = path.parts
    for place in range(len(parts) - 1, -1, -1):
        if parts[place].lower() == old:
            candidate = Path(*parts[:place], new, *parts[place + 1 :])
            if candidate.is_dir():
                return candidate
    return None


def _folder_splits(root: Path) -> Iterator[tuple[str, Path, list[Path], str]]:
    """Split, evidence, listings and reason of every split, the plainest places first."""
    images, labels = child(root, "images", "imgs", "img", "JPEGImages"), child(root, "labels")
    if images is not None and labels is not None and _has_labels(labels):
        named = [folder for folder in subfolders(images) if (labels / folder.name).is_dir()]
        for folder in named:
            split = split_of_folder(folder.name) or folder.name
            where = f"{relative(folder, root)} with {relative(labels / folder.name, root)}"
            yield split, labels / folder.name, [folder], where
    yield from _listed_splits(root)
    if images is not None and labels is not None and not named_splits(images) and _has_labels(labels):
        split = split_of_folder(root.resolve().name) or "train"
        yield split, labels, [images], f"{images.name} with {labels.name}"
    for folder in subfolders(root):
        split_name = split_of_folder(folder.name)
        inner, inner_labels = child(folder, "images", "imgs"), child(folder, "labels")
        if split_name is None:
            continue
        if inner is not None and inner_labels is not None:
            where = f"{relative(inner, root)} with {relative(inner_labels, root)}"
            yield split_name, inner_labels, [inner], where
        elif _has_labels_beside(folder):
            yield split_name, folder, [folder], f"{folder.name} holds images with .txt files of the same names"
    if _has_labels_beside(root):
        split = split_of_folder(root.resolve().name) or "train"
        yield split, root, [root], "images with .txt files of the same names"


def named_splits(images: Path) -> list[Path]:
    """List the folders inside an image folder that are called after splits."""
    return [folder for folder in subfolders(images) if split_of_folder(folder.name)]


def _listed_splits(root: Path) -> Iterator[tuple[str, Path, list[Path], str]]:
    for folder in (root, root / "data", root / "ImageSets"):
        for alias in (name for aliases in SPLIT_ALIASES.values() for name in aliases):
            path = folder / f"{alias}.txt"
            if path.is_file() and _lists_images(path):
                yield canonical_split(alias), path, [path], f"{relative(path, root)} lists images"


def _files(root: Path, listings: list[Path], layout: str, reason: str, content: DataYaml | None) -> SplitFiles:
    names = None if content is not None and content.names else _names_file(root, listings)
    single = len(listings) == 1 and listings[0].is_dir()
    if content is None or not content.names:
        reason += f", class names in {relative(names, root)}" if names else _NO_NAMES
    return SplitFiles(
        annotations=content.path if content is not None else root,
        images=listings[0] if single else root,
        layout=layout,
        reason=reason,
        format="yolo",
        listings=tuple(listings),
        names=names,
        label_folders=() if names or (content is not None and content.names) else (root,),
    )


def _names_file(root: Path, listings: list[Path]) -> Path | None:
    places = [mirror(listing, root, "images", "labels") or listing for listing in listings if listing.is_dir()]
    places += [root, root / "labels", root / "data"]  # behind LabelImg's, which lies with the labels of a split
    for listing in listings:
        inside = [folder for folder in (listing, *listing.parents) if folder.is_relative_to(root)]
        places += inside + [folder / "labels" for folder in inside]
    for folder in dict.fromkeys(places):
        for name in NAMES_FILES:
            if (folder / name).is_file():
                return folder / name
    return None


def _has_labels(labels: Path) -> bool:
    """Return whether a folder holds files that could be labels: text, and no XML."""
    names = walk_files(labels, ".txt")
    return any(
        Path(name).name.lower() not in NOT_LABELS for name, _ in zip(names, range(_PROBED_LABELS), strict=False)
    )


def _has_labels_beside(folder: Path) -> bool:
    """Return whether a folder holds an image and a file of labels of the same name."""
    if not holds(folder, ".txt") or not holds(folder, *IMAGE_SUFFIXES):
        return False
    names = {entry.name for entry in folder.iterdir()}
    stems = {name.rpartition(".")[0] for name in names if is_kind(name, IMAGE_SUFFIXES)}
    labels = sorted(name for name in names if is_kind(name, (".txt",)) and name[:-4] in stems)
    return any(_is_label_file(folder / name) for name in labels[:_PROBED_LABELS])


def _is_label_file(path: Path) -> bool:
    with path.open("rb") as file:
        lines = object_lines(file.read(4096).decode("utf-8", "replace"))
    return bool(lines) and len(split_numbers(lines[0][1]) or ()) > BOX_NUMBERS


def _lists_images(path: Path) -> bool:
    with path.open("rb") as file:
        first = file.read(4096).decode("utf-8", "replace").strip().split("\n")[0].strip()
    return is_kind(Path(first.replace("\\", "/")).name, IMAGE_SUFFIXES)
