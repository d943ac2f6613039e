"""The questions about annotations and pixels: what each figure means, and what to do about it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from detrkit.curation.check import CheckResult as DataCheckResult
from detrkit.curation.check import Finding, Severity
from detrkit.data.index import CocoIndex
from detrkit.data.table import AnnotationTable, positions_of
from detrkit.preflight.evidence import (
    CHANCE,
    LEAST_OBJECTS,
    Patches,
    box_evidence,
    label_evidence,
    transfer_evidence,
)
from detrkit.preflight.report import CheckResult, Outcome

LEAST_WITHIN = 300
ONE_SIDED = 0.4
"""Evidence of one move of all boxes over that of the opposite one: 0.66 to 1.9 on sound sets, under 0.32 where
boxes were written by their centre."""
FEW = 0.01
"""Share of a data set's images and annotations that may be faulty and left out without being called a fault."""
_SHIFT_CLEAR = 5.0
_NOTES_SHOWN = ("more_objects_than_queries", "rare_class", "category_ids_with_gaps")


def check_annotations(result: DataCheckResult) -> list[CheckResult]:
    """Check the annotations by what ``detrkit data check`` finds in them."""
    outcomes = {Severity.ERROR: Outcome.FAULT, Severity.WARNING: Outcome.WARNING, Severity.NOTE: Outcome.NOTE}
    total = sum(split.annotation_count + split.image_count for split in result.splits)
    results = [
        CheckResult(
            finding.kind,
            _repaired_or(outcomes[finding.severity], finding, total),
            f"{finding.fault.title}: {finding.count}, for instance {next(iter(finding.examples), '-')}",
            finding.fault.advice,
            {"count": finding.count},
        )
        for finding in result.findings
        if finding.severity is not Severity.NOTE or finding.kind in _NOTES_SHOWN
    ]
    if not any(result.outcome in (Outcome.FAULT, Outcome.WARNING) for result in results):
        results.insert(
            0, CheckResult("annotations", Outcome.OK, "no errors and no warnings in the annotation files")
        )
    return results


def _repaired_or(outcome: Outcome, finding: Finding, total: int) -> Outcome:
    """Return a warning for the few annotations or images of a set that training does without."""
    few = bool(finding.fault.fix) and finding.count < FEW * total
    return Outcome.WARNING if few and outcome is Outcome.FAULT else outcome


def check_category_ids(split: str, table: AnnotationTable) -> list[CheckResult]:
    """Check whether annotations name categories by numbers that are all one too low or one too high.

    The sign of it is that some ids are not listed, and that all are once shifted by one; or that the category
    which is only the heading of the others has objects, as when Roboflow's ids are shifted by -1.
    """
    listed = np.array(table.category_ids, dtype=np.int64)
    refs = np.unique(table.category_refs)
    unknown = refs[positions_of(refs, listed) < 0]
    for shift in (1, -1):
        if len(unknown) and len(listed) and not (positions_of(refs + shift, listed) < 0).any():
            low = shift > 0
            return [
                CheckResult(
                    "class_ids_off_by_one",
                    Outcome.FAULT,
                    f"{split}: annotations name categories {_some(refs)}, listed are {_some(listed)}: every id is "
                    f"one too {'low' if low else 'high'}",
                    f"{'add 1 to' if low else 'subtract 1 from'} every category id of the annotations",
                    {"shift": shift},
                )
            ]
    # Roboflow lists the heading of all categories first, and gives it no objects.
    order = np.argsort(listed, kind="stable")
    used = np.unique(positions_of(refs, listed))
    headings = [name for name in table.supercategories if name != "none"]
    if len(order) > 2 and headings == [table.category_names[order[0]]]:
        first, last = order[0], order[-1]
        shifted = first in used and last not in used and len(used) == len(order) - 1
    else:
        shifted = False
    if shifted:
        name = table.category_names[first]
        return [
            CheckResult(
                "class_ids_off_by_one",
                Outcome.FAULT,
                f"{split}: {name!r}, the heading of the other categories, has objects, while the last category, "
                f"{table.category_names[last]!r}, has none: ids seem to be one too low",
                "add 1 to every category id of the annotations, or look at the drawn batch",
                {"shift": 1},
            )
        ]
    return []


def check_objects(split: str, index: CocoIndex, patches: Patches) -> list[CheckResult]:
    """Check whether there is anything to learn from."""
    counts = np.diff(index.offsets)
    empty = int((counts == 0).sum())
    results = []
    if not counts.sum():
        results.append(
            CheckResult(
                "no_objects",
                Outcome.FAULT,
                f"{split}: all {len(counts)} images are empty, not one object is annotated",
                "the annotations were not exported, or belong to other images; see: detrkit data stats",
            )
        )
    elif empty > 0.9 * len(counts):
        results.append(
            CheckResult(
                "mostly_empty",
                Outcome.WARNING,
                f"{split}: {empty} of {len(counts)} images have no object",
                "missing labels? if it is meant, train on a part of the empty images only",
            )
        )
    read = patches.images_read
    if patches.unreadable:
        tried = read + len(patches.unreadable)
        results.append(
            CheckResult(
                "images_unreadable",
                Outcome.FAULT if len(patches.unreadable) > tried / 2 else Outcome.WARNING,
                f"{split}: {len(patches.unreadable)} of {tried} images looked at cannot be read, for instance "
                f"{patches.unreadable[0]}",
                "find all of them with: detrkit data check",
            )
        )
    if read and patches.blank > 0.2 * read:
        results.append(
            CheckResult(
                "images_blank",
                Outcome.FAULT if patches.blank > 0.8 * read else Outcome.WARNING,
                f"{split}: {patches.blank} of {read} images looked at are empty: one colour all over",
                "export the images again",
            )
        )
    if not results:
        found = f"{split}: {len(counts):,} images, {int(counts.sum()):,} objects, {empty:,} images without any"
        results.append(CheckResult("objects", Outcome.OK, found))
    return results


def check_boxes_and_labels(split: str, patches: Patches) -> list[CheckResult]:
    """Check whether boxes mark something, and labels fit what is in them."""
    count = len(patches.labels)
    if count < LEAST_OBJECTS:
        found = (
            f"{split}: {count} objects looked at, {LEAST_OBJECTS} are needed to tell labels and boxes from chance"
        )
        return [CheckResult("labels", Outcome.NOTE, found)]
    marked = (
        box_evidence(patches.pairs, patches.pair_rows) if len(patches.pair_rows) >= LEAST_OBJECTS else math.nan
    )
    results = []
    if marked < CHANCE:  # what labels have to do with boxes that mark nothing says nothing about labels
        return [
            CheckResult(
                "boxes_mark_nothing",
                Outcome.FAULT,
                f"{split}: boxes look like any other place of their image ({marked:.1f} standard deviations from "
                "chance; sound sets have 10 and more): wrong box format, or boxes of other images",
                "look at the drawn batch; check the order of the four numbers, and which image each box names",
                {"deviations": marked},
            )
        ]
    if not math.isnan(marked):
        found = f"{split}: boxes mark something ({marked:.0f} standard deviations above chance)"
        results.append(CheckResult("boxes", Outcome.OK, found, figures={"deviations": marked}))
    if len(np.unique(patches.labels)) < 2:
        return [*results, CheckResult("labels", Outcome.NOTE, f"{split}: one class only, nothing to mix up")]
    by_look = label_evidence(patches.objects, patches.labels, patches.image_rows)
    by_shape = label_evidence(patches.shapes, patches.labels, patches.image_rows)
    figures = {"deviations_by_look": by_look, "deviations_by_shape": by_shape}
    if by_look < CHANCE and by_shape < CHANCE:
        results.append(
            CheckResult(
                "labels_shuffled",
                Outcome.FAULT,
                f"{split}: labels have nothing to do with what is in the boxes ({by_look:.1f} standard deviations "
                f"by look, {by_shape:.1f} by shape; sound sets have 5 and more): the labels are shuffled",
                "compare some drawn objects with the source of the labels; export them again",
                figures,
            )
        )
    elif by_look < CHANCE:
        results.append(
            CheckResult(
                "boxes_of_other_images",
                Outcome.WARNING,
                f"{split}: labels go with the boxes' shapes, but not with the pixels in them: boxes of other "
                "images, or classes that differ in shape alone",
                "look at the drawn batch",
                figures,
            )
        )
    elif _shuffled_within(patches):
        results.append(
            CheckResult(
                "labels_shuffled",
                Outcome.FAULT,
                f"{split}: labels fit their image, but not their own box: they are shuffled within each image",
                "compare some drawn objects with the source of the labels; export them again",
                figures,
            )
        )
    else:
        found = f"{split}: labels fit what is in the boxes ({max(by_look, by_shape):.0f} standard deviations)"
        results.append(CheckResult("labels", Outcome.OK, found, figures=figures))
    return results


def check_offset(split: str, evidence: Mapping[float, tuple[float, float]]) -> list[CheckResult]:
    """Check whether all boxes lie half their size off: written by their centre and read by a corner, or so.

    On a sound set, moving boxes one way costs about as much evidence as the other. Where they are half their
    size off, one way puts them right, and the other a whole size off.
    """
    if not evidence:
        return []
    labels = evidence[0.0][0]
    for shift in (-0.5, 0.5):
        moved_labels, moved_boxes = evidence[shift]
        other_labels, other_boxes = evidence[-shift]
        balance = max(other_labels, 0.1) * max(other_boxes, 0.1) / max(moved_labels * moved_boxes, 0.1)
        if balance < ONE_SIDED and moved_labels > max(0.95 * labels, _SHIFT_CLEAR):
            way, written, read = (
                ("up and left", "centre", "corner") if shift < 0 else ("down and right", "corner", "centre")
            )
            return [
                CheckResult(
                    "boxes_off_by_half",
                    Outcome.FAULT,
                    f"{split}: labels fit as well if every box moves {way} by half its size ({moved_labels:.0f} "
                    f"standard deviations, {labels:.0f} as they are, {other_labels:.0f} the other way): boxes in "
                    f"the wrong format, written by their {written} and read by their {read}",
                    "look at the drawn batch; write the boxes in the format of the layout",
                    {"shift": shift, "deviations": moved_labels, "as_they_are": labels},
                )
            ]
    return []


def _shuffled_within(patches: Patches) -> bool:
    """Return whether labels could be exchanged within every image; for large samples only, where it is certain."""
    _, groups = np.unique(patches.image_rows, return_inverse=True)
    kinds = np.array([len(np.unique(patches.labels[groups == group])) for group in range(int(groups.max()) + 1)])
    mixed = kinds[groups] > 1
    if mixed.sum() < LEAST_WITHIN:
        return False
    features = np.concatenate([patches.objects, patches.shapes], axis=1)[mixed]
    return label_evidence(features, patches.labels[mixed], patches.image_rows[mixed], within=True) < CHANCE


def check_splits(train: Patches, val: Patches, classes: int) -> list[CheckResult]:
    """Check whether a class of the training split looks like the same class of the validation split."""
    few = min(len(train.labels), len(val.labels)) < LEAST_OBJECTS or len(np.unique(val.labels)) < 2
    if few or classes < 2:
        return []
    lower, same, higher = transfer_evidence(train, val, classes).tolist()
    figures = {"deviations_as_they_are": same, "shifted_by_-1": lower, "shifted_by_1": higher}
    best = max(lower, higher)
    if same < CHANCE and best > _SHIFT_CLEAR:
        shift = 1 if higher > lower else -1
        return [
            CheckResult(
                "class_ids_off_by_one",
                Outcome.FAULT,
                f"what is learnt on train fits val only if val's class ids are shifted by {shift} ({best:.0f} "
                f"standard deviations, {same:.1f} as they are)",
                "correct the ids of the split that is wrong; the drawn batch shows train",
                figures,
            )
        ]
    if same < CHANCE and label_evidence(val.objects, val.labels, val.image_rows) > _SHIFT_CLEAR:
        return [
            CheckResult(
                "classes_differ_between_splits",
                Outcome.WARNING,
                f"what is learnt on train does not tell val's classes ({same:.1f} standard deviations), though "
                "they can be told: other pictures, or other numbers for the classes",
                "compare drawn objects of both splits: detrkit data preview",
                figures,
            )
        ]
    return [
        CheckResult("splits", Outcome.OK, f"a class is the same in train and val ({same:.0f} standard deviations)")
    ]


def _some(numbers: np.ndarray) -> str:
    shown = ", ".join(map(str, numbers[:8].tolist()))
    return shown + (f", ... {numbers[-1]}" if len(numbers) > 8 else "")
