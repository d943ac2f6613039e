"""The questions about annotations and pixels: what each figure means, and what to do about it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from detrkit.curation.check import CheckResult as DataCheckResult
from detrkit.curation.check import Finding, Severity
from detrkit.data.index import CocoIndex
from detrkit.data.table import AnnotationTable, positions_of
from detrkit.errors import listed
from detrkit.preflight.evidence import (
    CHANCE,
    LEAST_OBJECTS,
    Patches,
    box_evidence,
    label_evidence,
    transfer_evidence,
)
from detrkit.preflight.report import CheckResult, Outcome, bad, ok

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
        results.insert(0, ok("annotations", "no errors and no warnings in the annotation files"))
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
    known = np.array(table.category_ids, dtype=np.int64)
    refs = np.unique(table.category_refs)
    unknown = refs[positions_of(refs, known) < 0]
    for shift, wrong, remedy in ((1, "low", "add 1 to"), (-1, "high", "subtract 1 from")):
        if len(unknown) and len(known) and not (positions_of(refs + shift, known) < 0).any():
            names, own = listed(refs.tolist()), listed(known.tolist())
            found = f"{split}: annotations name categories {names}, listed are {own}: every id is one too {wrong}"
            advice = f"{remedy} every category id of the annotations"
            return [bad("class_ids_off_by_one", found, {"shift": shift}, advice=advice)]
    # Roboflow lists the heading of all categories first, and gives it no objects.
    order = np.argsort(known, kind="stable")
    used = np.unique(positions_of(refs, known))
    headings = [name for name in table.supercategories if name != "none"]
    if len(order) <= 2 or headings != [table.category_names[order[0]]]:
        return []
    first, last = order[0], order[-1]
    if first not in used or last in used or len(used) != len(order) - 1:
        return []
    found = (
        f"{split}: {table.category_names[first]!r}, the heading of the other categories, has objects, while the "
        f"last category, {table.category_names[last]!r}, has none: ids seem to be one too low"
    )
    advice = "add 1 to every category id of the annotations, or look at the drawn batch"
    return [bad("class_ids_off_by_one", found, {"shift": 1}, advice=advice)]


def check_objects(split: str, index: CocoIndex, patches: Patches) -> list[CheckResult]:
    """Check whether there is anything to learn from."""
    counts = index.object_counts()
    empty, read, unreadable = int((counts == 0).sum()), patches.images_read, len(patches.unreadable)
    results = []
    if not counts.sum():
        results.append(
            bad("no_objects", f"{split}: all {len(counts)} images are empty, not one object is annotated")
        )
    elif empty > 0.9 * len(counts):
        found = f"{split}: {empty} of {len(counts)} images have no object"
        results.append(bad("mostly_empty", found, fault=False))
    if unreadable:
        tried = read + unreadable
        found = f"{split}: {unreadable} of {tried} images looked at cannot be read, for instance "
        results.append(bad("images_unreadable", found + patches.unreadable[0], fault=unreadable > tried / 2))
    if read and patches.blank > 0.2 * read:
        found = f"{split}: {patches.blank} of {read} images looked at are empty: one colour all over"
        results.append(bad("images_blank", found, fault=patches.blank > 0.8 * read))
    if not results:
        found = f"{split}: {len(counts):,} images, {int(counts.sum()):,} objects, {empty:,} images without any"
        results.append(ok("objects", found))
    return results


def check_boxes_and_labels(split: str, patches: Patches) -> list[CheckResult]:
    """Check whether boxes mark something, and labels fit what is in them."""
    count = len(patches.labels)
    if count < LEAST_OBJECTS:
        found = (
            f"{split}: {count} objects looked at, {LEAST_OBJECTS} are needed to tell labels and boxes from chance"
        )
        return [CheckResult("labels", Outcome.NOTE, found)]
    # boxes; what labels have to do with boxes that mark nothing says nothing about labels
    enough = len(patches.pair_rows) >= LEAST_OBJECTS
    marked = box_evidence(patches.pairs, patches.pair_rows) if enough else math.nan
    if marked < CHANCE:
        found = (
            f"{split}: boxes look like any other place of their image ({marked:.1f} standard deviations from "
            "chance; sound sets have 10 and more): wrong box format, or boxes of other images"
        )
        return [bad("boxes_mark_nothing", found, {"deviations": marked})]
    results = []
    if enough:
        found = f"{split}: boxes mark something ({marked:.0f} standard deviations above chance)"
        results.append(ok("boxes", found, {"deviations": marked}))
    # labels
    if len(np.unique(patches.labels)) < 2:
        return [*results, CheckResult("labels", Outcome.NOTE, f"{split}: one class only, nothing to mix up")]
    by_look = label_evidence(patches.objects, patches.labels, patches.image_rows)
    by_shape = label_evidence(patches.shapes, patches.labels, patches.image_rows)
    figures = {"deviations_by_look": by_look, "deviations_by_shape": by_shape}
    if by_look < CHANCE and by_shape < CHANCE:
        found = (
            f"{split}: labels have nothing to do with what is in the boxes ({by_look:.1f} standard deviations "
            f"by look, {by_shape:.1f} by shape; sound sets have 5 and more): the labels are shuffled"
        )
        return [*results, bad("labels_shuffled", found, figures)]
    if by_look < CHANCE:
        found = (
            f"{split}: labels go with the boxes' shapes, but not with the pixels in them: boxes of other images, "
            "or classes that differ in shape alone"
        )
        return [*results, bad("boxes_of_other_images", found, figures, fault=False)]
    if _shuffled_within(patches):
        found = f"{split}: labels fit their image, but not their own box: they are shuffled within each image"
        return [*results, bad("labels_shuffled", found, figures)]
    found = f"{split}: labels fit what is in the boxes ({max(by_look, by_shape):.0f} standard deviations)"
    return [*results, ok("labels", found, figures)]


def check_offset(split: str, evidence: Mapping[float, tuple[float, float]]) -> list[CheckResult]:
    """Check whether all boxes lie half their size off: written by their centre and read by a corner, or so.

    On a sound set, moving boxes one way costs about as much evidence as the other. Where they are half their
    size off, one way puts them right, and the other a whole size off.
    """
    ways = ((-0.5, "up and left", "centre", "corner"), (0.5, "down and right", "corner", "centre"))
    for shift, way, written, read in ways if evidence else ():
        labels, (moved_labels, moved_boxes) = evidence[0.0][0], evidence[shift]
        other_labels, other_boxes = evidence[-shift]
        balance = max(other_labels, 0.1) * max(other_boxes, 0.1) / max(moved_labels * moved_boxes, 0.1)
        if balance < ONE_SIDED and moved_labels > max(0.95 * labels, _SHIFT_CLEAR):
            found = (
                f"{split}: labels fit as well if every box moves {way} by half its size ({moved_labels:.0f} "
                f"standard deviations, {labels:.0f} as they are, {other_labels:.0f} the other way): boxes in the "
                f"wrong format, written by their {written} and read by their {read}"
            )
            figures = {"shift": shift, "deviations": moved_labels, "as_they_are": labels}
            return [bad("boxes_off_by_half", found, figures)]
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
        found = (
            "what is learnt on train fits val only if val's class ids are shifted by "
            f"{1 if higher > lower else -1} ({best:.0f} standard deviations, {same:.1f} as they are)"
        )
        advice = "correct the ids of the split that is wrong; the drawn batch shows train"
        return [bad("class_ids_off_by_one", found, figures, advice=advice)]
    if same < CHANCE and label_evidence(val.objects, val.labels, val.image_rows) > _SHIFT_CLEAR:
        found = (
            f"what is learnt on train does not tell val's classes ({same:.1f} standard deviations), though they "
            "can be told: other pictures, or other numbers for the classes"
        )
        return [bad("classes_differ_between_splits", found, figures, fault=False)]
    return [ok("splits", f"a class is the same in train and val ({same:.0f} standard deviations)")]
