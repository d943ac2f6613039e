"""The verbs of detrkit as Python calls: load, train, resume, evaluate, predict, export. Thin and typed."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from detrkit.api.evaluate import evaluate_subject, origin_of
from detrkit.api.thresholds import own_thresholds, place_of_thresholds
from detrkit.config import Config, Precision, update_config
from detrkit.data.split import unknown_classes
from detrkit.detectors.detector import Detector, ErrorReport
from detrkit.detectors.interop import write_predictions
from detrkit.detectors.load import find_subject, load_detector
from detrkit.detectors.stages import DetectorSubject, Subject, read_split_for
from detrkit.errors import UsageError
from detrkit.evaluation.analysis import RESAMPLES, Evaluation, Progress
from detrkit.evaluation.report import write_evaluation
from detrkit.families import PRESETS
from detrkit.families.build import CLASSES_SUFFIX, build_model, read_weights
from detrkit.families.recipes import resolve_config
from detrkit.families.registry import build_criterion, get_family
from detrkit.files import atomic_file, make_folder
from detrkit.preflight.run import run_preflight
from detrkit.preflight.verdict import Verdict
from detrkit.threshold_file import Thresholds, read_thresholds, write_thresholds
from detrkit.training.loop import FitResult
from detrkit.training.nonfinite.diagnosis import Diagnosis
from detrkit.training.nonfinite.replay import find_step, read_step, replay_step
from detrkit.training.run import Say, resume_run, start_run
from detrkit.visual.drawing import save_drawing

if TYPE_CHECKING:
    import supervision as sv

    from detrkit.detectors.sources import ImageSource

Source = str | os.PathLike[str]

logger = logging.getLogger(__name__)


def load(
    source: Source,
    model: str | None = None,
    *,
    device: str = "auto",
    precision: Precision = "32",
    padding: Literal["exact", "published"] | None = None,
) -> Detector:
    """A detector from a preset name, a run, a checkpoint, a published file, a hub folder or id, or an address.

    That of a run for which thresholds were chosen has them as its ``thresholds``, and predicts with them.

    Args:
        source: What to load; ``"detr-r50"`` fetches the published weights.
        model: Preset the weights are for, where the file cannot tell: DC5 changes no tensor's shape.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:1``.
        precision: ``32``, or ``bf16`` or ``16`` for mixed precision.
        padding: ``exact``: an image gives the same detections alone and in any batch. ``published``: what the
            authors' code does with padding, under which batch size changes detections. None: as configured.

    Raises:
        UsageError: The source is nothing that is known.
        WeightsError: The weights cannot be fetched, are damaged, or are of another model.
    """
    detector = load_detector(source, model, device=device, precision=precision, padding=padding)
    file = own_thresholds(source)
    if file is not None:
        detector.thresholds = read_thresholds(file, detector.class_map)
    return detector


def train(
    model: str = "detr-r50",
    data: Source | None = None,
    *,
    run: Source | None = None,
    config: str | Path | None = None,
    init: Source | None = None,
    epochs: int | None = None,
    batch_size: int | Literal["auto"] | None = None,
    lr: float | None = None,
    recipe: Literal["auto", "plain", "fast"] | None = None,
    changes: Mapping[str, Any] | None = None,
    go_on: bool = False,
    ray_workers: int | None = None,
    say: Say = print,
) -> FitResult:
    """Train on a COCO-format data set; returns the run, which every other verb takes as a model.

    Args:
        model: Preset to train.
        data: Folder of the data set, in any layout that is read.
        run: Folder for the run; ``runs/MODEL-1`` and so on if not given.
        config: YAML file over the preset; the arguments here go over both.
        init: Starting weights: ``published``, ``backbone``, ``none``, a path or a hub id.
        epochs: Passes over the training images.
        batch_size: Images a batch and process; ``auto``: as configured, through memory in the largest pieces that
            fit, which changes no gradient.
        lr: Learning rate of everything but the backbone.
        recipe: How to train: ``plain`` as published, ``fast`` to learn from scratch and from little data; ``auto``
            (the default) is ``fast`` where training starts without pretrained weights.
        changes: Any other config values, dotted: ``{"train.ema_decay": 0.999}``.
        go_on: If the run folder holds a training already, go on with that one.
        ray_workers: Train on a Ray cluster, with so many processes; see :mod:`detrkit.training.ray`.
        say: Where messages for people go.

    Raises:
        DetrkitError: Anything that config, data, weights or training have to complain about.
    """
    given = {
        "data.root": None if data is None else os.fspath(data),
        "train.init": None if init is None else os.fspath(init),
        "train.epochs": epochs,
        "train.batch_size": None if batch_size == "auto" else batch_size,
        "train.micro_batch": "auto" if batch_size == "auto" else None,
        "train.lr": lr,
        "train.recipe": recipe,
    }
    resolved = _resolved(model, config, changes, given)
    if resolved.data.root is None and resolved.data.train_annotations is None:
        raise UsageError(
            "no data given; give the folder of a data set (--data DATA), or set data.train_annotations and "
            "data.val_annotations"
        )
    run_dir = Path(run) if run is not None else _next_run(resolved.model.preset)
    if ray_workers is not None:
        from detrkit.training.ray import train_on_ray

        return train_on_ray(resolved, run_dir, num_workers=ray_workers, go_on=go_on, say=say)
    return start_run(resolved, run_dir, say, go_on=go_on)


def preflight(
    model: str = "detr-r50",
    data: Source | None = None,
    *,
    config: str | Path | None = None,
    init: Source | None = None,
    lr: float | None = None,
    changes: Mapping[str, Any] | None = None,
    out: Source = "preflight",
    seconds: float = 15.0,
    say: Say = print,
) -> Verdict:
    """Will it learn? What can be known of a training in about a minute, with a verdict and its reasons.

    Args:
        model: Preset to train; or a run, checkpoint or weights file, to go on with as it is.
        data: Folder of the data set, in any layout that is read.
        config: As for :func:`train`.
        init: As for :func:`train`.
        lr: As for :func:`train`.
        changes: As for :func:`train`.
        out: Folder for preflight.html and verdict.json.
        seconds: To over-fit a handful of images at the training's learning rate.
        say: Where judgements go as they are made.

    Raises:
        UsageError: Model or data are asked for wrongly.
        WeightsError: The starting weights cannot be had.
    """
    given = {
        "data.root": None if data is None else os.fspath(data),
        "train.init": None if init is None else os.fspath(init),
        "train.lr": lr,
    }
    is_preset = model in PRESETS or not Path(model).expanduser().exists()
    base = model if is_preset else read_weights(model)[1].model.preset
    resolved = _resolved(base, config, changes, given)
    trained = None if is_preset else model
    return run_preflight(resolved, Path(out), trained_model=trained, budget_s=seconds, say=say)


def replay(source: Source) -> Diagnosis:
    """Repeat a training step whose loss or gradient was not finite, and find where it began; nothing is trained.

    Args:
        source: A file that training saved (``RUN/nonfinite/step-...pt``), or the run: the first step saved in it.

    Returns:
        Whether the step was repeated bit for bit, and the first module, loss term, weight or box at fault.

    Raises:
        UsageError: There is no such file.
        CheckpointError: It is damaged, or no saved step.
    """
    saved = read_step(find_step(source))
    network = build_model(saved.config, saved.class_map)
    return replay_step(saved, network, build_criterion(saved.config, saved.class_map))


def resume(run: Source, *, epochs: int | None = None, say: Say = print) -> FitResult:
    """Go on with a run from its last checkpoint, as if it had never stopped.

    Args:
        run: The run folder.
        epochs: A new total, to train longer than was planned; schedules stretch accordingly.
        say: Where messages for people go.
    """

    def change(config: Config) -> Config:
        return config if epochs is None else update_config(config, {"train.epochs": epochs})

    return resume_run(Path(run), say, change)


def evaluate(
    model: Source | Detector | Subject,
    data: Source | None = None,
    *,
    split: str = "val",
    out: Source | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    precision: Precision = "32",
    preset: str | None = None,
    explain: bool = True,
    resamples: int = RESAMPLES,
    latency_images: int = 0,
    say: Say = lambda _message: None,
    progress: Progress | None = None,
) -> Evaluation:
    """How good a model is on a data set, how sure that is, and why: all 12 COCO numbers and what explains them.

    Args:
        model: Anything that :func:`load` takes; ``torchvision:NAME``, ``hf:ID`` or a file of detections as
            :func:`detrkit.detectors.load.find_subject` describes; a detector, or a subject.
        data: Folder of the data set, or one COCO JSON file; the run's own if the model is a run.
        split: Name of the split.
        out: Folder for the report, ``metrics.json``, ``detections.json`` (COCO result format) and the rest; if not
            given, nothing is written.
        batch_size: Images at once; the numbers do not depend on it.
        device: As in :func:`load`.
        precision: As in :func:`load`.
        preset: Preset the weights are for, where the file cannot tell.
        explain: Find out why; otherwise only the numbers and their intervals.
        resamples: Of the bootstrap behind the intervals; 0 for none.
        latency_images: Images to time the model on; 0 for none.
        say: Where messages for people go.
        progress: Called with what is being done, steps done and steps in all.

    Returns:
        ``evaluation["AP"]``, ``evaluation.per_class[0]``, and the parts that explain.
    """
    subject = _subject(model, preset, device, precision)
    part, where = read_split_for([subject], split, data)
    folder = None if out is None else make_folder(out)
    subject = subject.bind(part)
    for line in [*part.lines(), *unknown_classes(subject.class_map, part)]:
        say(line)
    evaluation, evaluator = evaluate_subject(
        subject,
        part,
        origin=origin_of(subject, part, where, split),
        batch_size=batch_size,
        explain=explain,
        resamples=resamples,
        latency_images=latency_images,
        progress=progress,
    )
    if folder is not None:
        write_evaluation(folder, evaluation, evaluator)
    return evaluation


def predict(
    model: Source | Detector,
    images: ImageSource | list[ImageSource],
    *,
    threshold: float | Thresholds | None = None,
    out: Source | None = None,
    batch_size: int = 4,
    on_error: ErrorReport | None = None,
) -> list[sv.Detections]:
    """Detections of images, files or folders, drawn and written if ``out`` is given.

    Args:
        model: Anything that :func:`load` takes, or a detector.
        images: See :meth:`detrkit.detectors.detector.Detector.predict`.
        threshold: Least score, or thresholds by class; None: the model's own if it has any, otherwise 0.5.
        out: Folder for one drawn picture per image and ``predictions.json`` in COCO format.
        batch_size: Images at once.
        on_error: Called with name and error of each image that cannot be read, which is then left out.

    Returns:
        One ``supervision.Detections`` per image that could be read.
    """
    detector = model if isinstance(model, Detector) else load(model)
    found: list[sv.Detections] = []
    folder = None if out is None else make_folder(out)
    taken: set[str] = set()
    for item in detector.stream(images, threshold, batch_size, on_error, keep_images=folder is not None):
        found.append(item.detections)
        if folder is not None and item.image is not None:
            save_drawing(folder / _drawing_name(item.source, taken), item.image, item.detections)
    if folder is not None:
        write_predictions(folder / "predictions.json", ((None, detections) for detections in found))
    return found


def export(model: Source, out: Source, *, layout: Literal["published", "hub"], preset: str | None = None) -> Path:
    """Write a model's weights in another layout; the tensors stay bit-equal, its thresholds go with them.

    Args:
        model: Anything that :func:`load` takes.
        out: A ``.pth`` file for ``published``, a folder for ``hub``.
        layout: ``published``: as the DETR authors published theirs. ``hub``: safetensors and config for Hugging
            Face transformers.
        preset: Preset the weights are for, where the file cannot tell.

    Returns:
        The file or folder written.
    """
    weights, config = read_weights(model, preset)
    family = get_family(config.model.family)
    path = Path(out)
    if layout == "published":
        if path.suffix not in (".pth", ".pt"):
            raise UsageError(f"{path} should be a .pth file, since the published layout is one file")
        family.write_published(path, weights.state)
        with atomic_file(path.with_suffix(CLASSES_SUFFIX)) as file:
            file.write(json.dumps(weights.class_map.to_dict(), indent=1) + "\n")
    else:
        family.write_hub(path, weights, config.transforms.eval_size, config.transforms.max_size)
    thresholds = own_thresholds(model)
    if thresholds is not None:
        write_thresholds(place_of_thresholds(path), read_thresholds(thresholds, weights.class_map))
    return path


def _next_run(preset: str) -> Path:
    """The first folder without content; an empty one was made by the first process or a failed training."""
    if int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")):
        raise UsageError("torchrun --max-restarts needs a run to go on with: name its folder with --run DIR")
    number = 1
    while (run_dir := Path("runs") / f"{preset}-{number}").exists() and next(run_dir.iterdir(), None):
        number += 1
    return run_dir


def _drawing_name(source: str, taken: set[str]) -> str:
    """A file name for the drawing of a source; images of the same name in two folders both get one."""
    stem = Path(source).stem or "image"
    name, number = f"{stem}.png", 2
    while name in taken:
        name, number = f"{stem}-{number}.png", number + 1
    taken.add(name)
    return name


def _subject(model: Source | Detector | Subject, preset: str | None, device: str, precision: Precision) -> Subject:
    if isinstance(model, Detector):
        return DetectorSubject(model.config.model.preset, model)
    if isinstance(model, str | os.PathLike):
        return find_subject(model, preset, device=device, precision=precision)
    return model


def _resolved(
    model: str, config: str | Path | None, changes: Mapping[str, Any] | None, given: Mapping[str, Any]
) -> Config:
    """The preset with its recipe, the file over it, then changes, then the arguments that are given."""
    arguments = {key: value for key, value in given.items() if value is not None}
    return resolve_config(model, config, {**(changes or {}), **arguments})
