"""From evidence to judgements: what each figure means, and what to do about it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from detrkit.data.check.findings import CheckResult, Finding
from detrkit.data.check.kinds import Severity
from detrkit.data.index import CocoIndex
from detrkit.data.table import AnnotationTable, positions_of
from detrkit.readiness.evidence import (
    CHANCE,
    LEAST_OBJECTS,
    Patches,
    box_evidence,
    label_evidence,
    transfer_evidence,
)
from detrkit.readiness.rehearsal import Rehearsal
from detrkit.readiness.verdict import Judgement, Outcome
from detrkit.types import ClassMap

TOO_FAST = 1.15
"""A tenth or a hundredth of the learning rate must leave so many times less loss to say that it is too high."""
FAR_TOO_HIGH = 30.0
"""Times the preset's learning rate that no batch size makes up for."""
LEARNT = 0.9
"""Share of the loss at the beginning that may be left of a handful of images after some steps."""
COLLAPSED = 1e-3
LEAST_WITHIN = 300
FEW = 0.01
"""Share of a data set's images and annotations that may be faulty and left out without being called a fault."""
_SHIFT_CLEAR = 5.0
_NOTES_SHOWN = ("more_objects_than_queries", "rare_class", "category_ids_with_gaps")


def judge_check(result: CheckResult) -> list[Judgement]:
    """What ``detrkit data check`` finds in the annotations."""
    outcomes = {Severity.ERROR: Outcome.FAULT, Severity.WARNING: Outcome.WARNING, Severity.NOTE: Outcome.NOTE}
    total = sum(split.annotation_count + split.image_count for split in result.splits)
    judgements = [
        Judgement(
            finding.kind,
            _repaired_or(outcomes[finding.severity], finding, total),
            f"{finding.title}: {finding.count}, for instance {finding.examples[0] if finding.examples else '-'}",
            finding.advice,
            {"count": finding.count},
        )
        for finding in result.findings
        if finding.severity is not Severity.NOTE or finding.kind in _NOTES_SHOWN
    ]
    if not any(judgement.outcome in (Outcome.FAULT, Outcome.WARNING) for judgement in judgements):
        judgements.insert(
            0, Judgement("annotations", Outcome.OK, "no errors and no warnings in the annotation files")
        )
    return judgements


def _repaired_or(outcome: Outcome, finding: Finding, total: int) -> Outcome:
    """A warning for the few annotations or images of a set that training does without."""
    few = finding.fixable and finding.count < FEW * total
    return Outcome.WARNING if few and outcome is Outcome.FAULT else outcome


def judge_category_ids(split: str, table: AnnotationTable) -> list[Judgement]:
    """Whether annotations name categories by numbers that are all one too low or one too high.

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
                Judgement(
                    "class_ids_off_by_one",
                    Outcome.FAULT,
                    f"{split}: annotations name categories {_some(refs)}, listed are {_some(listed)}: every id is "
                    f"one too {'low' if low else 'high'}",
                    f"{'add 1 to' if low else 'subtract 1 from'} every category id of the annotations",
                    {"shift": shift},
                )
            ]
    heading = [row for row, name in enumerate(table.category_names) if name in table.supercategories]
    used = positions_of(refs, listed)
    is_heading_used = any(row in used for row in heading)
    last = int(np.argmax(listed)) if len(listed) else 0
    if len(listed) > 2 and is_heading_used and last not in used and last not in heading:
        name = table.category_names[heading[0]]
        return [
            Judgement(
                "class_ids_off_by_one",
                Outcome.FAULT,
                f"{split}: {name!r}, the heading of the other categories, has objects, while the last category, "
                f"{table.category_names[last]!r}, has none: ids seem to be one too low",
                "add 1 to every category id of the annotations, or look at the drawn batch",
                {"shift": 1},
            )
        ]
    return []


def judge_objects(split: str, index: CocoIndex, patches: Patches) -> list[Judgement]:
    """Whether there is anything to learn from."""
    counts = np.diff(index.offsets)
    empty = int((counts == 0).sum())
    judgements = []
    if not counts.sum():
        judgements.append(
            Judgement(
                "no_objects",
                Outcome.FAULT,
                f"{split}: all {len(counts)} images are empty, not one object is annotated",
                "the annotations were not exported, or belong to other images; see: detrkit data stats",
            )
        )
    elif empty > 0.9 * len(counts):
        judgements.append(
            Judgement(
                "mostly_empty",
                Outcome.WARNING,
                f"{split}: {empty} of {len(counts)} images have no object",
                "missing labels? if it is meant, train on a part of the empty images only",
            )
        )
    read = patches.images_read
    if patches.unreadable:
        tried = read + len(patches.unreadable)
        judgements.append(
            Judgement(
                "images_unreadable",
                Outcome.FAULT if len(patches.unreadable) > tried / 2 else Outcome.WARNING,
                f"{split}: {len(patches.unreadable)} of {tried} images looked at cannot be read, for instance "
                f"{patches.unreadable[0]}",
                "find all of them with: detrkit data check",
            )
        )
    if read and patches.blank > 0.2 * read:
        judgements.append(
            Judgement(
                "images_blank",
                Outcome.FAULT if patches.blank > 0.8 * read else Outcome.WARNING,
                f"{split}: {patches.blank} of {read} images looked at are empty: one colour all over",
                "export the images again",
            )
        )
    if not judgements:
        found = f"{split}: {len(counts):,} images, {int(counts.sum()):,} objects, {empty:,} images without any"
        judgements.append(Judgement("objects", Outcome.OK, found))
    return judgements


def judge_boxes_and_labels(split: str, patches: Patches) -> list[Judgement]:
    """Whether boxes mark something, and labels fit what is in them."""
    count = len(patches.labels)
    if count < LEAST_OBJECTS:
        found = (
            f"{split}: {count} objects looked at, {LEAST_OBJECTS} are needed to tell labels and boxes from chance"
        )
        return [Judgement("labels", Outcome.NOTE, found)]
    marked = (
        box_evidence(patches.pairs, patches.pair_rows) if len(patches.pair_rows) >= LEAST_OBJECTS else math.nan
    )
    judgements = []
    if marked < CHANCE:  # what labels have to do with boxes that mark nothing says nothing about labels
        return [
            Judgement(
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
        judgements.append(Judgement("boxes", Outcome.OK, found, figures={"deviations": marked}))
    if len(np.unique(patches.labels)) < 2:
        return [*judgements, Judgement("labels", Outcome.NOTE, f"{split}: one class only, nothing to mix up")]
    by_look = label_evidence(patches.objects, patches.labels, patches.image_rows)
    by_shape = label_evidence(patches.shapes, patches.labels, patches.image_rows)
    figures = {"deviations_by_look": by_look, "deviations_by_shape": by_shape}
    if by_look < CHANCE and by_shape < CHANCE:
        judgements.append(
            Judgement(
                "labels_shuffled",
                Outcome.FAULT,
                f"{split}: labels have nothing to do with what is in the boxes ({by_look:.1f} standard deviations "
                f"by look, {by_shape:.1f} by shape; sound sets have 5 and more): the labels are shuffled",
                "compare some drawn objects with the source of the labels; export them again",
                figures,
            )
        )
    elif by_look < CHANCE:
        judgements.append(
            Judgement(
                "boxes_of_other_images",
                Outcome.WARNING,
                f"{split}: labels go with the boxes' shapes, but not with the pixels in them: boxes of other "
                "images, or classes that differ in shape alone",
                "look at the drawn batch",
                figures,
            )
        )
    elif _shuffled_within(patches):
        judgements.append(
            Judgement(
                "labels_shuffled",
                Outcome.FAULT,
                f"{split}: labels fit their image, but not their own box: they are shuffled within each image",
                "compare some drawn objects with the source of the labels; export them again",
                figures,
            )
        )
    else:
        found = f"{split}: labels fit what is in the boxes ({max(by_look, by_shape):.0f} standard deviations)"
        judgements.append(Judgement("labels", Outcome.OK, found, figures=figures))
    return judgements


def _shuffled_within(patches: Patches) -> bool:
    """Whether labels could be exchanged within every image; asked of large samples only, where it is certain."""
    _, groups = np.unique(patches.image_rows, return_inverse=True)
    kinds = np.array([len(np.unique(patches.labels[groups == group])) for group in range(int(groups.max()) + 1)])
    mixed = kinds[groups] > 1
    if mixed.sum() < LEAST_WITHIN:
        return False
    features = np.concatenate([patches.objects, patches.shapes], axis=1)[mixed]
    return label_evidence(features, patches.labels[mixed], patches.image_rows[mixed], within=True) < CHANCE


def judge_splits(train: Patches, val: Patches, classes: int) -> list[Judgement]:
    """Whether a class of the training split looks like the same class of the validation split."""
    few = min(len(train.labels), len(val.labels)) < LEAST_OBJECTS or len(np.unique(val.labels)) < 2
    if few or classes < 2:
        return []
    lower, same, higher = transfer_evidence(train, val, classes).tolist()
    figures = {"deviations_as_they_are": same, "shifted_by_-1": lower, "shifted_by_1": higher}
    best = max(lower, higher)
    if same < CHANCE and best > _SHIFT_CLEAR:
        shift = 1 if higher > lower else -1
        return [
            Judgement(
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
            Judgement(
                "classes_differ_between_splits",
                Outcome.WARNING,
                f"what is learnt on train does not tell val's classes ({same:.1f} standard deviations), though "
                "they can be told: other pictures, or other numbers for the classes",
                "compare drawn objects of both splits: detrkit data preview",
                figures,
            )
        ]
    return [
        Judgement("splits", Outcome.OK, f"a class is the same in train and val ({same:.0f} standard deviations)")
    ]


def judge_head(
    head: ClassMap, logit_slots: int, data: ClassMap, lines: Sequence[str], as_it_is: bool
) -> Judgement:
    """Whether the model's class head is one for this data set.

    Args:
        head: Classes of the model.
        logit_slots: Rows that its class head really has, without no-object.
        data: Classes of the data set.
        lines: What loading the weights said of the head.
        as_it_is: The model is a trained one, whose head is not replaced.
    """
    missing = [name for name in data.names if name not in head.names]
    figures = {"classes_of_head": len(head), "classes_of_data": len(data), "missing": missing}
    if logit_slots != head.num_slots or (missing and as_it_is):
        names = ", ".join(missing[:6]) + (", ..." if len(missing) > 6 else "")
        what = (
            f"{len(missing)} of the data set's {len(data)} classes ({names}) are not among its {len(head)}"
            if missing
            else f"it scores {logit_slots} slots, its classes have {head.num_slots}"
        )
        return Judgement(
            "head_not_replaced",
            Outcome.FAULT,
            f"the model's class head is that of another data set: {what}",
            "train a preset from these weights, which replaces the head: detrkit train --init WEIGHTS",
            figures,
        )
    told = next((line.strip() for line in lines if "class" in line), "new, for the classes of the data set")
    return Judgement("head", Outcome.OK, f"{len(head)} classes; {told}", figures=figures)


def judge_rehearsal(rehearsal: Rehearsal, preset_lr: float | None, pretrained: bool) -> list[Judgement]:
    """Whether a handful of images can be learnt, and at this learning rate."""
    main = rehearsal.main
    steps = len(main.losses)
    terms = ", ".join(f"{name} {first:.2f} to {last:.2f}" for name, (first, last) in main.terms.items())
    figures = {
        "steps": steps,
        "first_loss": main.losses[0],
        "last_loss": main.loss_at(steps - 1),
        "terms": dict(main.terms),
        "lrs": [trial.lr for trial in (main, *rehearsal.slower)],
        "losses_after_trial": [
            trial.loss_at(len(rehearsal.slower[0].losses) - 1) for trial in (main, *rehearsal.slower)
        ],
    }
    too_fast = _too_fast(rehearsal, preset_lr)
    if too_fast is not None:
        return [too_fast]
    if not main.finite:
        return [
            Judgement(
                "not_finite",
                Outcome.FAULT,
                f"loss or gradients are not finite after {steps} steps, at lower learning rates too",
                "check the boxes: detrkit data check; train with train.precision=32",
                figures,
            )
        ]
    judgements = []
    gist = (
        f"loss {main.losses[0]:.2f} to {main.loss_at(steps - 1):.2f} in {steps} steps on {rehearsal.images} images"
    )
    if main.share_left > LEARNT:
        judgements.append(
            Judgement(
                "loss_does_not_fall",
                Outcome.WARNING if pretrained else Outcome.FAULT,
                f"{gist}: a handful of images cannot be learnt ({terms})",
                "raise train.lr, or lower it if the curve jumps; check train.clip_norm and frozen parts",
                figures,
            )
        )
    else:
        judgements.append(Judgement("learning", Outcome.OK, f"{gist} ({terms})", figures=figures))
    rising = [
        name
        for name, (first, last) in main.terms.items()
        if last > 1.1 * first + 0.05 and name in ("class", "l1", "giou")
    ]
    if rising:
        judgements.append(
            Judgement("term_rises", Outcome.WARNING, f"{', '.join(rising)} of the last layer rose: {terms}")
        )
    judgements.append(_judge_spread(rehearsal, pretrained))
    return judgements


def _too_fast(rehearsal: Rehearsal, preset_lr: float | None) -> Judgement | None:
    """A judgement if slower steps get further, or keep images apart, from the same weights on the same images."""
    main = rehearsal.main
    at = min(len(trial.losses) for trial in (main, *rehearsal.slower)) - 1
    reached = main.loss_at(at) if main.finite else math.inf
    best = min(rehearsal.slower, key=lambda trial: trial.loss_at(at))
    apart = max(rehearsal.slower, key=lambda trial: trial.box_spread[1])
    learnt = main.finite and main.share_left < 0.3
    times = main.lr / preset_lr if preset_lr else 0.0
    usual = f"; the preset's is {preset_lr:g}" if preset_lr is not None and preset_lr != main.lr else ""
    got = f"{reached:.1f}" if math.isfinite(reached) else "not finite"
    figures = {"lr": main.lr, "loss": got, "better_lr": best.lr, "better_loss": best.loss_at(at)}
    if math.isfinite(best.loss_at(at)) and reached > TOO_FAST * best.loss_at(at) and not learnt:
        found = f"the loss is {got}, at {best.lr:g} it is {best.loss_at(at):.1f}"
        better = best.lr
    elif main.box_spread[1] < COLLAPSED and apart.box_spread[1] > 10 * COLLAPSED and not learnt:
        found = f"all images get the same boxes, at {apart.lr:g} they do not"
        better = apart.lr
    elif times > FAR_TOO_HIGH:
        found = f"the loss is {got}, and the rate is {times:.0f} times the preset's"
        better = preset_lr or best.lr
    else:
        return None
    return Judgement(
        "learning_rate_too_high",
        Outcome.FAULT,
        f"after {at + 1} steps at train.lr={main.lr:g} {found}",
        f"lower train.lr to about {better:g}{usual if better != preset_lr else ''}",
        figures,
    )


def _judge_spread(rehearsal: Rehearsal, pretrained: bool) -> Judgement:
    over_queries, over_images = rehearsal.main.box_spread
    figures = {"over_queries": over_queries, "over_images": over_images, "before": rehearsal.before_spread}
    found = f"boxes vary by {over_queries:.3f} over queries and {over_images:.3f} over images (of 1)"
    collapsed = over_queries < COLLAPSED and not over_images > COLLAPSED
    if collapsed:
        return Judgement(
            "predictions_collapsed",
            Outcome.FAULT if pretrained else Outcome.WARNING,
            f"every query of every image gives the same box: {found}",
            "from random weights this can pass after some hundred steps; with pretrained weights lower train.lr",
            figures,
        )
    if over_queries < COLLAPSED:
        return Judgement(
            "queries_alike",
            Outcome.WARNING if pretrained else Outcome.NOTE,
            f"all queries of an image give the same box so far: {found}",
            "usual for DETR from random weights; pretrained weights shorten it by far" if not pretrained else "",
            figures,
        )
    return Judgement("predictions", Outcome.OK, found, figures=figures)


def _some(numbers: np.ndarray) -> str:
    shown = ", ".join(map(str, numbers[:8].tolist()))
    return shown + (f", ... {numbers[-1]}" if len(numbers) > 8 else "")
