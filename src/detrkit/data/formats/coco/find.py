"""Finding COCO JSON files and the image folders that they are about."""

from __future__ import annotations

import codecs
import functools
import json
import mmap
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from detrkit.data.formats.base import (
    IMAGE_FOLDERS,
    PANOPTIC_FILE,
    SPLIT_ALIASES,
    ImagesNotFoundError,
    SplitCandidate,
    SplitCandidates,
    SplitFiles,
    canonical_split,
    holds,
    read_text,
    relative,
    split_of_folder,
    subfolders,
)
from detrkit.data.formats.coco.read import load_json
from detrkit.data.index import leads_out
from detrkit.data.names import find_names
from detrkit.errors import DataError
from detrkit.files import IMAGE_SUFFIXES

ROBOFLOW_FILE = "_annotations.coco.json"
PROBED_NAMES = 20
"""How many listed file names are looked for to recognise the image folder; some may be missing."""

_SPLIT_FILE = re.compile(r"^(?:instances_)?([A-Za-z]+?)(?:20\d\d)?(?:[_-].*)?$")
_NAMES = [re.compile(rb'"%s"\s*:\s*("(?:[^"\\]|\\.)*")' % key) for key in (b"file_name", b"coco_url")]
"""File names, and the addresses that LVIS has in their place."""
_SPLIT_NAMES = [f"{name}.json" for aliases in SPLIT_ALIASES.values() for name in aliases]

FilesBySplit = dict[str, list[Path]]

LAYOUTS: Mapping[str, Sequence[str]] = {
    "COCO 2017": ["annotations/instances_*2017.json"],
    "Roboflow COCO": [f"*/{ROBOFLOW_FILE}"],
    "COCO JSON": [
        "annotations/instances_*.json",
        "instances_*.json",
        *(f"annotations/{name}" for name in _SPLIT_NAMES),
        *_SPLIT_NAMES,
    ],
}
"""Files of every layout of COCO JSON; the first layout, and in it the first pattern, that has a split wins."""
ELSEWHERE = ["*/instances_*.json", "*/*/instances_*.json", *(f"*/{name}" for name in _SPLIT_NAMES)]


def find_coco(root: Path) -> SplitCandidates:
    """Find splits in the places where COCO, Roboflow and most tools put their JSON files."""
    found: SplitCandidates = {}
    for layout, patterns in LAYOUTS.items():
        found = {**_candidates(_by_split(root, patterns), layout, root), **found}
    # A folder with images and one annotation file, of train unless the name of the folder says otherwise.
    if (root / ROBOFLOW_FILE).is_file():
        split = split_of_folder(root.resolve().name) or "train"
        flat = {split: [root / ROBOFLOW_FILE]}
        found = {**_candidates(flat, "Roboflow COCO, one folder", root), **found}
    return found


def find_coco_elsewhere(root: Path) -> SplitCandidates:
    """Find splits in COCO JSON files in other folders of the data set."""
    return _candidates(_by_split(root, ELSEWHERE), "COCO JSON", root)


def find_coco_by_content(root: Path) -> SplitCandidates:
    """Find splits in JSON files of any name that hold COCO's three lists; train where no name says otherwise.

    Raises:
        DataError: Several files could be the same split.
    """
    found: FilesBySplit = {}
    for folder in (root, root / "annotations", *subfolders(root)):
        for file in sorted(folder.glob("*.json")):
            if file.is_file() and _holds_coco(file) and not PANOPTIC_FILE.match(file.stem):
                words = (*re.split("[^A-Za-z]+|20[0-9][0-9]", file.stem), folder.name if folder != root else "")
                split = next((split for word in words if (split := split_of_folder(word))), "train")
                if file not in found.setdefault(split, []):
                    found[split].append(file)
    for split, files in found.items():
        if len(files) > 1:
            raise DataError(_several(files, root, split))
    return _candidates(found, "COCO JSON", root)


def coco_files(file: Path, root: Path, layout: str, reason: str, images: Path | None = None) -> SplitFiles:
    """Describe a COCO JSON file and its image folder, found if it is not given."""
    return SplitFiles(file, find_image_folder(file, root, images), layout, reason)


def split_of_json(file: Path) -> str | None:
    """Return the split that a JSON file is of, by its name; None if that does not say."""
    if file.name == ROBOFLOW_FILE:
        return file.parent.name
    match = PANOPTIC_FILE.match(file.stem) or _SPLIT_FILE.match(file.stem)
    return match[1] if match else None


def find_image_folder(annotations: Path, root: Path, given: Path | None = None) -> Path:
    """Find the folder that the file names of an annotation file are relative to.

    Args:
        annotations: COCO JSON file.
        root: Folder of the data set.
        given: Folder that a person named: it is the one, or one for each split lies in it.

    Raises:
        AnnotationError: The file is not JSON.
        DataError: The first file names are in none of the likely folders.
    """
    names = _listed_names(annotations)
    candidates = list(dict.fromkeys(_image_folders(annotations, given or root)))
    if given is not None:
        candidates = [given, *(folder for folder in candidates if given in folder.parents)]
    hits = {
        folder: sum(not leads_out(name) and (folder / name).is_file() for name in names) for folder in candidates
    }
    example = repr(names[0]) if names else ""
    if not any(hits.values()):  # names that are all wrong by one rule
        whole = (root, annotations.parent)  # of a whole data set: pictures of other splits lie in it
        for folder in filter(Path.is_dir, candidates):
            is_whole = folder in whole
            found = find_names(names, folder, elsewhere=not is_whole or holds(folder, *IMAGE_SUFFIXES))
            hits[folder] = sum(file is not None and not (is_whole and "/" in file) for file in found.files)
            example = next((found.words(row, names[row]) for row in found.unclear), example)
    # The training images may have the names of the validation images, and all of them where one of those is lost.
    own = [folder for folder in candidates if hits[folder] and not _is_of_another_split(folder, root, annotations)]
    best = max(own or candidates, key=lambda folder: hits[folder])  # the likeliest comes first and wins a tie
    if hits[best] or not names or given is not None:  # a file without names is reported when it is read
        return best
    load_json(annotations)  # a damaged file is the first thing to say
    searched = ", ".join(str(folder) for folder in candidates if folder.is_dir())
    error = ImagesNotFoundError(
        f"{annotations}: its images, for instance {example}, are in none of {searched}; "
        "give a folder that holds both, or name the one with the images: --image-folder DIR (in train: "
        "--set data.train_images=DIR --set data.val_images=DIR)"
    )
    error.annotations = annotations
    raise error


def _is_of_another_split(folder: Path, root: Path, annotations: Path) -> bool:
    """Return whether a folder's name says that its images are of a split that the annotation file is not of."""
    split = canonical_split(split_of_json(annotations) or "")
    if split not in SPLIT_ALIASES or not folder.is_relative_to(root):
        return False
    parts = (split_of_folder(part) for part in folder.relative_to(root).parts)
    return any(part is not None and part != split for part in parts)


def _listed_names(annotations: Path) -> list[str]:
    """Return the first file names of a COCO JSON file, found without parsing what may be 500 MB."""
    if not annotations.stat().st_size:
        return []
    skipped = ".png" if PANOPTIC_FILE.match(annotations.stem) else None  # its annotations name PNG files
    with annotations.open("rb") as file:
        is_wide = file.read(2) in (
            codecs.BOM_UTF16_LE,
            codecs.BOM_UTF16_BE,
        )  # UTF-32 begins like it, or with zeros
    if is_wide:
        return _first_names(read_text(annotations).encode(), skipped)
    with annotations.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return _first_names(content, skipped)


def _first_names(content: mmap.mmap | bytes, skipped: str | None) -> list[str]:
    by_name, by_address = ((_text(match[1]) for match in key.finditer(content)) for key in _NAMES)
    names = (name for name in by_name if skipped is None or not name.endswith(skipped))
    found = list(islice(names, PROBED_NAMES))
    return found or [name.rpartition("/")[2] for name in islice(by_address, PROBED_NAMES)]


def _text(written: bytes) -> str:
    """Return a JSON string, or about what one says that is damaged; reading the file tells of it."""
    try:
        return str(json.loads(written))
    except ValueError:
        return written.decode("utf-8", "replace").strip('"')


def _image_folders(annotations: Path, root: Path) -> Iterator[Path]:
    """Yield likely image folders of an annotation file, the likeliest first."""
    here = annotations.parent
    split = canonical_split(split_of_json(annotations) or "")
    stem = annotations.stem.removeprefix("instances_").removeprefix("panoptic_")
    for base in dict.fromkeys((here.parent if here != root else here, root, here)):
        for name in dict.fromkeys((stem, re.split("[_-]", stem)[0], *SPLIT_ALIASES.get(split, ()))):
            yield from (base / name, base / "images" / name, base / name / "images")
        yield from (base / folder for folder in IMAGE_FOLDERS)
    yield from (here, here.parent if here != root else here, root)
    yield from sorted(folder for folder in root.iterdir() if folder.is_dir())


def _candidates(candidates: FilesBySplit, layout: str, root: Path) -> SplitCandidates:
    def files(split: str, images: Path | None) -> SplitFiles:
        file = _only_one(candidates[split], root, split)
        return coco_files(file, root, layout, f"{relative(file, root)} is {split} in {layout} layout", images)

    return {
        split: SplitCandidate(found[0], functools.partial(files, split)) for split, found in candidates.items()
    }


def _by_split(root: Path, patterns: Sequence[str]) -> FilesBySplit:
    """Find the annotation files of each split by the first pattern that has any, shortest name first."""
    found: FilesBySplit = {}
    for pattern in patterns:
        matches: FilesBySplit = {}
        for file in sorted(root.glob(pattern), key=lambda file: (len(file.stem), file)):
            split = split_of_json(file)
            if split is not None and file.is_file():
                matches.setdefault(canonical_split(split), []).append(file)
        found = {**matches, **found}
    return found


def _only_one(files: Sequence[Path], root: Path, split: str) -> Path:
    """Return the first file, unless another has as good a claim; instances_val goes before instances_val_boxes."""
    first = files[0]
    rivals = [file for file in files[1:] if file.parent != first.parent or len(file.stem) == len(first.stem)]
    if not rivals:
        return first
    raise DataError(_several((first, *rivals), root, split))


def _several(files: Sequence[Path], root: Path, split: str) -> str:
    names = ", ".join(str(file.relative_to(root)) for file in files)
    return (
        f"{root}: several annotation files could be {split!r}: {names}; name the folder of one data set, "
        "or the file: --set data.train_annotations=FILE (or data.val_annotations)"
    )


def _holds_coco(file: Path) -> bool:
    """Return whether a JSON file has COCO's three lists, found without parsing it."""
    if not file.stat().st_size:
        return False
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return all(
            re.search(rb'"%s"\s*:\s*\[' % key, content) for key in (b"images", b"annotations", b"categories")
        )
