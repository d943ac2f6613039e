"""Finding the splits of a data set in the layouts that people have, and saying which layout it is and why."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

from detrkit.config import DataConfig, Layout
from detrkit.data.formats.base import (
    COMBINED_SPLITS,
    SplitCandidate,
    SplitCandidates,
    SplitFiles,
    canonical_split,
    holds,
    relative,
    subfolders,
)
from detrkit.data.formats.coco.find import coco_files, find_coco_by_content, split_of_json
from detrkit.data.formats.foreign import describe_foreign, find_foreign
from detrkit.data.formats.panoptic import panoptic_files, segments_folder
from detrkit.data.formats.table import FORMATS
from detrkit.data.formats.voc.read import voc_files
from detrkit.data.formats.yolo.find import folder_files, yaml_splits
from detrkit.errors import DataError, UsageError, listed

_YAML = (".yaml", ".yml")
_SEARCH_DEPTH = 2


def find_split(
    root: str | Path | None, split: str, config: DataConfig | None = None, *, stuff: bool = False
) -> SplitFiles:
    """Find a split; paths in the config win over what lies in ``root``.

    Args:
        root: Folder of the data set, its data.yaml, or one COCO JSON file; ``config.root`` if None.
        split: Its name, such as train, val or test; val and valid are the same.
        config: Whose ``train_*`` and ``val_*`` paths count for ``train_split`` and ``val_split``; relative
            paths are tried from ``root``, then from the working directory. Its ``layout`` forces one.
        stuff: Take COCO panoptic before any other layout.

    Raises:
        UsageError: There is no such folder, or no such file as the config names.
        DataError: There is no such split or readable layout.
    """
    config = config or DataConfig()
    root = Path(root or config.root or ".")
    annotations, images = _configured(split, config)
    if annotations is not None:
        return _explicit(annotations, images, split, root, config.layout)
    candidates, others = _candidates(root, config.layout, stuff)
    if canonical_split(split) not in candidates:
        raise DataError(_no_split(root, split, candidates, _asked_by(others, "--set data.layout=")))
    folder = _existing(images, root, "image folder") if images is not None else None
    files = candidates[canonical_split(split)].files(folder)
    return _with_others(files, _asked_by(others, "--set data.layout="))


def find_splits(
    data: str | Path,
    layout: Layout = "auto",
    wanted: Sequence[str] | None = None,
    image_folder: Path | None = None,
) -> dict[str, SplitFiles]:
    """Find the splits of a data set, by canonical name, train first.

    Lists that repeat other splits, such as VOC's trainval, are left out where those are there and nobody asks.

    Args:
        data: Folder of the data set, its data.yaml, or one COCO JSON file.
        layout: Layout to take it for; auto: by what lies there.
        wanted: Names of splits, in this order; all if there are none.
        image_folder: Folder of the images, or of a folder of images for each split, where they lie elsewhere.

    Raises:
        UsageError: There is no such folder or file, or no such split.
        DataError: No split is found.
    """
    candidates, others = _candidates(Path(data), layout)
    names = sorted(candidates, key=lambda name: (name != "train", name != "val", name))
    kept = [name for name in names if not any(part in candidates for part in COMBINED_SPLITS.get(name, ()))]
    if wanted:
        kept = list(dict.fromkeys(map(canonical_split, wanted)))
        unknown = [name for name in kept if name not in candidates]
        if unknown:
            raise UsageError(f"{data} has no split {unknown[0]!r}; it has {', '.join(names)}")
    advice = _asked_by(others, "--layout ")
    folder = _existing(str(image_folder), Path(data), "image folder") if image_folder is not None else None
    return {name: _with_others(candidates[name].files(folder), advice) for name in kept}


def list_splits(root: Path, layout: Layout = "auto") -> dict[str, Path]:
    """Return the file or folder that shows each split, by canonical name; empty if there is none."""
    try:
        candidates, _ = _candidates(root, layout)
    except DataError:
        return {}
    return {split: candidate.evidence for split, candidate in candidates.items()}


def _candidates(data: Path, layout: Layout, stuff: bool = False) -> tuple[SplitCandidates, dict[str, str]]:
    """Find the splits of a data set by the first way of looking that finds any, and what else is there by format.

    Raises:
        UsageError: There is no such folder or file.
        DataError: Nothing is found, or several data sets are.
    """
    if data.is_file() and data.suffix.lower() == ".json":
        return _json_candidates(data, layout), {}
    if data.is_file() and data.suffix.lower() in _YAML:
        return yaml_splits(data), {}
    if not data.is_dir():
        raise UsageError(f"{data}: {_what_is_there(data)}")
    found = _search(data, layout, stuff)
    if not found:
        found = _search_inside(data, layout, stuff)
    if not found:
        raise DataError(_nothing_found(data, layout))
    (first, candidates), *rest = found
    if layout == "coco":  # JSON files in other folders complete those in the standard places
        candidates = {split: candidate for _, more in reversed(found) for split, candidate in more.items()}
    others = {
        name: f"{FORMATS[name].title} ({relative(_first(more).evidence, data)})"
        for name, more in reversed(rest)
        if name not in (first, "panoptic")
    }
    return candidates, others


def _asked_by(others: Mapping[str, str], option: str) -> list[str]:
    """Say how each of the data sets that are not used can be asked for."""
    return [f"{what}: {option}{name}" for name, what in others.items()]


def _first(candidates: SplitCandidates) -> SplitCandidate:
    return candidates.get("train") or next(iter(candidates.values()))


def _search(root: Path, layout: Layout, stuff: bool) -> list[tuple[str, SplitCandidates]]:
    """Return what each way of looking finds, with the name of its format, in the order of the table of formats."""
    asked = [name for name in FORMATS if layout in ("auto", name)]
    finders = sorted((place, name) for name in asked for place in FORMATS[name].find)
    finders.sort(key=lambda finder: stuff and finder[1] != "panoptic")
    found: list[tuple[str, SplitCandidates]] = []
    for place, name in finders:
        find = FORMATS[name].find[place]
        if found and find is find_coco_by_content:  # reads files of up to 500 MB
            continue
        try:
            candidates = find(root)
        except DataError:
            if found:  # it is only mentioned beside the layout that is used
                continue
            raise
        if candidates:
            found.append((name, candidates))
    return found


def _search_inside(root: Path, layout: Layout, stuff: bool) -> list[tuple[str, SplitCandidates]]:
    """Find the one data set in a folder inside ``root``, as archives are often packed.

    Raises:
        DataError: There are several.
    """
    folders = [root]
    for _ in range(_SEARCH_DEPTH):
        folders = [inner for folder in folders for inner in subfolders(folder)]
        found = {folder: candidates for folder in folders if (candidates := _search(folder, layout, stuff))}
        if len(found) > 1:
            names = ", ".join(
                f"{relative(folder, root)} ({FORMATS[first].title})" for folder, ((first, _), *_) in found.items()
            )
            raise DataError(f"{root}: holds several data sets: {names}; give the folder of one")
        if found:
            return next(iter(found.values()))
    return []


def _json_candidates(path: Path, layout: Layout) -> SplitCandidates:
    split = canonical_split(split_of_json(path) or "all")
    root = path.parent.parent if path.parent.name == "annotations" else path.parent
    if _is_panoptic(path, layout):
        return {split: SplitCandidate(path, lambda images: panoptic_files(path, root, images))}
    return {split: SplitCandidate(path, lambda images: coco_files(path, root, "COCO JSON", "named", images))}


def _is_panoptic(path: Path, layout: Layout) -> bool:
    by_name = path.name.startswith("panoptic_") and segments_folder(path) is not None
    return layout == "panoptic" or (layout == "auto" and by_name)


def _explicit(annotations: str, images: str | None, split: str, root: Path, layout: Layout) -> SplitFiles:
    """Describe what a config names: a JSON file, a data.yaml, or a folder of label files."""
    path = _existing(annotations, root, "annotation file or folder")
    folder = _existing(images, root, "image folder") if images else None
    if path.suffix.lower() in _YAML:
        found = yaml_splits(path)
        if canonical_split(split) not in found:
            raise DataError(_no_split(path, split, found, []))
        return found[canonical_split(split)].files(folder)
    if path.is_dir():
        return voc_files(path, folder) if holds(path, ".xml") else folder_files(path, folder)
    inside = root if root.is_dir() else root.parent
    if _is_panoptic(path, layout):
        return panoptic_files(path, inside, folder)
    return coco_files(path, inside, "explicit", "named in the config", folder)


def _with_others(files: SplitFiles, others: Sequence[str]) -> SplitFiles:
    if not others:
        return files
    return dataclasses.replace(files, reason=f"{files.reason}; not used: {', '.join(others)}")


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
        expected = "expected the folder of a data set, a COCO JSON file or a data.yaml"
        return f"is a file, {expected}" + "".join(f"; {said}" for said in [describe_foreign(root)] if said)
    return f"there is no such folder{_near(root)}"


def _no_split(root: Path, split: str, candidates: SplitCandidates, others: Sequence[str]) -> str:
    evidence: Mapping[str, Path] = {name: candidate.evidence for name, candidate in candidates.items()}
    names = ", ".join(f"{name} ({relative(path, root)})" for name, path in sorted(evidence.items()))
    rivals = [name for name in sorted(evidence, key=lambda name: (name == "train", name)) if name != split]
    key = "train_split" if canonical_split(split) == "train" else "val_split"
    advice = f"choose with --set data.{key}={rivals[0]}"
    if key == "val_split" and rivals == ["train"]:
        part = f"split off a part: detrkit data split {root} --out NEW"
        advice = f"{part}; or {advice}, which measures on the training images"
    elsewhere = f"; also there: {', '.join(others)}" if others else ""
    in_eval = f"; in eval, choose with --split {rivals[0]}"
    return f"{root}: has no split {split!r}; it has {names}; {advice}{in_eval}{elsewhere}"


def _nothing_found(root: Path, layout: Layout) -> str:
    kinds = [format_.looked_for for name, format_ in FORMATS.items() if layout in ("auto", name)]
    names = sorted(entry.name for entry in islice(os.scandir(root), 1000))
    advice = "give the JSON file or data.yaml itself, or in train --set data.train_annotations=FILE"
    return (
        f"{root}: no data set found; looked for {'; '.join(kinds)}; "
        f"found {listed(names) or 'an empty folder'}; {find_foreign(root) or advice}"
    )
