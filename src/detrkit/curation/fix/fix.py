"""A repaired copy of a data set, in COCO layout, and a list of everything that differs from the original.

The original is never written to. What COCO JSON holds besides boxes is kept.

Shapes: I images, N annotations of all of them.
"""

from __future__ import annotations

import dataclasses
import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from detrkit.curation.check.findings import CheckResult
from detrkit.curation.check.images import IMAGE_SUFFIXES, is_mislabelled
from detrkit.curation.check.run import Checked, check_data
from detrkit.curation.check.source import SplitData
from detrkit.curation.check.splits import leaves
from detrkit.curation.fix.annotations import AnnotationRepair
from detrkit.curation.fix.changes import Change, write_changes
from detrkit.curation.fix.classes import KINDS_OF_CLASSES, united_classes
from detrkit.curation.fix.panoptic import fix_panoptic
from detrkit.data.formats.coco.read import load_json
from detrkit.data.formats.coco.write import write_coco_json
from detrkit.data.formats.output import RESERVED_SPLITS, inside_name, new_folder, place_image
from detrkit.errors import DataError

OF_LABEL_FILES = (
    "label_file_unreadable",
    "label_line_unreadable",
    "label_file_without_image",
    "class_count_differs",
    "reading_problem",
)
"""What reading left out already; COCO JSON has no place for it."""
BETWEEN_SPLITS = ("image_in_two_splits", "near_duplicate_in_two_splits")


@dataclasses.dataclass(frozen=True)
class FixResult:
    """A repaired copy.

    Args:
        out: Its folder.
        changes: Everything that differs from the original.
        after: What checking the copy found.
    """

    out: Path
    changes: tuple[Change, ...]
    after: CheckResult


def fix_data(
    checked: Checked,
    out: Path,
    *,
    copy: bool = False,
    images: bool = True,
    duplicates: bool = True,
    queries: int = 100,
    workers: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> FixResult:
    """Write a repaired copy and check it.

    Args:
        checked: Of :func:`detrkit.curation.check.examine`.
        out: New or empty folder.
        copy: Copy the images instead of linking them.
        images: As in :func:`detrkit.curation.check.check_data`, like the rest; for checking the copy.
        duplicates: As above.
        queries: As above.
        workers: As above.
        progress: Told the step, how many images are done and how many there are.

    Raises:
        UsageError: ``out`` is not empty.
        DataError: No split can be read.
    """
    if not checked.splits:
        found = "\n".join(checked.result.lines())
        raise DataError(f"{checked.result.data}: nothing can be read of it, so nothing can be repaired:\n{found}")
    changes: list[Change] = []
    for finding in checked.result.findings:
        if finding.kind == "annotations_unreadable":
            changes += [Change(place.split, finding.kind, "the split") for place in finding.places]
        elif finding.kind in OF_LABEL_FILES:
            words = "; ".join(finding.examples) + ("; ..." if finding.count > len(finding.examples) else "")
            changes.append(Change(", ".join(finding.splits), finding.kind, f"{finding.count} times: {words}"))
    with new_folder(Path(out)) as folder:
        _write_splits(checked, folder, copy, changes, progress)
        for files in checked.panoptic:
            fix_panoptic(files, folder, copy, changes)
        write_changes(folder, checked.result.data, changes)
    after = check_data(
        out, images=images, duplicates=duplicates, queries=queries, workers=workers, progress=progress
    )
    return FixResult(Path(out), tuple(changes), after)


def _write_splits(
    checked: Checked,
    folder: Path,
    copy: bool,
    changes: list[Change],
    progress: Callable[[str, int, int], None] | None,
) -> None:
    splits = checked.splits
    contents = {split.name: _content(split) for split in splits}
    categories = {name: content["categories"] for name, content in contents.items()}
    new_ids: dict[str, list[int]] = {split.name: list(split.table.category_ids) for split in splits}
    if any(checked.result.count(kind) for kind in KINDS_OF_CLASSES):
        united, new_ids = united_classes(splits, categories, changes)
        categories = {split.name: united for split in splits}
    leaving = _leaving(checked)
    names = _split_names(splits)
    total = sum(len(split.table.image_ids) for split in splits)
    done = written = 0
    for split in splits:
        repair = _ImageRepair(split, contents[split.name]["images"], leaving.get(split.name, {}), changes)
        entries, target = repair.entries()
        if not entries:
            changes.append(Change(split.name, "annotations_unreadable", "the split: no image is left"))
            continue
        annotations = AnnotationRepair(
            split, checked.masks.get(split.name), contents[split.name]["annotations"], changes
        ).entries(target, new_ids[split.name], entries)
        content = {
            **contents[split.name],
            "images": list(entries.values()),
            "annotations": annotations,
            "categories": categories[split.name],
        }
        (folder / names[split.name]).mkdir()
        for row, entry in entries.items():
            source = split.files.images / str(split.resolved[row])
            place_image(source, folder / names[split.name] / entry["file_name"], copy=copy)
            done += 1
            if progress is not None:
                progress("writing", done, total)
        write_coco_json(folder / "annotations" / f"instances_{names[split.name]}.json", content)
        written += 1
    if not written:
        raise DataError(f"{checked.result.data}: none of its images can be used, so nothing can be repaired")


def _leaving(checked: Checked) -> dict[str, dict[int, str]]:
    """Images of each split that another split keeps, and the kind of finding; never all images of a split."""
    leaving: dict[str, dict[int, str]] = {}
    for finding in checked.result.findings:
        if finding.kind in BETWEEN_SPLITS:
            for group in finding.groups:
                for place in leaves(group):
                    leaving.setdefault(place.split, {}).setdefault(place.image, finding.kind)
    for split in checked.splits:
        if len(leaving.get(split.name, {})) == len(split.table.image_ids):
            del leaving[split.name]
    return leaving


def _content(split: SplitData) -> dict[str, Any]:
    """The entries of a split, one for each row of its table; those of COCO JSON with all that they hold."""
    table = split.table
    if split.files.format == "coco":
        content = dict(load_json(table.source))
        for key, count in (("images", len(table.image_ids)), ("annotations", len(table.annotation_ids))):
            if len(content[key]) != count:
                raise DataError(f"{table.source}: was changed while it was checked; run the check again")
        return content
    images = [{"id": number} for number in table.image_ids.tolist()]
    annotations = [{"id": number} for number in table.annotation_ids.tolist()]
    categories = [
        {"id": category_id, "name": name}
        for category_id, name in zip(table.category_ids, table.category_names, strict=True)
    ]
    return {"images": images, "annotations": annotations, "categories": categories}


def _split_names(splits: Sequence[SplitData]) -> dict[str, str]:
    """Names that folders of COCO layout may have."""
    names: dict[str, str] = {}
    for split in splits:
        name = re.sub("[^A-Za-z]", "", split.name) or "part"
        if name.lower() in RESERVED_SPLITS:
            name = "train"
        while name in names.values():
            name += "x"
        names[split.name] = name
    return names


class _ImageRepair:
    """The image entries of a split as they should be."""

    def __init__(
        self, split: SplitData, raw: Sequence[Mapping[str, Any]], leaving: Mapping[int, str], changes: list[Change]
    ):
        self.split, self.raw, self.leaving, self.changes = split, raw, leaving, changes

    def entries(self) -> tuple[dict[int, dict[str, Any]], dict[int, int]]:
        """Image entries by row, and the row that each row's annotations go to; rows left out are in neither."""
        split, table = self.split, self.split.table
        entries: dict[int, dict[str, Any]] = {}
        target: dict[int, int] = {}
        row_of_name: dict[str, int] = {}
        ids = table.image_ids.tolist()
        orphans = set(table.image_refs[split.image_rows < 0].tolist())
        used: set[int] = set()
        free = max([0, *ids, *orphans]) + 1
        for row, image_id in enumerate(ids):
            fault = self._fault(row)
            if fault:
                self._change(row, fault)
                continue
            name = self._name(row)
            first = row_of_name.get(name)
            if first is not None and split.resolved[first] == split.resolved[row]:
                self._change(row, "image_listed_twice")
                target[row] = first
                continue
            name = _free_name(name, row_of_name)
            row_of_name[name] = row
            new_id = image_id
            if image_id in used:
                number = _number_of(name)
                new_id = number if number in orphans and number not in used else free
                free += new_id == free
                self._change(row, "duplicate_image_ids", "id", image_id, new_id)
            used.add(new_id)
            target[row] = row
            entries[row] = self._entry(row, name, new_id)
        return entries, target

    def _fault(self, row: int) -> str:
        split = self.split
        if split.resolved[row] is None:
            name = split.table.file_names[row]
            link = "escaping_file_name" if (split.files.images / name).exists() else "missing_image"
            return self._name_fault(name) or link
        facts = split.facts[row]
        if facts is not None and facts.fault:
            return facts.fault
        return self.leaving.get(row, "")

    def _name_fault(self, name: str) -> str:
        if posixpath.isabs(name) or re.match(r"^[A-Za-z]:[\\/]|^\\\\", name):
            return "absolute_file_name"
        return "escaping_file_name" if posixpath.normpath(name).startswith("..") else ""

    def _name(self, row: int) -> str:
        split = self.split
        name = inside_name(str(split.resolved[row]))
        facts = split.facts[row]
        if facts is not None and is_mislabelled(name, facts):
            suffix = IMAGE_SUFFIXES.get(facts.format, (posixpath.splitext(name)[1],))[0]
            return posixpath.splitext(name)[0] + suffix
        return name

    def _entry(self, row: int, name: str, image_id: int) -> dict[str, Any]:
        split, table, facts = self.split, self.split.table, self.split.facts[row]
        listed = table.file_names[row]
        entry = {**self.raw[row], "id": image_id, "file_name": name}
        if name != posixpath.normpath(listed):
            mislabelled = facts is not None and is_mislabelled(str(split.resolved[row]), facts)
            kind = "image_mislabelled" if mislabelled else self._name_fault(listed)
            cased = name.casefold() == listed.casefold()
            self._change(row, kind or ("file_name_case" if cased else "missing_image"), "file_name", listed, name)
        height, width = table.sizes_hw[row].tolist()
        if facts is not None and facts.upright_hw != (height, width) and all(facts.upright_hw):
            kind = "size_mismatch"
            if not (height and width):
                kind = "missing_size"
            elif (height, width) == facts.stored_hw:
                kind = "exif_rotated_size"
            self._change(row, kind, "height and width", [height, width], list(facts.upright_hw))
            height, width = facts.upright_hw
        entry["height"], entry["width"] = height, width
        if not isinstance(self.raw[row].get("id"), int):
            self._change(row, "id_is_text", "id", self.raw[row].get("id"), image_id)
        return entry

    def _change(self, row: int, kind: str, field: str = "", before: Any = None, after: Any = None) -> None:
        what = f"image {self.split.table.image_ids[row]} {self.split.table.file_names[row]}"
        self.changes.append(Change(self.split.name, kind, what, field, before, after))


def _free_name(name: str, taken: Mapping[str, int]) -> str:
    stem, suffix = posixpath.splitext(name)
    number = 1
    while name in taken:
        number += 1
        name = f"{stem}-{number}{suffix}"
    return name


def _number_of(name: str) -> int | None:
    """The number that a file name is, as in COCO."""
    stem = posixpath.splitext(posixpath.basename(name))[0]
    return int(stem) if stem.isdecimal() and len(stem) < 19 else None
