"""``detrkit.evaluate``: measure whatever detects on a split, with everything that explains the result."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from PIL import Image
from torch import Tensor

from detrkit.api.common import Source
from detrkit.config import Config, PixelRange, Precision
from detrkit.data.coco import CocoDataset
from detrkit.data.formats import find_split
from detrkit.data.split import Split, crowded_images, missing_objects, unknown_classes
from detrkit.detectors.detector import Detector
from detrkit.detectors.find import find_target
from detrkit.detectors.measure_latency import measure_latency, with_decode
from detrkit.detectors.on_split import EvalTarget, bind_target, collect, masks_left_out, notes_of, read_split_for
from detrkit.detectors.results import PANOPTIC_FILE, ResultsFile, write_panoptic_results
from detrkit.detectors.stages import ModelStages, Stages
from detrkit.detectors.tiles import in_tiles
from detrkit.errors import DataError, DetrkitError, UsageError
from detrkit.evaluation.analysis import Evaluation, Origin, Progress, analyze, check_resamples
from detrkit.evaluation.bootstrap import RESAMPLES
from detrkit.evaluation.evaluator import read_ground_truth
from detrkit.evaluation.panoptic import SAMPLE, PanopticMetrics
from detrkit.evaluation.report import FILES, write_evaluation
from detrkit.evaluation.truth import CocoTruth
from detrkit.files import make_folder
from detrkit.latency import Latency
from detrkit.ops.pixel_range import FULL
from detrkit.training.run import Say

_TURNED = ("exif_ignored", "box_turned")  # faults whose boxes reading puts elsewhere
_MOST_PIXELS = 100e6  # of all images held for timing: 300 MB


def evaluate(
    model: Source | EvalTarget,
    data: Source | None = None,
    *,
    image_folder: Source | None = None,
    split: str = "val",
    out: Source | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    precision: Precision = "32",
    preset: str | None = None,
    explain: bool = True,
    resamples: int = RESAMPLES,
    latency_images: int = 0,
    tiles: str | int | None = None,
    say: Say = lambda _message: None,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure a model on a data set: all 12 COCO numbers, how sure they are, and what explains them.

    A model with masks is measured by these too, and on panoptic data by panoptic quality.

    Args:
        model: Model, as :func:`detrkit.detectors.find.find_target` takes it.
        data: Folder of the data set, or one COCO JSON file; the run's own if the model is a run.
        image_folder: Folder of the images of ``data``, where they lie elsewhere.
        split: Name of the split.
        out: Folder for the report, ``metrics.json``, ``detections.json`` (COCO result format, with RLE of masks),
            on panoptic data ``panoptic.json`` with a folder of PNG files, and the rest; if not given, nothing is
            written.
        batch_size: Images at once; the numbers do not depend on it.
        device: Device, as in :func:`load`.
        precision: Precision, as in :func:`load`.
        preset: Preset the weights are for, where the file cannot tell.
        explain: True to find out why; otherwise only the numbers and their intervals.
        resamples: Resamples of the bootstrap behind the intervals; 0 for none.
        latency_images: Images to time the model on, one by one; 0 for none. A file of detections is not timed.
        tiles: Cut images into tiles; see :meth:`detrkit.detectors.tiles.Tiles.parse`.
        say: Called with messages for people.
        progress: Called with what is being done, steps done and steps in all.

    Returns:
        ``evaluation["AP"]``, ``evaluation.per_class[0]``, and the parts that explain.

    Raises:
        DataError: No class of the model is a class of the split, or an image cannot be read.
        UsageError: The model or split is nothing that is known, or ``resamples`` are too few.
    """
    check_resamples(resamples)
    # the model and the data, and what a person should know of them
    target = in_tiles(find_target(model, preset, device, precision), tiles, batch_size)
    part, where = read_split_for([target], split, data, image_folder=image_folder, masks=True)
    panoptic = (PANOPTIC_FILE,) if target.has_masks and part.files.format == "panoptic" else ()
    folder = None if out is None else make_folder(out, *(FILES if explain else FILES[:-4]), *panoptic)
    target = bind_target(target, part)
    own = getattr(target, "config", None)
    crowded = [] if own is None or tiles is not None else crowded_images(part, own.model.num_queries)
    for line in [*part.lines(), *missing_objects(part), *unknown_classes(target.class_map, part), *crowded]:
        say(line)
    # all detections, then their numbers and reasons
    tell = None if progress is None else lambda done: progress("evaluating", done, len(part.index))
    evaluator = collect(target, part, batch_size=batch_size, progress=tell)
    latency = None
    if latency_images > 0 and target.stages is not None:
        latency = _latency(target.stages, part, latency_images, progress)
    pictures = SplitPictures(part, FULL if own is None else own.data.pixel_range)
    origin = origin_of(target, part, where, split)
    evaluation = analyze(
        evaluator,
        origin=dataclasses.replace(origin, notes=(*origin.notes, *masks_left_out(target, part))),
        explain=explain,
        resamples=resamples,
        file_names=pictures.file_names,
        read_image=pictures.read,
        latency=latency,
        progress=progress,
        as_stored=_as_stored(part, evaluator.truth),
    )
    if folder is not None:
        write_evaluation(folder, evaluation, evaluator)
        if evaluator.has_panoptic:
            write_panoptic_results(folder / PANOPTIC_FILE, evaluator, pictures.file_names)
    return evaluation


def panoptic_quality(
    model: Source | EvalTarget,
    data: Source | None = None,
    *,
    image_folder: Source | None = None,
    split: str = "val",
    batch_size: int | None = None,
    device: str = "auto",
    precision: Precision = "32",
    preset: str | None = None,
    say: Say = lambda _message: None,
    progress: Progress | None = None,
) -> PanopticMetrics:
    """Measure PQ, SQ and RQ alone, the numbers of :func:`evaluate`; of files by hotcoco's own reader.

    Args:
        model: Model with masks, or a file of panoptic pictures (COCO panoptic).
        data: Folder of a panoptic data set, or its JSON file; the run's own if the model is a run.
        image_folder: Folder of the images of ``data``, where they lie elsewhere.
        split: Name of the split.
        batch_size: Images at once; the numbers do not depend on it.
        device: Device, as in :func:`load`.
        precision: Precision, as in :func:`load`.
        preset: Preset the weights are for, where the file cannot tell.
        say: Called with messages for people.
        progress: Called with what is being done, steps done and steps in all.

    Returns:
        ``found.values["PQ"]``, ``found.per_class``.

    Raises:
        DataError: No class of the model is a class of the split, or a picture cannot be read.
        UsageError: There are no panoptic pictures, or the data set has none.
    """
    target = find_target(model, preset, device, precision)
    part, _ = read_split_for([target], split, data, image_folder=image_folder, masks=True)
    if part.files.format != "panoptic" or not target.has_stuff:
        raise UsageError(
            f"there is no panoptic quality of {target.name} on {part.files.annotations} ({part.files.reason}); "
            "expected a model with stuff or a file of panoptic pictures, and data of COCO panoptic"
        )
    target = bind_target(target, part)
    for line in [*part.lines(), *unknown_classes(target.class_map, part), *notes_of(target)]:
        say(line)
    if isinstance(target, ResultsFile):
        if len(part.index) > SAMPLE:
            say(f"no more than {SAMPLE} annotated pictures, evenly spread, are held against their entries")
        try:
            return target.measure_files(part)
        except (ValueError, OSError) as error:
            say(f"reading the pictures mask by mask, which takes longer, since not all is as expected: {error}")
    tell = None if progress is None else lambda done: progress("evaluating", done, len(part.index))
    return collect(target, part, batch_size=batch_size, progress=tell).finish_panoptic()


class SplitPictures:
    """The images of a split, in the order in which evaluation has them.

    Args:
        split: Split.
        pixel_range: Values of 16- and 32-bit images that become black and white.
    """

    def __init__(self, split: Split, pixel_range: PixelRange = FULL):
        order = np.argsort(np.asarray(split.index.image_ids, dtype=np.int64), kind="stable")
        self._rows: list[int] = order.tolist()
        self._dataset = CocoDataset(split.index, split.files.images, None, pixel_range=pixel_range)
        self.file_names = [split.index.file_name(row) for row in self._rows]

    def read(self, row: int) -> np.ndarray | None:
        """Return an image in the annotations' pixels, uint8 ``[H, W, 3]``; None if it cannot be read.

        Args:
            row: Row of the truth's images.
        """
        try:
            image: np.ndarray = self._dataset.read_image(self._rows[row]).permute(1, 2, 0).numpy()
        except (DataError, OSError, ValueError):  # missing, damaged, outside the folder, a name that cannot be
            return None
        height, width = self._dataset.index.sizes_hw[self._rows[row]].tolist()
        if 0 in (height, width) or image.shape[:2] == (height, width):
            return np.ascontiguousarray(image)
        return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def origin_of(subject: EvalTarget, split: Split, data: str = "", split_name: str = "") -> Origin:
    """Return what is known of where a result comes from.

    Args:
        subject: Detector.
        split: Images.
        data: Name of the data set.
        split_name: Name of the split.
    """
    config = subject.config if isinstance(subject, Detector) else None
    settings: dict[str, str | int | float | bool | None] = {}
    stages = getattr(subject.stages, "stages", subject.stages)  # of tiles
    if config is not None and isinstance(stages, ModelStages):
        settings = {
            "preset": config.model.preset,
            "precision": stages.precision,
            "device": str(stages.device),
            "image size": f"{config.transforms.eval_size}, at most {config.transforms.max_size}",
        }
    if isinstance(subject, Detector) and subject.has_masks:
        settings |= {"mask threshold": subject.masks.threshold, "panoptic score": subject.masks.panoptic_score}
    annotations, seen = split.files.annotations, config is not None and _trained_on(config, split)
    named = data or str(annotations.parent)
    notes = (*notes_of(subject), *_departures(split))
    return Origin(subject.name, subject.kind, named, split_name, annotations, seen, settings, notes)


def _departures(split: Split) -> list[str]:
    """Return where the annotations that are measured on cannot be those of the untouched file."""
    missing = split.report.count("box_missing") + split.report.count("box_not_finite")
    turned = {kind: split.report.count(kind) for kind in _TURNED}
    notes = []
    if missing:
        notes.append(
            f"{missing:,} annotations without a box of four numbers are left out; pycocotools stops at them, so "
            "that the untouched file has no AP."
        )
    if any(turned.values()):
        notes.append(
            f"Boxes of {turned['exif_ignored']:,} images are turned upright as EXIF turns their pictures, and "
            f"{turned['box_turned']:,} boxes by their own angle; detections on pictures as stored do not fit them."
        )
    return notes


def _as_stored(split: Split, truth: CocoTruth) -> CocoTruth | None:
    """Return the annotations of a COCO file with the boxes as stored, if reading turned some of them."""
    if split.files.format != "coco" or not any(split.report.count(kind) for kind in _TURNED):
        return None
    try:
        stored = read_ground_truth(split.files.annotations)
    except DataError:  # pycocotools cannot read it either
        return None
    same = np.array_equal(stored.image_ids, truth.image_ids) and stored.class_map.names == truth.class_map.names
    return stored if same else None


def _trained_on(config: Config, split: Split) -> bool:
    """Return True if a run's training images are those of a split."""
    if config.data.root is None and config.data.train_annotations is None:
        return False
    try:
        own = find_split(config.data.root, config.data.train_split, config.data)
    except DetrkitError:  # the data set has moved: nothing is known
        return False
    return (own.annotations.resolve(), own.listings) == (split.files.annotations.resolve(), split.files.listings)


def _latency(stages: Stages, split: Split, count: int, progress: Progress | None) -> Latency:
    """Time stages on images taken evenly from the split."""
    dataset = CocoDataset(split.index, split.files.images, None, on_bad_image="error")
    rows = np.unique(np.linspace(0, len(split.index) - 1, min(count, len(split.index))).astype(int)).tolist()
    images: list[Tensor] = []
    for row in rows:
        images.append(dataset.read_image(row))
        if sum(image.shape[-2] * image.shape[-1] for image in images) > _MOST_PIXELS:
            break
    tell = None if progress is None else functools.partial(progress, "timing")
    latency = measure_latency(stages, images, repeats=1, progress=tell)
    return with_decode(latency, [dataset.images / split.index.file_name(row) for row in rows[: len(images)]])
