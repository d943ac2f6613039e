"""``detrkit.compare``: measure several detectors on the same images, and say how sure the differences are."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from torch import Tensor

from detrkit.api.common import Say, Source
from detrkit.comparison.classes import ComparedClasses, Which, choose_classes
from detrkit.comparison.detections import FOLDER, MANIFEST, DetectionStore, file_stems
from detrkit.comparison.images import compare_images, operate
from detrkit.comparison.result import Comparison, ModelResult, PairwiseComparison
from detrkit.comparison.write import FILES, write_comparison
from detrkit.config import Precision
from detrkit.data.coco import CocoDataset
from detrkit.data.split import Split, missing_objects
from detrkit.detectors.cost import Cost, count_cost
from detrkit.detectors.detector import Detector
from detrkit.detectors.find import find_target
from detrkit.detectors.measure_latency import Stopwatch
from detrkit.detectors.on_split import EvalTarget, bind_target, masks_left_out, notes_of, read_split_for
from detrkit.detectors.tiles import in_tiles
from detrkit.errors import DetrkitError, UsageError
from detrkit.evaluation.bootstrap import RESAMPLES, paired_bootstrap
from detrkit.evaluation.truth import ground_truth_from_index
from detrkit.files import free_name, make_folder
from detrkit.latency import Latency

Progress = Callable[[str, int, int], None]

LATENCY_IMAGES = 10

_LATENCY_ROUNDS = 3


def compare(
    models: Sequence[Source],
    data: Source | None = None,
    *,
    split: str = "val",
    image_folder: Source | None = None,
    out: Source = "compare",
    classes: Which = "shared",
    reference: Literal["first", "best"] = "first",
    resamples: int = RESAMPLES,
    latency_images: int = LATENCY_IMAGES,
    batch_size: int | None = None,
    tiles: str | int | None = None,
    device: str = "auto",
    precision: Precision = "32",
    say: Say = lambda _message: None,
    progress: Progress | None = None,
) -> Comparison:
    """Measure several detectors on the same images by the same evaluator, and say how sure the differences are.

    Args:
        models: Two or more, each anything that :func:`detrkit.load` takes, ``torchvision:NAME``, ``hf:ID`` or a
            COCO result file. Of files alone, the images need not be there.
        data: Folder of the data set in any layout, or one COCO JSON file; that of the first run if not given.
        split: Name of the split.
        image_folder: Folder of the images of ``data``, where they lie elsewhere.
        out: Folder for ``compare.html``, ``compare.json``, ``compare.md``, ``compare.csv``, ``classes.csv``,
            ``images.csv`` and the detections of each. Detections that are there already, of the same weights on
            the same images, are not made again.
        classes: shared: measure on the classes that all of them know; all: on all of the data set's.
        reference: Model that the others are compared with: the first given, or the one with the highest AP.
        resamples: Resamples of the images, for intervals.
        latency_images: Images to time on, 0 for none; batches of one, the detectors taking turns.
        batch_size: Images at once where detecting.
        tiles: Cut images into tiles, for all of them; see :meth:`detrkit.detectors.tiles.Tiles.parse`.
        device: Device, as in :func:`detrkit.load`.
        precision: Precision, as in :func:`detrkit.load`.
        say: Called with messages for people.
        progress: Called with what is being done, how much of it is done, and how much there is.

    Raises:
        UsageError: Fewer than two models, or one of them is nothing that is known.
        DetrkitError: A model cannot be loaded or run, or the data cannot be read.
    """
    _check(models, latency_images, classes, reference)
    progress = progress or (lambda *_step: None)
    # the models under names that differ, the data, and the classes to compare on
    names: list[str] = []
    for model in models:
        names.append(free_name(os.fspath(model), names, "{} ({})"))
    found = _find(models, names, device, precision, progress)
    found = [in_tiles(one, tiles, batch_size) if isinstance(one, Detector) else one for one in found]
    part, _ = read_split_for(found, split, data, image_folder=image_folder, masks=True)
    kept = [f"{FOLDER}/{name}" for name in (MANIFEST, *(f"{stem}.json" for stem in file_stems(names)))]
    folder = make_folder(out, *FILES, *kept)
    subjects = [bind_target(subject, part) for subject in found]
    chosen = choose_classes(subjects, ground_truth_from_index(part.index), classes)
    notes = chosen.lines(names)
    masks = "Who is better is said of boxes; masks and panoptic quality stand beside them in the table."
    for line in [
        *part.lines(),
        *([masks] if any(subject.has_masks for subject in subjects) else []),
        *missing_objects(part),
        *notes,
        *(note for subject in subjects for note in (*notes_of(subject), *masks_left_out(subject, part))),
    ]:
        say(line)
    # speed first, which shows that all of them run; then the long work
    speeds = _measure_speed(subjects, part, latency_images, progress)
    results = _detect(subjects, models, chosen, DetectionStore(folder, part), speeds, batch_size, say, progress)
    about = (str(part.files.annotations), split, len(part.index), results[0].metrics.objects)
    classes_compared = (chosen.truth.class_map, chosen.left_out, tuple(notes))
    pairs = tuple(_pairs(results, reference, resamples, progress))
    comparison = Comparison(*about, *classes_compared, tuple(results), pairs, 0.95, resamples)
    write_comparison(comparison, folder, part)
    return comparison


def _check(models: Sequence[Source], latency_images: int, classes: str, reference: str) -> None:
    if isinstance(models, str | os.PathLike) or len(models) < 2:
        count = 1 if isinstance(models, str | os.PathLike) else len(models)
        raise UsageError(f"{count} model to compare, expected two or more; one alone: detrkit eval MODEL")
    for name, value, expected in (
        ("classes", classes, ("shared", "all")),
        ("reference", reference, ("first", "best")),
    ):
        if value not in expected:
            raise UsageError(f"{name} is {value!r}, expected {' or '.join(expected)}")
    if latency_images < 0:
        raise UsageError(f"latency_images is {latency_images}, expected 0 or more")


def _find(
    models: Sequence[Source], names: Sequence[str], device: str, precision: Precision, progress: Progress
) -> list[EvalTarget]:
    """Load all of them, before the work begins that may take hours."""
    subjects: list[EvalTarget] = []
    for done, (model, name) in enumerate(zip(models, names, strict=True)):
        progress(f"loading {name}", done, len(models))
        subject = find_target(model, device=device, precision=precision)
        subject.name = name
        subjects.append(subject)
    return subjects


def _measure_speed(
    subjects: Sequence[EvalTarget], split: Split, count: int, progress: Progress
) -> list[tuple[Cost | None, Latency | None]]:
    """Measure cost of each, and latency if images for it are wanted; also shows that each of them runs."""
    rows = np.unique(np.linspace(0, len(split.index) - 1, max(count, 1)).round().astype(int))
    dataset = CocoDataset(split.index, split.files.images, None, on_bad_image="error")
    runs = len(split.index) > 0 and any(subject.stages is not None for subject in subjects)
    images = [dataset.read_image(int(row)) for row in rows] if runs else []
    costs: list[Cost | None] = []
    for done, subject in enumerate(subjects):
        progress(f"trying {subject.name}", done, len(subjects))
        costs.append(_cost(subject, images[0]) if subject.stages is not None and images else None)
    latencies = _time(subjects, images, progress) if count and images else [None] * len(subjects)
    return list(zip(costs, latencies, strict=True))


def _cost(subject: EvalTarget, image: Tensor) -> Cost:
    assert subject.stages is not None
    try:
        return count_cost(subject.stages, image)
    except DetrkitError:
        raise
    except (RuntimeError, ValueError, TypeError) as error:
        message = f"{subject.name} was loaded but cannot detect: {error}; nothing was compared"
        raise DetrkitError(message) from error


def _time(subjects: Sequence[EvalTarget], images: Sequence[Tensor], progress: Progress) -> list[Latency | None]:
    """Time each; they take turns, so that what slows the machine for a while slows all alike."""
    watches = {
        place: Stopwatch(subject.stages, images)
        for place, subject in enumerate(subjects)
        if subject.stages is not None
    }
    for done, watch in enumerate(watches.values()):
        progress("warming up", done, len(watches))
        watch.warm_up()
    runs = _LATENCY_ROUNDS * len(images)
    for done in range(runs):
        progress("timing", done, runs)
        for watch in watches.values():
            watch.run()
    return [watches[place].read() if place in watches else None for place in range(len(subjects))]


def _detect(
    subjects: Sequence[EvalTarget],
    sources: Sequence[Source],
    chosen: ComparedClasses,
    store: DetectionStore,
    speeds: Sequence[tuple[Cost | None, Latency | None]],
    batch_size: int | None,
    say: Say,
    progress: Progress,
) -> list[ModelResult]:
    results = []
    count = len(store.split.index)
    stems = file_stems([subject.name for subject in subjects])
    for subject, source, stem, (cost, latency) in zip(subjects, sources, stems, speeds, strict=True):
        name = subject.name
        tell = functools.partial(_of_images, progress, f"detecting with {name}", count)
        evaluator, reused, panoptic = store.obtain(subject, stem, chosen.truth, batch_size, tell)
        if reused:
            say(f"{name}: detections of an earlier comparison, by the same weights on the same images, are used")
        metrics, matches = evaluator.finish(), evaluator.matches()
        masks = evaluator.finish(masks=True) if evaluator.has_masks else None
        about = (name, os.fspath(source), subject.kind, metrics, matches, latency, cost, reused)
        results.append(ModelResult(*about, masks, panoptic))
    return results


def _pairs(
    models: Sequence[ModelResult], reference: str, resamples: int, progress: Progress
) -> list[PairwiseComparison]:
    """Compare each with the first one, or with the one of the highest AP (of equals the first)."""
    first = models[0] if reference == "first" else max(models, key=lambda model: model.metrics["AP"])
    operation = operate(first.matches)
    pairs: list[PairwiseComparison] = []
    for second in models:
        if second is not first:
            progress("resampling", len(pairs), len(models) - 1)
            differences = paired_bootstrap(first.matches, second.matches, resamples)
            images = compare_images(first.matches, operation, operate(second.matches))
            pairs.append(PairwiseComparison(first, second, differences, images))
    return pairs


def _of_images(progress: Progress, what: str, count: int, done: int) -> None:
    progress(what, done, count)
