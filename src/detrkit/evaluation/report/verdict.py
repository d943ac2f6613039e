"""Sentences on an evaluation: how good it is, and what to know before believing the numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from detrkit.errors import counted
from detrkit.evaluation.coco import UNDEFINED
from detrkit.evaluation.report.tables import most_confused
from detrkit.evaluation.report.terms import ERROR_NAMES, LOSS_NAMES, percent, quoted, range_of

if TYPE_CHECKING:
    from detrkit.evaluation.analysis import Evaluation

WIDE = 0.1
"""Of an interval of AP: too wide to compare models by."""
FEW_OBJECTS = 10
"""A class with fewer is not named best or worst: its AP is chance."""
JUDGE = 0.5
"""F1 of a model that is right often enough to judge labels by."""
LIKELY = 0.5
"""Rank of a label that is suspect enough for the summary."""
MISCALIBRATED = 0.05
"""Expected calibration error from which it is worth a sentence."""


def verdict(evaluation: Evaluation, name: Callable[[str], str] = quoted) -> list[str]:
    """Return how good, how sure, what costs most, which threshold, which classes, and if labels are to blame.

    Args:
        evaluation: result.
        name: writes a class name, which is of unknown origin, for where the sentences will stand.
    """
    metrics = evaluation.metrics
    if not metrics.objects:
        return [f"There is nothing to find: the {counted(metrics.images, 'image')} have no annotated objects."]
    if not metrics.detections:
        return [
            f"Nothing was detected on {counted(metrics.images, 'image')} with "
            f"{counted(metrics.objects, 'object')}: AP is 0. Check that the model is trained, and its classes."
        ]
    sentences = [_how_good(evaluation), *_masks(evaluation)]
    sentences += [_threshold(evaluation), _costs(evaluation), _classes(evaluation, name)]
    sentences += [_sizes(evaluation), _calibration(evaluation), _labels(evaluation)]
    return [sentence for sentence in sentences if sentence]


def warnings(evaluation: Evaluation, name: Callable[[str], str] = quoted) -> list[str]:
    """Return what a reader must not miss before believing the numbers.

    Args:
        evaluation: result.
        name: as for :func:`verdict`.
    """
    metrics, found = evaluation.metrics, list(evaluation.notes)
    beyond = metrics.detections - len(evaluation.matches.found)
    if beyond:
        found.append(
            f"{counted(beyond, 'detection')} beyond the best {metrics.max_detections} of an image and class did "
            "not count."
        )
    if evaluation.origin.seen_in_training:
        found.append("These images were trained on: the numbers say nothing about new images.")
    interval = None if evaluation.intervals is None else evaluation.intervals.values.get("AP")
    if interval is not None and interval.high - interval.low > WIDE:
        width = 100 * (interval.high - interval.low)
        found.append(
            f"Only {counted(metrics.images, 'image')}: the interval of AP is {width:.0f} points wide. "
            "Differences smaller than that may be chance; evaluate on more images, or compare pairwise."
        )
    if metrics.unmatched_classes:
        names = ", ".join(map(name, metrics.unmatched_classes[:5]))
        more = len(metrics.unmatched_classes) - 5
        found.append(
            f"{counted(len(metrics.unmatched_classes), 'class', 'classes')} of the model not in the data set, not "
            f"measured: {names}{f' and {more} more' if more > 0 else ''}."
        )
    return found


def operating_point(evaluation: Evaluation) -> tuple[float, float, float, float] | None:
    """Return threshold, precision, recall and F1 of the best F1 of all classes; None where there is none.

    Counted anew, since the threshold may lie between two points of the curves.
    """
    curves, matches = evaluation.curves, evaluation.matches
    if curves is None or curves.best_score[0] == UNDEFINED:
        return None
    score = float(curves.best_score[0])
    taken = (matches.found.scores >= score) & ~matches.ignored[0]
    right = int((taken & matches.correct[0]).sum())
    precision, recall = right / max(int(taken.sum()), 1), right / max(int(matches.measured.sum()), 1)
    return score, precision, recall, float(curves.best_f1[0])


def _how_good(evaluation: Evaluation) -> str:
    metrics = evaluation.metrics
    interval = None if evaluation.intervals is None else evaluation.intervals.values.get("AP")
    sure = ""
    if interval is not None and evaluation.intervals is not None:
        sure = f" ({100 * evaluation.intervals.confidence:g} % interval {range_of(interval)})"
    return (
        f"AP is {percent(metrics['AP'])}{sure}, AP50 {percent(metrics['AP50'])}, on "
        f"{counted(metrics.images, 'image')} with {counted(metrics.objects, 'object')}."
    )


def _masks(evaluation: Evaluation) -> list[str]:
    sentences = []
    if evaluation.masks is not None:
        sentences.append(
            f"AP of masks is {percent(evaluation.masks['AP'])}, AP50 {percent(evaluation.masks['AP50'])}."
        )
    panoptic = evaluation.panoptic
    if panoptic is not None:
        values = {name: percent(value) for name, value in panoptic.metrics.values.items()}
        text = "PQ is {PQ} (things {PQ_th}, stuff {PQ_st}): SQ {SQ}, RQ {RQ}".format(**values)
        if panoptic.losses:
            first = max(panoptic.losses, key=lambda kind: panoptic.losses[kind])
            text += f"; most, {100 * panoptic.losses[first]:.1f} points, is lost to {LOSS_NAMES[first]}"
        sentences.append(f"{text}.")
        if not any(entry.found or entry.false for entry in panoptic.metrics.per_class):
            sentences.append(
                "The panoptic pictures are empty: no query scores more than masks.panoptic_score of the config; "
                '"detrkit thresholds" tries others.'
            )
    return sentences


def _threshold(evaluation: Evaluation) -> str:
    point = operating_point(evaluation)
    if point is None:
        return ""
    score, precision, recall, f1 = point
    return (
        f"At a score threshold of {score:.2f}, the best balance (F1 {f1:.2f}), {100 * recall:.0f} % of the "
        f"objects are found and {100 * precision:.0f} % of the detections are right."
    )


def _costs(evaluation: Evaluation) -> str:
    errors = evaluation.errors
    if errors is None:
        return ""
    ranked = sorted(ERROR_NAMES, key=lambda name: -errors.cost[name])
    first, second = ranked[:2]
    if errors.cost[first] < 0.0005:
        return "No kind of error costs anything worth naming."
    text = (
        f"Most is lost to {_kind(first)}: without such errors AP50 would be {100 * errors.cost[first]:.1f} points "
        "higher"
    )
    if errors.cost[second] >= 0.0005:
        text += f"; next comes {_kind(second)} ({100 * errors.cost[second]:.1f})"
    return text + "."


def _kind(name: str) -> str:
    words = {"both": "wrong class and place together", "missed": "missed objects"}
    return words.get(name, f"{name} errors")


def _classes(evaluation: Evaluation, name: Callable[[str], str]) -> str:
    known = [entry for entry in evaluation.per_class if entry.objects >= FEW_OBJECTS]
    if len(known) < 3:
        return ""
    best, worst = max(known, key=lambda entry: entry.AP), min(known, key=lambda entry: entry.AP)
    ends = percent(best.AP), percent(worst.AP)
    if ends[0] == ends[1]:
        text = f"All {len(known)} classes of {FEW_OBJECTS} objects or more have an AP of {ends[0]}"
    else:
        text = f"{name(best.name)} fares best (AP {ends[0]}), {name(worst.name)} worst ({ends[1]})"
    confused = most_confused(evaluation, 1)
    if confused and confused[0][2] > 1:
        truth, taken, count = confused[0]
        text += f"; {name(truth)} is most often taken for {name(taken)} ({count:,} times)"
    return text + "."


def _sizes(evaluation: Evaluation) -> str:
    small, large = evaluation["APs"], evaluation["APl"]
    if UNDEFINED in (small, large) or large - small < 0.1:
        return ""
    count = evaluation.objects_by_size()["small"]
    return (
        f"Small objects ({count:,}, under 32 x 32 pixels) have an AP of {percent(small)} against {percent(large)} "
        "for large ones."
    )


def _calibration(evaluation: Evaluation) -> str:
    found = evaluation.calibration
    if found is None or found.ece < MISCALIBRATED:
        return ""
    gap = float((found.counts * (found.confidence - found.accuracy))[found.counts > 0].sum() / found.counts.sum())
    high = "too high" if gap > 0 else "too low"
    return (
        f"Scores do not mean what they say: they are off by {found.ece:.2f} on average, mostly {high}. "
        '"detrkit thresholds --calibrate" mends that.'
    )


def _labels(evaluation: Evaluation) -> str:
    curves = evaluation.curves
    if curves is None or curves.best_f1[0] < JUDGE:
        return ""
    suspects = () if evaluation.failures is None else evaluation.failures.label_issues
    likely = sum(suspect.rank >= LIKELY for suspect in suspects)
    if not likely:
        return ""
    return f"{counted(likely, 'label')} may be wrong or missing: look at the labels to check before training on."
