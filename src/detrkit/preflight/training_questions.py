"""The questions about class head and overfit test: what each figure means, and what to do about it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from detrkit.classes import ClassMap
from detrkit.errors import listed
from detrkit.preflight.overfit_test import LEARNT, OverfitTest
from detrkit.preflight.report import CheckResult, Outcome, bad, ok

TOO_FAST = 1.15
"""A tenth or a hundredth of the learning rate must leave so many times less loss to say that it is too high."""
FAR_TOO_HIGH = 30.0
"""Times the preset's learning rate that no batch size makes up for."""
COLLAPSED = 1e-3


def check_head(
    head: ClassMap, head_labels: int, data: ClassMap, lines: Sequence[str], as_it_is: bool
) -> CheckResult:
    """Check whether the model's class head is one for this data set.

    Args:
        head: Classes of the model.
        head_labels: Rows that its class head really has, without no-object.
        data: Classes of the data set.
        lines: What loading the weights said of the head.
        as_it_is: The model is a trained one, whose head is not replaced.
    """
    missing = [name for name in data.names if name not in head.names]
    figures = {"classes_of_head": len(head), "classes_of_data": len(data), "missing": missing}
    if head_labels != head.num_labels or (missing and as_it_is):
        what = f"it scores {head_labels} labels, its classes have {head.num_labels}"
        if missing:
            lacking = f"{len(missing)} of the data set's {len(data)} classes"
            what = f"{lacking} are not among its {len(head)}: {listed(missing, 6)}"
        found = f"the model's class head is that of another data set: {what}"
        return bad("head_not_replaced", found, figures)
    told = next((line.strip() for line in lines if "class" in line), "new, for the classes of the data set")
    return ok("head", f"{len(head)} classes; {told}", figures)


def check_overfit_test(overfit: OverfitTest, preset_lr: float | None, pretrained: bool) -> list[CheckResult]:
    """Check whether a handful of images can be learnt, and at this learning rate."""
    main, trials = overfit.main, (overfit.main, *overfit.slower)
    steps = len(main.losses)
    terms = ", ".join(f"{name} {first:.2f} to {last:.2f}" for name, (first, last) in main.terms.items())
    figures = {
        "steps": steps,
        "first_loss": main.losses[0],
        "last_loss": main.loss_at(steps - 1),
        "terms": dict(main.terms),
        "lrs": [trial.lr for trial in trials],
        "losses_after_trial": [trial.loss_at(len(overfit.slower[0].losses) - 1) for trial in trials],
    }
    too_fast = _too_fast(overfit, preset_lr, pretrained)
    if too_fast is not None:
        return [too_fast]
    if not main.finite:
        found = f"loss or gradients are not finite after {steps} steps, at lower learning rates too"
        return [bad("not_finite", found, figures)]
    losses = f"loss {main.losses[0]:.2f} to {main.loss_at(steps - 1):.2f}"
    fell = f"{losses} in {steps} steps on {len(overfit.batch.images)} images"
    if main.share_left > LEARNT:
        found = f"{fell}: a handful of images cannot be learnt ({terms})"
        results = [bad("loss_does_not_fall", found, figures, fault=not pretrained)]
    else:
        results = [ok("learning", f"{fell} ({terms})", figures)]
    fixed = ("l1", "giou") if overfit.class_moves else ("class", "l1", "giou")
    shown = {name: main.terms[name] for name in fixed if name in main.terms}
    rising = [name for name, (first, last) in shown.items() if last > 1.1 * first + 0.05]
    if rising:
        results.append(bad("term_rises", f"{', '.join(rising)} of the last layer rose: {terms}", fault=False))
    return [*results, _check_spread(overfit, pretrained)]


def _too_fast(overfit: OverfitTest, preset_lr: float | None, pretrained: bool) -> CheckResult | None:
    """Return a fault if slower steps get further, or keep images apart, from the same weights and images."""
    main = overfit.main
    at = min(len(trial.losses) for trial in (main, *overfit.slower)) - 1
    reached = main.loss_at(at) if main.finite else math.inf
    best = min(overfit.slower, key=lambda trial: trial.loss_at(at))
    apart = max(overfit.slower, key=lambda trial: trial.box_spread[1])
    learnt = main.finite and main.share_left < 0.3
    times = main.lr / preset_lr if preset_lr else 0.0
    usual = f"; the preset's is {preset_lr:g}" if preset_lr is not None and preset_lr != main.lr else ""
    got = f"{reached:.1f}" if math.isfinite(reached) else "not finite"
    figures = {"lr": main.lr, "loss": got, "better_lr": best.lr, "better_loss": best.loss_at(at)}
    # A trained model may lose a little at first at any rate that is worth training with.
    slower_is_better = reached > TOO_FAST * best.loss_at(at) and (not pretrained or reached > main.losses[0])
    if math.isfinite(best.loss_at(at)) and slower_is_better and not learnt:
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
    found = f"after {at + 1} steps at train.lr={main.lr:g} {found}"
    advice = f"lower train.lr to about {better:g}{usual if better != preset_lr else ''}"
    return bad("learning_rate_too_high", found, figures, advice=advice)


def _check_spread(overfit: OverfitTest, pretrained: bool) -> CheckResult:
    over_queries, over_images = overfit.main.box_spread
    figures = {"over_queries": over_queries, "over_images": over_images, "before": overfit.before_spread}
    found = f"boxes vary by {over_queries:.3f} over queries and {over_images:.3f} over images (of 1)"
    if over_queries >= COLLAPSED:
        return ok("predictions", found, figures)
    if not over_images > COLLAPSED:
        found = f"every query of every image gives the same box: {found}"
        return bad("predictions_collapsed", found, figures, fault=pretrained)
    found = f"all queries of an image give the same box so far: {found}"
    if pretrained:
        return bad("queries_alike", found, figures, fault=False)
    advice = "usual for DETR from random weights; pretrained weights shorten it by far"
    return CheckResult("queries_alike", Outcome.NOTE, found, advice, figures)
