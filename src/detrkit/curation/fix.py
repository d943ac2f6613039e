"""A repaired copy of a data set: what reading for training makes of it, in COCO layout, and what was lost.

The check puts right what it is sure of (file names, box formats, classes); :mod:`detrkit.data.repair` does the
rest, as for training. The original is never written to. What COCO JSON holds besides boxes is kept.

Shapes: I images, N annotations of all of them.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detrkit.curation.check.boxes import ROUNDING, first_alike
from detrkit.curation.check.classes import spelling_key
from detrkit.curation.check.images import is_mislabelled
from detrkit.curation.check.result import CheckResult
from detrkit.curation.check.run import Checked, check_data
from detrkit.curation.check.source import SplitData
from detrkit.curation.check.splits import leaves
from detrkit.data.coco import fit_boxes
from detrkit.data.exif import turned_boxes
from detrkit.data.faults import Ledger, ReadReport
from detrkit.data.formats.coco.read import load_json
from detrkit.data.formats.coco.write import coco_content, merge_annotation, unique_ids, write_coco_json
from detrkit.data.formats.output import RESERVED_SPLITS, inside_name, new_folder, place_images
from detrkit.data.repair import build_index
from detrkit.data.table import AnnotationTable, positions_of
from detrkit.errors import DataError
from detrkit.files import SUFFIXES_BY_FORMAT, read_facts
from detrkit.visual.text import printable

Progress = Callable[[str, int, int], None]
Classes = Mapping[str, Sequence[tuple[int, str]]]
"""For each split the id and name that each of its category rows has in the copy."""

SCHEMA_VERSION = 2
"""Of ``changes.json``; raised when a key changes its meaning or goes."""
_KINDS = read_facts(__file__)


@dataclasses.dataclass(frozen=True)
class Loss:
    """What the copy has not of one split.

    Args:
        split: Name of the split.
        what: Things that were counted, such as images, objects or masks.
        lost: How many are not in the copy.
        total: How many the original has.
    """

    split: str
    what: str
    lost: int
    total: int

    def __str__(self) -> str:
        return f"{self.split}: {self.lost:,} of {self.total:,} {self.what} are not in the copy"


@dataclasses.dataclass(frozen=True)
class FixResult:
    """A repaired copy.

    Args:
        out: Its folder.
        repaired: Number of faults of the original by kind that the copy has no more.
        losses: Things that the copy has not.
        ledgers: Account of each split's images and objects, by its name.
        unfit: Reasons why the copy is not fit for training, in words.
        after: Result of checking the copy.
    """

    out: Path
    repaired: Mapping[str, int]
    losses: tuple[Loss, ...]
    ledgers: Mapping[str, Ledger]
    unfit: tuple[str, ...]
    after: CheckResult

    @property
    def is_clean(self) -> bool:
        """Whether the copy has neither errors nor warnings, and most of the original."""
        return self.after.is_clean and not self.unfit


def fix_data(checked: Checked, out: Path, *, copy: bool = False, progress: Progress | None = None) -> FixResult:
    """Write a repaired copy and check it as the original was.

    Args:
        checked: Result of :func:`detrkit.curation.check.examine`.
        out: New or empty folder.
        copy: Whether to copy the images instead of linking them.
        progress: Function told the step, how many images are done and how many there are.

    Raises:
        UsageError: ``out`` is not empty.
        DataError: No split can be read, or no image can be used.
    """
    result = checked.result
    if not checked.splits:
        found = "\n".join(result.lines())
        raise DataError(f"{result.data}: nothing can be read of it, so nothing can be repaired:\n{found}")
    with new_folder(Path(out)) as folder:
        writer = _Writer(checked, folder, copy, progress)
        writer.write()
        repaired = {finding.kind: finding.count for finding in result.findings if finding.fault.fix}
        unfit = tuple(writer.unfit())
        _write_changes(folder, result, writer, unfit)
    after = check_data(out, dataclasses.replace(checked.options, layout="auto", image_folder=None), progress)
    return FixResult(Path(out), repaired, tuple(writer.losses), writer.ledgers, unfit, after)


class _Writer:
    """Writes the splits one after the other, and counts what of them is lost."""

    def __init__(self, checked: Checked, folder: Path, copy: bool, progress: Progress | None):
        self.checked, self.folder, self.copy, self.progress = checked, folder, copy, progress
        self.losses: list[Loss] = []
        self.ledgers: dict[str, Ledger] = {}
        self.done, self.total = 0, sum(len(split.table.image_ids) for split in checked.splits)

    def write(self) -> None:
        """Write every split that has an image left."""
        checked = self.checked
        classes = _united_classes(checked)
        leaving = _leaving(checked)
        names: list[str] = []
        for split in checked.splits:
            images = _kept_images(split, leaving.get(split.name, set()))
            if (images >= 0).any():
                names.append(_split_name(split.name, names))
                self._write_split(split, images, classes[split.name], self.folder / names[-1])
            else:
                nothing = np.zeros(0, dtype=np.int64)
                self._account(split, images, nothing, nothing, classes[split.name])
        if not names:
            raise DataError(f"{checked.result.data}: none of its images can be used, so nothing can be repaired")
        for finding in checked.result.findings:
            if finding.kind in _KINDS["not_read"]:
                for name, count in finding.counts.items():
                    self._lose(name, _KINDS["not_read"][finding.kind], count, count)
        for files in checked.panoptic:
            self._lose(files.name, "panoptic masks", len(files.content["annotations"]))

    def unfit(self) -> list[str]:
        """Return the reasons why the copy is not fit for training."""
        reasons = [
            f"{name} cannot be read"
            for finding in self.checked.result.findings
            if finding.kind == "annotations_unreadable"
            for name in finding.splits
        ]
        return reasons + [
            f"{name}: {reason}" for name, ledger in self.ledgers.items() for reason in ledger.losses()
        ]

    def _write_split(
        self, split: SplitData, images: np.ndarray, classes: Sequence[tuple[int, str]], folder: Path
    ) -> None:
        table, with_mask = self._corrected_table(split, images, classes)
        index, _ = build_index(table, split.files.images)
        # images, under the names that fit their content
        folder.mkdir()
        renames = _new_names(split, np.flatnonzero(images == np.arange(len(images))))

        def count() -> None:
            self.done += 1
            if self.progress is not None:
                self.progress("writing", self.done, self.total)

        names = place_images(
            index, split.files.images, folder, copy=self.copy, rename=renames.__getitem__, progress=count
        )
        # annotations, whose ids in the index are their rows in the original
        content = coco_content(index, names)
        rows = index.annotation_ids
        if split.files.format == "coco":
            content = _merged(content, split, rows, with_mask)
        ids = unique_ids(split.table.annotation_ids[rows]).tolist()
        for entry, annotation_id in zip(content["annotations"], ids, strict=True):
            entry["id"] = split.table.annotation_id_texts.get(annotation_id, annotation_id)
        write_coco_json(self.folder / "annotations" / f"instances_{folder.name}.json", content)
        # what is lost
        self._account(split, images, table.annotation_ids, rows, classes)
        masks = self.checked.masks.get(split.name)
        if masks is not None:
            had = np.isfinite(masks.area) | (masks.polygon_fault != "")
            had[list(masks.fault)] = True
            had[self._rows_of(split, "duplicate_boxes")] = False
            self._lose(split.name, "masks", int(had.sum() - with_mask[rows].sum()), int(had.sum()))

    def _account(
        self,
        split: SplitData,
        images: np.ndarray,
        given: np.ndarray,
        written: np.ndarray,
        classes: Sequence[tuple[int, str]],
    ) -> None:
        """Account for every image and object of a split, those included that reading could not put into its table.

        Args:
            split: Split as checked.
            images: Row of the image that each image's annotations went to, -1 if it was left out, int ``[I]``.
            given: Annotation rows that were to be written, int64.
            written: Annotation rows that the copy has, int64.
            classes: New id and name of each category row.
        """
        table, is_own = split.table, images == np.arange(len(images))
        # images without an entry of their own, by the fault that a finding places there
        faults = self._kinds_of_images(split.name)
        why_image = [
            "image_listed_twice" if to >= 0 else faults.get(row, "duplicate_image_ids")
            for row, to in enumerate(images.tolist())
        ]
        lost_images = Counter(why_image[row] for row in np.flatnonzero(~is_own).tolist())
        # objects, each by the first fault that takes it away
        why_object = np.full(len(split.image_rows), "duplicate_boxes", dtype=object)
        faulty_box = ~np.isfinite(split.repaired_xywh).all(axis=1)
        faulty_box[self._rows_of(split, "duplicate_boxes")] = False
        why_object[np.setdiff1d(given, written)] = "box_outside"
        is_placed = split.image_rows >= 0
        gone = is_placed.copy()
        gone[is_placed] = images[split.image_rows[is_placed]] < 0
        why_object[gone] = [why_image[row] for row in split.image_rows[gone].tolist()]
        why_object[faulty_box] = np.where(split.box_fault == "", "box_outside", split.box_fault)[faulty_box]
        why_object[split.class_rows < 0] = "unknown_category_id"
        why_object[~is_placed] = "unknown_image_id"
        why_objects = Counter(np.delete(why_object, written).tolist())
        # what reading could not put into the table
        for finding in table.report.findings:
            why_objects[finding.kind] += finding.objects
            lost_images[finding.kind] += finding.count if finding.fault.loses == "image" else 0
        names = [classes[row][1] for row in split.class_rows.tolist() if row >= 0]
        left = Counter(classes[row][1] for row in split.class_rows[written].tolist())
        ledger = self.ledgers[split.name] = Ledger(
            objects_found=table.objects_found,
            objects_read=len(written),
            objects_left_out=dict(+why_objects),
            images_found=table.images_found,
            images_read=int(is_own.sum()),
            images_left_out=dict(+lost_images),
            classes={name: (count, left[name]) for name, count in Counter(names).items()},
            id_shift=table.id_shift(),
        )
        lost, total = ledger.images_found - ledger.images_read, ledger.images_found
        self._lose(split.name, "images", lost, total)
        self._lose(split.name, "objects", ledger.objects_lost, ledger.objects_read + ledger.objects_lost)

    def _kinds_of_images(self, split: str) -> dict[int, str]:
        """Return the fault by which each image of a split may be left out."""
        found = {finding.kind: finding for finding in self.checked.result.findings}
        kinds = [found[kind] for kind in reversed(_KINDS["lose_images"]) if kind in found]
        return {at.image: one.kind for one in kinds for at in one.locations if at.split == split}

    def _lose(self, split: str, what: str, lost: int, total: int | None = None) -> None:
        if lost > 0:
            self.losses.append(Loss(split, what, lost, lost if total is None else total))

    def _rows_of(self, split: SplitData, *kinds: str) -> np.ndarray:
        """Return the annotation rows of a split that some kinds of faults concern, int64."""
        found = (finding for finding in self.checked.result.findings if finding.kind in kinds)
        places = (place for finding in found for place in finding.locations if place.split == split.name)
        return np.array(sorted({place.annotation for place in places if place.annotation >= 0}), dtype=np.int64)

    def _corrected_table(
        self, split: SplitData, images: np.ndarray, classes: Sequence[tuple[int, str]]
    ) -> tuple[AnnotationTable, np.ndarray]:
        """Put right what the check is sure of; the rest is for reading to repair.

        Args:
            split: Split as checked.
            images: Row of the image that each image's annotations go to, -1 if it is left out, int ``[I]``.
            classes: New id and name of each category row.

        Returns:
            The table, whose annotation ids are rows of the original, and which annotations keep a mask, ``[N]``.
        """
        masks = self.checked.masks.get(split.name)
        table, boxes = split.table, split.repaired_xywh.copy()
        area = table.area.copy()
        has_mask = np.zeros(len(boxes), dtype=bool) if masks is None else np.isfinite(masks.area)
        sizes_hw = _fit_to_files(split, boxes, area, has_mask)
        # masks that say something else than their box, areas that do not fit either
        has_mask[self._rows_of(split, *_KINDS["of_masks"])] = False
        is_wrong = np.abs(split.repaired_xywh - table.boxes_xywh).max(axis=1, initial=0) > ROUNDING
        is_wrong[self._rows_of(split, "area_wrong", "area_zero", "mask_area_mismatch")] = True
        area[is_wrong] = np.nan
        if masks is not None:
            area[is_wrong & has_mask] = masks.area[is_wrong & has_mask]
        # annotations that stay: with an image, a class and a box, each once
        image_rows = np.where(split.image_rows >= 0, images[split.image_rows], -1)
        new_ids = np.array([number for number, _ in classes], dtype=np.int64)
        rows = np.flatnonzero((image_rows >= 0) & (split.class_rows >= 0) & np.isfinite(boxes).all(axis=1))
        category_refs = new_ids[split.class_rows[rows]]
        is_first = first_alike(image_rows[rows], boxes[rows], category_refs) == np.arange(len(rows))
        stays = is_first | table.iscrowd[rows]
        rows, category_refs = rows[stays], category_refs[stays]
        kept = np.flatnonzero(images == np.arange(len(images)))
        by_id = dict(classes)
        corrected = AnnotationTable(
            source=table.source,
            image_ids=table.image_ids[kept],
            file_names=[str(split.resolved[row]) for row in kept],
            sizes_hw=sizes_hw[kept],
            category_ids=list(by_id),
            category_names=list(by_id.values()),
            annotation_ids=rows,
            image_refs=table.image_ids[image_rows[rows]],
            category_refs=category_refs,
            boxes_xywh=boxes[rows],
            area=area[rows],
            iscrowd=table.iscrowd[rows],
            report=ReadReport(str(table.source)),
            image_id_texts=table.image_id_texts,
            category_id_texts=_category_texts(self.checked.splits, by_id),
        )
        return corrected, has_mask


def _fit_to_files(split: SplitData, boxes: np.ndarray, area: np.ndarray, has_mask: np.ndarray) -> np.ndarray:
    """Fit boxes and areas, in place, to the files as training does; return the sizes of these, ``[I, 2]``."""
    sizes_hw, order = split.table.sizes_hw.copy(), np.argsort(split.image_rows, kind="stable")
    for row, facts in enumerate(split.facts):
        size_hw = facts.upright_hw if facts is not None else (0, 0)
        listed_hw = (int(sizes_hw[row, 0]), int(sizes_hw[row, 1]))
        if facts is None or not all(size_hw) or (size_hw == listed_hw and not split.is_turned[row]):
            continue
        sizes_hw[row] = size_hw
        start, stop = np.searchsorted(split.image_rows, (row, row + 1), sorter=order)
        mine = order[start:stop]
        if split.is_turned[row]:
            header = np.tile(facts.stored_hw, (len(mine), 1)), np.full(len(mine), facts.orientation)
            boxes[mine] = turned_boxes(boxes[mine], *header)
            has_mask[mine] = False
        elif all(listed_hw):
            corners = np.concatenate([boxes[mine, :2], boxes[mine, :2] + boxes[mine, 2:]], axis=1)
            corners, area[mine] = fit_boxes(corners, area[mine], listed_hw, size_hw)
            boxes[mine] = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
            has_mask[mine] = False
    return sizes_hw


def _kept_images(split: SplitData, leaving: set[int]) -> np.ndarray:
    """Return the row that each image's annotations go to: its own, that of the same file, -1 if it is left out.

    Nobody can tell which of two images of one id an annotation belongs to, so both are left out.
    """
    target = np.full(len(split.resolved), -1, dtype=np.int64)
    first_of_file: dict[str, int] = {}
    ids, names = split.table.image_ids, np.array(split.resolved, dtype=object)
    first = positions_of(ids, ids)
    ambiguous = np.unique(first[names != names[first]])
    is_ambiguous = np.isin(first, ambiguous)
    for row, name in enumerate(split.resolved):
        if name is not None and not split.has_faulty_file(row) and row not in leaving and not is_ambiguous[row]:
            target[row] = first_of_file.setdefault(name, row)
    return target


def _leaving(checked: Checked) -> dict[str, set[int]]:
    """Return the images of each split that another split keeps; never all images of a split."""
    leaving: dict[str, set[int]] = {}
    for finding in checked.result.findings:
        if finding.kind in ("image_in_two_splits", "near_duplicate_in_two_splits"):
            for group in finding.groups:
                for place in leaves(group):
                    leaving.setdefault(place.split, set()).add(place.image)
    sizes = {split.name: len(split.table.image_ids) for split in checked.splits}
    return {name: rows for name, rows in leaving.items() if len(rows) < sizes[name]}


def _united_classes(checked: Checked) -> Classes:
    """Return one list of classes for all splits, every name and id once; those of the splits where all is well."""
    tables = {split.name: split.table for split in checked.splits}
    listed_in = {
        name: list(zip(one.category_ids, one.category_names, strict=True)) for name, one in tables.items()
    }
    if not any(checked.result.count(kind) for kind in _KINDS["of_classes"]):
        return listed_in
    # the spelling that is used most, the first of equals
    totals = sum((split.class_counts() for split in checked.splits), Counter[str]())
    names = [name for pairs in listed_in.values() for _, name in pairs]
    by_use = sorted(dict.fromkeys(names), key=lambda name: -totals[name])
    spelling = {spelling_key(name): name.strip() for name in reversed(by_use)}
    # the id that the first split gives it, where that is free
    ids: dict[str, int] = {}
    reserved = {number for pairs in listed_in.values() for number, _ in pairs}
    united: dict[str, list[tuple[int, str]]] = {}
    for split, pairs in listed_in.items():
        united[split] = []
        for number, listed_name in pairs:
            name = spelling[spelling_key(listed_name)] or f"class_{number}"
            if name not in ids:
                is_free = number not in ids.values()
                ids[name] = number if is_free else max(reserved | set(ids.values())) + 1
            united[split].append((ids[name], name))
    everything = [(number, name) for name, number in ids.items()]
    # rows of a split's own categories come first, so that its annotations find theirs
    return {
        split: [*pairs, *(pair for pair in everything if pair not in pairs)] for split, pairs in united.items()
    }


def _category_texts(splits: Sequence[SplitData], names: Mapping[int, str]) -> dict[int, str]:
    """Return the text of each category id that still stands for the class that it stood for."""
    return {
        number: one.table.category_id_texts[number]
        for one in splits
        for number, name in zip(one.table.category_ids, one.table.category_names, strict=True)
        if names.get(number) == name and number in one.table.category_id_texts
    }


def _merged(content: dict[str, Any], split: SplitData, rows: np.ndarray, with_mask: np.ndarray) -> dict[str, Any]:
    """Add to the entries of a split what the COCO JSON file that they were read from holds besides."""
    table, original = split.table, load_json(split.table.source)
    counts = len(original["images"]), len(original["annotations"])
    if counts != (len(table.image_ids), len(table.annotation_ids)):
        raise DataError(f"{table.source}: was changed while it was checked; run the check again")
    merged = {key: value for key, value in original.items() if key not in content}
    written = [table.image_id_texts.get(number, number) for number in table.image_ids.tolist()]
    image_of = dict(reversed([*zip(written, original["images"], strict=True)]))
    merged["images"] = [{**image_of[entry["id"]], **entry} for entry in content["images"]]
    merged["annotations"] = []
    for entry, row in zip(content["annotations"], rows.tolist(), strict=True):
        entry = merge_annotation(entry, original["annotations"][row])
        if entry.get("segmentation") and not with_mask[row]:
            entry["segmentation"] = []
        merged["annotations"].append(entry)
    named = {spelling_key(str(entry.get("name"))): entry for entry in reversed(original["categories"])}
    categories = content["categories"]
    merged["categories"] = [{**named.get(spelling_key(entry["name"]), {}), **entry} for entry in categories]
    return merged


def _new_names(split: SplitData, rows: np.ndarray) -> dict[str, str]:
    """Return the name of each image file in the copy: with the extension of its content, each once."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for row in rows.tolist():
        name, facts = str(split.resolved[row]), split.facts[row]
        stem, suffix = posixpath.splitext(inside_name(name))
        if facts is not None and is_mislabelled(name, facts):
            suffix = SUFFIXES_BY_FORMAT.get(facts.format, (suffix,))[0]
        endings = itertools.chain([suffix], (f"-{number}{suffix}" for number in itertools.count(2)))
        names[name] = next(stem + ending for ending in endings if stem + ending not in taken)
        taken.add(names[name])
    return names


def _split_name(name: str, taken: Sequence[str]) -> str:
    """Return a name that a folder of COCO layout may have."""
    letters = re.sub("[^A-Za-z]", "", name) or "part"
    letters = "train" if letters.lower() in RESERVED_SPLITS else letters
    while letters in taken:
        letters += "x"
    return letters


def _write_changes(folder: Path, result: CheckResult, writer: _Writer, unfit: Sequence[str]) -> None:
    """Write what was repaired and lost: ``changes.json`` for programs, ``changes.txt`` for people."""
    content = {
        "schema_version": SCHEMA_VERSION,
        "source": str(result.data),
        "repaired": [finding for finding in result.to_dict()["findings"] if finding["fixable"]],
        "lost": [vars(loss) for loss in writer.losses],
        "ledgers": {name: dataclasses.asdict(ledger) for name, ledger in writer.ledgers.items()},
        "unfit": unfit,
    }
    (folder / "changes.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    lines = [f"Repaired copy of {result.data}", *(f"not fit for training: {reason}" for reason in unfit)]
    lines += map(str, writer.losses)
    lines += [f"{name}: left out: {ledger}" for name, ledger in writer.ledgers.items() if str(ledger)]
    for one in result.findings:
        if one.fault.fix:
            lines += ["", f"{one.fault.title}: {one.count} ({one.kind}); {one.fault.fix}"]
            lines += [f"  {example}" for example in (*one.examples, "...")[: one.count]]
    (folder / "changes.txt").write_text("\n".join(map(printable, lines)) + "\n", encoding="utf-8")
