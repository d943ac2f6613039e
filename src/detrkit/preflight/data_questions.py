"""The questions about annotations and pixels: what each figure means, and what to do about it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

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
CERTAIN = 2.0
"""Mean evidence of several draws below which nothing but chance is left: a fault. Up to ``CHANCE``: a warning."""
CLEAR = 6.0
"""Evidence of boxes above which they are surely of their own images."""
LEAST_CERTAIN = 100
"""Objects below which a fault is only a warning: a sound set of so few may show no more than chance."""
LEAST_OF_CLASS = 5
"""The same for labels, a class, one for each fold: 70 objects of 25 classes teach nothing, however sound."""
LEAST_OF_CLASS_WITHIN = 10
"""The same for labels within images, where less tells a class."""
LEAST_OF_OTHERS = 20
"""The same for all classes but the largest together."""
DRAWS = 3
"""Draws of objects and of other places that have to agree on a fault."""
ONE_SIDED = 0.4
"""Evidence of one move of all boxes over that of the opposite one: 0.66 to 1.9 on sound sets, under 0.32 where
boxes were written by their centre."""
FEW = 0.01
"""Share of a data set's images and annotations that may be faulty and left out without being called a fault."""
_SHIFT_CLEAR = 5.0
Draw = Callable[[int], Patches]
"""Gives the patches of a draw: 0 is that of the config's seed, others follow where it leaves doubt."""
Offsets = Mapping[float, tuple[float, float]]
"""What :func:`detrkit.preflight.evidence.offset_evidence` returns."""

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
    if shift := table.id_shift():
        wrong, remedy = ("low", "add 1 to") if shift > 0 else ("high", "subtract 1 from")
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


def check_boxes_and_labels(split: str, draw: Draw) -> list[CheckResult]:
    """Check whether boxes mark something, and labels fit what is in them."""
    patches = draw(0)
    count = len(patches.labels)
    if count < LEAST_OBJECTS:
        found = (
            f"{split}: {count} objects looked at, {LEAST_OBJECTS} are needed to tell labels and boxes from chance"
        )
        return [CheckResult("labels", Outcome.NOTE, found)]
    # boxes; what labels have to do with boxes that mark nothing says nothing about labels
    enough = len(patches.pair_rows) >= LEAST_OBJECTS
    marked = _steady(lambda p: box_evidence(p.pairs, p.pair_rows), draw) if enough else math.nan
    if marked < CHANCE:
        found = (
            f"{split}: boxes look like any other place of their image ({marked:.1f} standard deviations from "
            "chance; sound sets have 10 and more): wrong box format, or boxes of other images"
        )
        is_certain = marked < CERTAIN and len(patches.pair_rows) >= LEAST_CERTAIN
        return [bad("boxes_mark_nothing", found, {"deviations": marked}, fault=is_certain)]
    results = []
    if enough:
        found = f"{split}: boxes mark something ({marked:.0f} standard deviations above chance)"
        results.append(ok("boxes", found, {"deviations": marked}))
    # labels
    if len(np.unique(patches.labels)) < 2:
        return [*results, CheckResult("labels", Outcome.NOTE, f"{split}: one class only, nothing to mix up")]
    by_look = _steady(lambda p: label_evidence(p.objects, p.labels, p.image_rows), draw)
    by_shape = _steady(lambda p: label_evidence(p.shapes, p.labels, p.image_rows), draw)
    figures = {"deviations_by_look": by_look, "deviations_by_shape": by_shape}
    if by_look < CHANCE and by_shape < CHANCE:
        found = (
            f"{split}: labels have nothing to do with what is in the boxes ({by_look:.1f} standard deviations "
            f"by look, {by_shape:.1f} by shape; sound sets have 5 and more): the labels are shuffled"
        )
        is_certain = max(by_look, by_shape) < CERTAIN and _can_tell(patches.labels, LEAST_OF_CLASS)
        return [*results, bad("labels_shuffled", found, figures, fault=is_certain)]
    if by_look < CHANCE and not marked > CLEAR:
        found = (
            f"{split}: labels go with the boxes' shapes, but not with the pixels in them: boxes of other images, "
            "or classes that differ in shape alone"
        )
        return [*results, bad("boxes_of_other_images", found, figures, fault=False)]
    within = _steady(_evidence_within, draw)
    if within < CHANCE:
        found = f"{split}: labels fit their image, but not their own box: they are shuffled within each image"
        is_certain = within < CERTAIN and _can_tell(patches.labels, LEAST_OF_CLASS_WITHIN)
        return [*results, bad("labels_shuffled", found, figures, fault=is_certain)]
    found = f"{split}: labels fit what is in the boxes ({max(by_look, by_shape):.0f} standard deviations)"
    return [*results, ok("labels", found, figures)]


def check_offset(split: str, draw: Callable[[int], Offsets]) -> list[CheckResult]:
    """Check whether all boxes lie half their size off: written by their centre and read by a corner, or so.

    On a sound set, moving boxes costs evidence, one way about as much as the other. Where they are half their size
    off, one way puts them right, and the other a whole size off. All draws have to say so; most of them, and it is
    worth a look.
    """
    evidence = draw(0)
    shift = _better_shift(evidence)
    if not shift:
        return []
    agree = 1 + sum(_better_shift(draw(number)) == shift for number in range(1, DRAWS))
    if 2 * agree < DRAWS:
        return []
    way, written, read = (
        ("up and left", "centre", "corner") if shift < 0 else ("down and right", "corner", "centre")
    )
    labels, moved, other = (evidence[where][0] for where in (0.0, shift, -shift))
    found = (
        f"{split}: labels and boxes fit better if every box moves {way} by half its size ({moved:.0f} standard "
        f"deviations, {labels:.0f} as they are, {other:.0f} the other way): boxes in the wrong format, written by "
        f"their {written} and read by their {read}"
    )
    figures = {"shift": shift, "deviations": moved, "as_they_are": labels}
    return [bad("boxes_off_by_half", found, figures, fault=agree == DRAWS)]


def _better_shift(evidence: Offsets) -> float:
    """Return the shift by which boxes and labels fit better, and much worse by the opposite one; 0 for none."""
    for shift in (-0.5, 0.5) if evidence else ():
        (labels, boxes), (moved_labels, moved_boxes) = evidence[0.0], evidence[shift]
        other_labels, other_boxes = evidence[-shift]
        balance = max(other_labels, 0.1) * max(other_boxes, 0.1) / max(moved_labels * moved_boxes, 0.1)
        fits = moved_labels > max(0.95 * labels, _SHIFT_CLEAR) and moved_boxes > boxes
        if balance < ONE_SIDED and fits:
            return shift
    return 0.0


def _steady(measure: Callable[[Patches], float], draw: Draw) -> float:
    """Return evidence, in the mean of several draws where the first does not exceed chance.

    One draw of a small or uniform set, such as coins, may fall short of it now and then.
    """
    first = measure(draw(0))
    if not first < CHANCE:
        return first
    return float(np.mean([first, *(measure(draw(number)) for number in range(1, DRAWS))]))


def _can_tell(labels: np.ndarray, least_of_class: int) -> bool:
    """Return whether there are objects enough that sound labels would surely be told from shuffled ones."""
    counts = np.unique(labels, return_counts=True)[1]
    enough = len(labels) >= max(LEAST_CERTAIN, least_of_class * len(counts))
    return bool(enough and len(labels) - counts.max() >= LEAST_OF_OTHERS)


def _evidence_within(patches: Patches) -> float:
    """Measure whether labels could be exchanged within every image; infinite for samples too small to tell."""
    _, groups = np.unique(patches.image_rows, return_inverse=True)
    kinds = np.array([len(np.unique(patches.labels[groups == group])) for group in range(int(groups.max()) + 1)])
    mixed = kinds[groups] > 1
    if mixed.sum() < LEAST_WITHIN:
        return math.inf
    features = np.concatenate([patches.objects, patches.shapes], axis=1)[mixed]
    return label_evidence(features, patches.labels[mixed], patches.image_rows[mixed], within=True)


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
