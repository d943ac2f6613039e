"""Finding the annotation file and the image folder of a split in the layouts that people have."""

from __future__ import annotations

import dataclasses
import difflib
import json
import mmap
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from detrkit.config import DataConfig
from detrkit.data.coco_json import load_json
from detrkit.errors import DataError, UsageError

ROBOFLOW_FILE = "_annotations.coco.json"
SPLIT_ALIASES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "validate"),
    "test": ("test", "testing"),
}
IMAGE_FOLDERS = ("images", "JPEGImages", "imgs", "img", "data")
PROBED_NAMES = 20
"""How many listed file names are looked for to recognise the image folder; some may be missing."""

_SPLIT_FILE = re.compile(r"^(?:instances_)?([A-Za-z]+?)(?:20\d\d)?(?:[_-].*)?$")
_FILE_NAME = re.compile(rb'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")')
_SEARCH_DEPTH = 3

SplitCandidates = dict[str, list[Path]]


@dataclasses.dataclass(frozen=True)
class SplitFiles:
    """Where one split of a data set lies.

    Args:
        annotations: COCO JSON file.
        images: Folder that its file names are relative to.
        layout: Name of the layout, for printing.
        reason: Why this was chosen, in words.
    """

    annotations: Path
    images: Path
    layout: str
    reason: str


def find_split(root: str | Path | None, split: str, config: DataConfig | None = None) -> SplitFiles:
    """Find a split; paths in the config win over what lies in ``root``.

    Args:
        root: Folder of the data set; ``config.root`` if None.
        split: Its name, such as train, val or test; val and valid are the same.
        config: Whose ``train_*`` and ``val_*`` paths count for ``train_split`` and ``val_split``; relative
            paths are tried from ``root``, then from the working directory.

    Raises:
        UsageError: There is no such folder, or no such file as the config names.
        DataError: There is no such split or readable layout.
    """
    config = config or DataConfig()
    root = Path(root or config.root or ".")
    annotations, images = _configured(split, config)
    if annotations is not None:
        file = _existing(annotations, root, "annotation file")
        folder = _existing(images, root, "image folder") if images else find_image_folder(file, root)
        return SplitFiles(file, folder, "explicit", "named in the config")
    if not root.is_dir():
        raise UsageError(f"{root}: {_what_is_there(root)}")
    for layout, finder in LAYOUTS.items():
        files = finder(root).get(canonical_split(split))
        if files is not None:
            file = _only_one(files, root, split)
            folder = _existing(images, root, "image folder") if images else find_image_folder(file, root)
            return SplitFiles(file, folder, layout, f"{file.relative_to(root)} is {split} in {layout} layout")
    raise DataError(_nothing_found(root, split))


def list_splits(root: Path) -> dict[str, Path]:
    """Annotation file of every split found, by canonical name."""
    found: dict[str, Path] = {}
    for finder in LAYOUTS.values():
        found = {**{split: files[0] for split, files in finder(root).items()}, **found}
    return found


def canonical_split(name: str) -> str:
    """One spelling for a split: valid, validation and val are val."""
    lowered = name.lower()
    return next((split for split, aliases in SPLIT_ALIASES.items() if lowered in aliases), lowered)


def find_image_folder(annotations: Path, root: Path) -> Path:
    """The folder that the file names of an annotation file are relative to.

    Raises:
        AnnotationError: The file is not JSON.
        DataError: The first file names are in none of the likely folders.
    """
    names = _listed_names(annotations)
    candidates = list(dict.fromkeys(_image_folders(annotations, root)))
    hits = {folder: sum((folder / name).is_file() for name in names) for folder in candidates}
    # The training images may have the names of the validation images, and all of them where one of those is lost.
    own = [folder for folder in candidates if hits[folder] and not _is_of_another_split(folder, root, annotations)]
    best = max(own or candidates, key=lambda folder: hits[folder])  # the likeliest comes first and wins a tie
    if hits[best] or not names:  # a file without names is reported when it is read
        return best
    load_json(annotations)  # a damaged file is the first thing to say
    searched = ", ".join(str(folder) for folder in candidates if folder.is_dir())
    raise DataError(
        f"{annotations}: its images, for instance {names[0]!r}, are in none of {searched}; "
        "give a folder that holds both, or name this one: --set data.train_images=FOLDER (or data.val_images)"
    )


def _is_of_another_split(folder: Path, root: Path, annotations: Path) -> bool:
    """Whether a folder's name says that its images are of a split that the annotation file is not of."""
    split = canonical_split(_split_of(annotations) or "")
    if split not in SPLIT_ALIASES or not folder.is_relative_to(root):
        return False
    parts = (canonical_split(re.sub(r"20\d\d$", "", part)) for part in folder.relative_to(root).parts)
    return any(part in SPLIT_ALIASES and part != split for part in parts)


def _listed_names(annotations: Path) -> list[str]:
    """The first file names of a COCO JSON file, found without parsing what may be 500 MB."""
    if not annotations.stat().st_size:
        return []
    with annotations.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return [json.loads(match[1]) for match in islice(_FILE_NAME.finditer(content), PROBED_NAMES)]


def _image_folders(annotations: Path, root: Path) -> Iterator[Path]:
    """Likely image folders of an annotation file, the likeliest first."""
    here = annotations.parent
    split = canonical_split(_split_of(annotations) or "")
    stem = annotations.stem.removeprefix("instances_")
    for base in dict.fromkeys((here.parent if here != root else here, root, here)):
        for name in dict.fromkeys((stem, re.split("[_-]", stem)[0], *SPLIT_ALIASES.get(split, ()))):
            yield from (base / name, base / "images" / name, base / name / "images")
        yield from (base / folder for folder in IMAGE_FOLDERS)
    yield from (here, here.parent if here != root else here, root)
    yield from sorted(folder for folder in root.iterdir() if folder.is_dir())


def _find_coco_2017(root: Path) -> SplitCandidates:
    return _by_split(root, ["annotations/instances_*2017.json"])


def _find_roboflow(root: Path) -> SplitCandidates:
    return _by_split(root, [f"*/{ROBOFLOW_FILE}"])


def _find_plain(root: Path) -> SplitCandidates:
    folders = ("annotations/", "", "*/", "*/*/")
    names = [f"{name}.json" for aliases in SPLIT_ALIASES.values() for name in aliases]
    return _by_split(
        root,
        [f"{folder}instances_*.json" for folder in folders]
        + [f"{folder}{name}" for folder in folders[:3] for name in names],
    )


def _find_flat(root: Path) -> SplitCandidates:
    """A folder with images and one annotation file; the training split unless its name says otherwise."""
    file = root / ROBOFLOW_FILE
    if not file.is_file():
        return {}
    split = canonical_split(root.resolve().name)
    return {split if split in SPLIT_ALIASES else "train": [file]}


LAYOUTS: Mapping[str, Callable[[Path], SplitCandidates]] = {
    "COCO 2017": _find_coco_2017,
    "Roboflow COCO": _find_roboflow,
    "COCO JSON": _find_plain,
    "Roboflow COCO, one folder": _find_flat,
}
"""Every layout that is read, and how its splits are found; the first that has the split wins."""


def _by_split(root: Path, patterns: Sequence[str]) -> SplitCandidates:
    """Annotation files of each split by the first pattern that has any, shortest name first."""
    found: SplitCandidates = {}
    for pattern in patterns:
        matches: SplitCandidates = {}
        for file in sorted(root.glob(pattern), key=lambda file: (len(file.stem), file)):
            split = _split_of(file)
            if split is not None and file.is_file():
                matches.setdefault(canonical_split(split), []).append(file)
        found = {**matches, **found}
    return found


def _only_one(files: Sequence[Path], root: Path, split: str) -> Path:
    """The first file, unless another has as good a claim; instances_val goes before instances_val_boxes."""
    first = files[0]
    rivals = [file for file in files[1:] if file.parent != first.parent or len(file.stem) == len(first.stem)]
    if not rivals:
        return first
    names = ", ".join(str(file.relative_to(root)) for file in (first, *rivals))
    raise DataError(
        f"{root}: several annotation files could be {split!r}: {names}; name the folder of one data set, "
        "or the file: --set data.train_annotations=FILE (or data.val_annotations)"
    )


def _split_of(file: Path) -> str | None:
    if file.name == ROBOFLOW_FILE:
        return file.parent.name
    match = _SPLIT_FILE.match(file.stem)
    return match[1] if match else None


def _configured(split: str, config: DataConfig) -> tuple[str | None, str | None]:
    if canonical_split(split) == canonical_split(config.train_split):
        return config.train_annotations, config.train_images
    if canonical_split(split) == canonical_split(config.val_split):
        return config.val_annotations, config.val_images
    return None, None


def _existing(path: str, root: Path, what: str) -> Path:
    for candidate in (root / path, Path(path)):
        if candidate.exists():
            return candidate
    raise UsageError(
        f"{path}: there is no such {what}, neither in {root} nor in the working directory{_near(root / path)}"
    )


def _near(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    names = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=3)
    return f"; did you mean {' or '.join(names)}?" if names else ""


def _what_is_there(root: Path) -> str:
    if root.exists():
        return "is a file, expected the folder of a data set; name a single file with data.train_annotations"
    return f"there is no such folder{_near(root)}"


def _nothing_found(root: Path, split: str) -> str:
    splits = list_splits(root)
    if splits:
        names = ", ".join(f"{name} ({file.relative_to(root)})" for name, file in sorted(splits.items()))
        others = [name for name in sorted(splits, key=lambda name: (name == "train", name)) if name != split]
        key = "train_split" if canonical_split(split) == "train" else "val_split"
        advice = "check data.train_split and data.val_split"
        if others:
            advice = f"choose with --set data.{key}={others[0]}"
        if key == "val_split" and others == ["train"]:
            advice = f"split off a part, or {advice}, which measures on the training images"
        in_eval = f"; in eval, choose with --split {others[0]}" if others else ""
        return f"{root}: has no split {split!r}; it has {names}; {advice}{in_eval}"
    looked = (
        "annotations/instances_*.json, <split>/_annotations.coco.json, <split>.json and _annotations.coco.json"
    )
    return f"{root}: no COCO JSON found; looked for {looked}; {_other_format(root)}"


def _other_format(root: Path) -> str:
    within = ["*/" * depth for depth in range(_SEARCH_DEPTH)]
    if any(any(root.glob(f"{depth}{name}")) for depth in within for name in ("data.yaml", "labels/*.txt")):
        return "these are YOLO labels, which are not read yet: convert them to COCO JSON"
    if any(
        any(root.glob(f"{depth}{name}/*.xml"))
        for depth in within
        for name in ("Annotations", "annots", "annotations")
    ):
        return "these are Pascal VOC annotations, which are not read yet: convert them to COCO JSON"
    names = sorted(entry.name for entry in islice(root.iterdir(), 1000))
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    found = shown or "an empty folder"
    return f"found {found}; name the file: --set data.train_annotations=FILE, or --data FILE in eval"
