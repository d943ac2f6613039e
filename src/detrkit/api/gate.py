"""``detrkit.gate``: decide whether a new model may follow a released one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from detrkit.api.common import Say, Source
from detrkit.api.compare import LATENCY_IMAGES, Progress, compare
from detrkit.comparison.release_gate import GateCheck, GateResult, GateRule, check_comparison, check_least_ap
from detrkit.detectors.find import find_target
from detrkit.detectors.on_split import bind_target, collect, read_split_for
from detrkit.errors import UsageError
from detrkit.evaluation.bootstrap import RESAMPLES
from detrkit.evaluation.coco import CocoMetrics
from detrkit.evaluation.truth import ground_truth_from_index
from detrkit.files import free_name


def gate(
    new: Source,
    old: Source | None = None,
    data: Source | Sequence[Source] = (),
    *,
    split: str = "val",
    out: Source = "gate",
    min_ap: float | None = None,
    max_loss: float | None = None,
    max_slowdown: float | None = 10.0,
    resamples: int = RESAMPLES,
    latency_images: int = LATENCY_IMAGES,
    device: str = "auto",
    say: Say = lambda _message: None,
    progress: Progress | None = None,
) -> GateResult:
    """Decide whether a model may follow a released one: not worse beyond chance on any data set, and not slower.

    All classes of the data count: one that the new model does not know any more costs it AP.

    Args:
        new: The new model: run, checkpoint, bundle, or anything else that :func:`compare` takes.
        old: The released model; None for a first release, which needs ``min_ap``.
        data: A data set, or several.
        split: Split of each.
        out: Folder for the comparison on each data set; see :func:`compare`.
        min_ap: Least AP on every data set, in points.
        max_loss: AP points that the new model may have less at the worse end of the 95 % interval. None stops only
            a model that is worse beyond chance, which too few images never show.
        max_slowdown: Percent that the median time of an image may be longer; None leaves the speed unchecked.
        resamples: Resamples of the images, for intervals.
        latency_images: Images to time on, the models taking turns.
        device: Device, as in :func:`detrkit.load`.
        say: Called with messages for people.
        progress: Called with what is being done, how much of it is done, and how much there is.

    Returns:
        ``result.passed``, ``checks`` with their reasons, ``notes``.

    Raises:
        UsageError: No data, or nothing that could be checked.
        DetrkitError: A model cannot be loaded or run, or the data cannot be read.
    """
    sets = [data] if isinstance(data, str | os.PathLike) else list(data)
    if not sets:
        raise UsageError("there is no data to measure on; give a data set, or several, with --data")
    if old is None and min_ap is None:
        raise UsageError(
            "there is no released model to compare with; for a first release give the least AP: --min-ap"
        )
    rule = GateRule(min_ap, max_loss, max_slowdown)
    checks: list[GateCheck] = []
    notes: list[str] = []
    names: list[str] = []
    metrics: dict[str, CocoMetrics] = {}
    for each in sets:
        name = free_name(Path(each).resolve().name or os.fspath(each), names)
        names.append(name)
        say(f"{name}:")
        if old is None:
            metrics[name], has_masks = _measure(new, each, split, device, say, progress)
            if has_masks:
                notes.append(f"{name}: least AP is that of boxes; masks are held against a released model's alone")
            checks += check_least_ap(name, metrics[name].values["AP"], rule)
            continue
        comparison = compare(
            [old, new],
            each,
            split=split,
            out=Path(out) / name,
            classes="all",
            resamples=resamples,
            latency_images=0 if max_slowdown is None else latency_images,
            device=device,
            say=say,
            progress=progress,
        )
        found, told = check_comparison(name, comparison, rule)
        checks += found
        notes += told
        metrics[name] = comparison.models[1].metrics
    former = None if old is None else os.fspath(old)
    numbers = {name: found.to_dict() for name, found in metrics.items()}
    return GateResult(os.fspath(new), former, tuple(checks), tuple(notes), numbers)


def _measure(
    model: Source, data: Source, split: str, device: str, say: Say, progress: Progress | None
) -> tuple[CocoMetrics, bool]:
    """Measure a model alone, on all classes of the data; True with it if it has masks, which are not measured."""
    target = find_target(model, device=device)
    part, _ = read_split_for([target], split, data)
    bound = bind_target(target, part)
    for line in part.lines():
        say(line)
    count = len(part.index)
    truth = ground_truth_from_index(part.index)
    tell = None if progress is None else lambda done: progress(f"detecting with {target.name}", done, count)
    return collect(bound, part, truth=truth, progress=tell).finish(), target.has_masks
