"""Training runs from a config: data, model and loop put together; where training meets evaluation."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import nn

from detrkit.config import Config, DataConfig, read_config, update_config, write_config
from detrkit.data.cache import ImageCache, find_cache, needed_size
from detrkit.data.coco import CocoDataset
from detrkit.data.device import augments_on_device
from detrkit.data.index import CocoIndex
from detrkit.data.layout import SplitFiles, find_split, find_splits
from detrkit.data.loader import EpochBatchSampler, build_loader
from detrkit.data.read import read_split_files
from detrkit.data.report import ReadReport
from detrkit.data.sampler import EvaluationBatchSampler
from detrkit.data.transforms import eval_transform, train_transform
from detrkit.errors import DataError, UsageError
from detrkit.evaluation.coco import CocoEvaluator, CocoMetrics, match_classes
from detrkit.evaluation.together import collect_together
from detrkit.evaluation.truth import CocoTruth, ground_truth_from_index
from detrkit.families import PRESETS
from detrkit.families.registry import build_criterion, get_family
from detrkit.families.weights import LoadReport
from detrkit.files import atomic_file, is_leftover, make_folder
from detrkit.inference.detect import detect_batches
from detrkit.inference.interop import to_supervision
from detrkit.models import build_model, initialize, is_run, starting_weights
from detrkit.training.checkpoint import CheckpointStore
from detrkit.training.loop import FitResult, fit
from detrkit.training.processes import (
    Peers,
    check_same_state,
    is_restarted,
    leave_processes,
    lost_peers,
    make_fabric,
)
from detrkit.training.run import OnEvaluation
from detrkit.training.state import Progress
from detrkit.training.trackers import check_trackers
from detrkit.training.trial import find_micro_batch
from detrkit.types import ClassMap, ImageDetections
from detrkit.visual.curves import plot_curves
from detrkit.visual.drawing import draw

Say = Callable[[str], None]

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Split:
    """One split of a data set, read.

    Args:
        files: Where it lies and how that was recognised.
        index: Its images and annotations.
        report: What was repaired or left out on reading.
    """

    files: SplitFiles
    index: CocoIndex
    report: ReadReport

    def lines(self) -> list[str]:
        """What people should know of it."""
        head = f"{self.files.annotations}: {len(self.index)} images, {len(self.index.labels)} objects"
        return [f"{head} ({self.files.reason}; images in {self.files.images})", *self.report.lines()]


def read_split(config: Config, split: str, data: str | Path | None = None, *, strict: bool = False) -> Split:
    """Find and read a split.

    Args:
        config: Its ``data`` section says where, unless ``data`` does.
        split: Name of the split.
        data: Folder of the data set in any layout, its data.yaml, or one COCO JSON file.
        strict: A missing image is an error, since evaluation without it would give another number.
    """
    on_bad_image = "error" if strict else config.data.on_bad_image
    if data is not None and Path(data).suffix == ".json" and Path(data).is_file():
        files = next(iter(find_splits(data).values()))  # whatever split it is called
    else:
        files = find_split(data or config.data.root, split, config.data if data is None else DataConfig())
    index, report = read_split_files(files, on_bad_image)
    return Split(files, index, report)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A model at the start of its training.

    Args:
        config: With everything resolved that depends on the weights.
        model: With its starting weights.
        class_map: Of its head.
        report: What became of the weights; None if it starts from random ones.
    """

    config: Config
    model: nn.Module
    class_map: ClassMap
    report: LoadReport | None


def prepare_model(config: Config, train: Split) -> Prepared:
    """The model that a training on a split starts from.

    Raises:
        WeightsError: The starting weights cannot be had.
    """
    config, weights = starting_weights(config)
    class_map = train.index.class_map
    if weights is not None:
        class_map = get_family(config.model.family).match_slots(class_map, weights.class_map)
    torch.manual_seed(config.train.seed)
    model = build_model(config, class_map)
    report = initialize(model, config, weights, class_map)
    return Prepared(config, model, class_map, report)


def training_dataset(config: Config, train: Split, cache: ImageCache | None, device: str) -> CocoDataset:
    """The training images as the loop gets them, for a device such as ``cpu`` or ``cuda``."""
    on_device = augments_on_device(config.transforms, device)
    return CocoDataset(
        train.index,
        train.files.images,
        train_transform(config.transforms, config.train.epochs, on_device=on_device),
        seed=config.train.seed,
        on_bad_image=config.data.on_bad_image,
        enough=needed_size(config.transforms),
        fast_decode=config.data.fast_decode,
        cache=cache,
    )


def start_run(
    config: Config,
    run_dir: Path,
    say: Say,
    *,
    on_evaluation: OnEvaluation | None = None,
    go_on: bool = False,
) -> FitResult:
    """Train from a config in a new run folder.

    Args:
        config: What to train.
        run_dir: The run folder; made if it is not there.
        say: Where messages for people go.
        on_evaluation: As for :func:`detrkit.training.loop.fit`.
        go_on: If the folder holds a run already, go on with that one and its own config.

    Raises:
        UsageError: The folder holds something already, or is none.
        DetrkitError: Anything that data, weights or training have to complain about.
    """
    if run_dir.is_dir() and not all(map(is_leftover, run_dir.iterdir())):
        # torchrun starts a failed training again, by the very same command
        go_on = go_on or is_restarted()
        if go_on and (run_dir / "config.yaml").is_file():
            return resume_run(run_dir, say, on_evaluation=on_evaluation)
        advice = f", or go on with: detrkit resume {run_dir}" if is_run(run_dir) else ""
        raise UsageError(f"{run_dir} is not empty; give another --run{advice}")
    check_trackers(config.train.trackers)
    return _begin_run(config, run_dir, say, on_evaluation)


def _begin_run(config: Config, run_dir: Path, say: Say, on_evaluation: OnEvaluation | None) -> FitResult:
    """Train from the start."""
    make_folder(run_dir)
    fabric = make_fabric(config.train)  # starts the other processes, which look at the folder too: still empty
    say = say if fabric.is_global_zero else _say_nothing
    train, val = _read_data(config, say)
    with fabric.rank_zero_first(local=True):  # one process of a machine fetches the weights
        prepared = prepare_model(config, train)
    config, class_map = prepared.config, prepared.class_map
    lines = scratch_warning(config, len(train.index)) if prepared.report is None else prepared.report.lines()
    for line in [*lines, *unknown_classes(class_map, val)]:
        say(line)
    config = _absolute_paths(config, train, val)
    cache = _find_cache(config, train, say)
    found = "none" if cache is None else str(cache.folder)  # a resumed run shall not find another
    config = config.model_copy(update={"data": config.data.model_copy(update={"cache": found})})
    if config.train.micro_batch == "auto":
        fits = find_micro_batch(
            config, prepared.model, build_criterion(config, class_map), train.index, fabric, say
        )
        say(str(fits))
        config = update_config(config, {"train.micro_batch": fits.images})
    if fabric.is_global_zero:
        write_config(config, run_dir / "config.yaml")
        with atomic_file(run_dir / "classes.json") as file:
            file.write(json.dumps(class_map.to_dict(), indent=1) + "\n")
        with atomic_file(run_dir / "weights.txt") as file:
            file.write("\n".join(lines) + "\n")
    parts = (prepared.model, class_map, train, val, cache)
    new = () if prepared.report is None else prepared.report.new_tensors
    return _fit(fabric, config, *parts, run_dir, None, on_evaluation, new)


def resume_run(
    run_dir: Path,
    say: Say,
    changes: Callable[[Config], Config] = lambda config: config,
    *,
    on_evaluation: OnEvaluation | None = None,
) -> FitResult:
    """Go on with a run from its last checkpoint; one that was stopped before its first begins anew.

    Args:
        run_dir: The run folder.
        say: Where messages for people go.
        changes: Gives the config to go on with.
        on_evaluation: As for :func:`detrkit.training.loop.fit`.

    Raises:
        UsageError: The folder is no run.
        CheckpointError: Every checkpoint is damaged.
    """
    if not (run_dir / "config.yaml").is_file():
        raise UsageError(
            f"{run_dir} is not a run folder: it has no config.yaml. Runs lie in runs/ unless told otherwise"
        )
    saved_config = read_config(run_dir / "config.yaml")
    config = changes(saved_config)
    store = CheckpointStore(run_dir)
    if not store.has_any():
        say(f"{run_dir} was stopped before its first checkpoint: it begins anew")
        return _begin_run(config, run_dir, say, on_evaluation)
    payload = store.load_latest()
    done = Progress(**payload["progress"])
    if done.epoch >= config.train.epochs:
        asked = f"{done.epoch} epochs are done, {config.train.epochs} were asked for"
        say(f"{run_dir}: {asked}; to train longer, give a new total with --epochs")
        if os.environ.get("RANK", "0") == "0":  # it may have been killed after its last checkpoint
            store.tidy_up()
            _draw_curves(run_dir)
        return FitResult(run_dir, done.step, done.epoch, done.best, done.metrics, "finished")
    class_map = ClassMap.from_dict(payload["class_map"])
    fabric = make_fabric(config.train)
    check_same_state(fabric, payload)
    say = say if fabric.is_global_zero else _say_nothing
    train, val = _read_data(config, say)
    if train.index.class_map.names != class_map.names:
        raise DataError(
            f"{train.files.annotations} has other classes than the run was begun with; "
            f"got {len(train.index.class_map)}, expected {len(class_map)}: {', '.join(class_map.names[:5])}, ..."
        )
    torch.manual_seed(config.train.seed)
    model = build_model(config, class_map)
    if config != saved_config and fabric.is_global_zero:
        write_config(config, run_dir / "config.yaml")  # or the next resume would know nothing of it
    parts = (model, class_map, train, val, _find_cache(config, train, say))
    return _fit(fabric, config, *parts, run_dir, payload, on_evaluation)


def unknown_classes(class_map: ClassMap, split: Split) -> list[str]:
    """A warning if a split has objects of classes that the model does not know."""
    classes = split.index.class_map
    present = [classes.names[class_id] for class_id in np.unique(split.index.labels)]
    unknown = [name for name in present if name not in class_map.names]
    if not unknown:
        return []
    shown = ", ".join(unknown[:8]) + (", ..." if len(unknown) > 8 else "")
    return [
        f"WARNING: {split.files.annotations}: the model does not know {len(unknown)} of its {len(present)} "
        f"classes ({shown}); their objects count as missed"
    ]


def scratch_warning(config: Config, images: int) -> list[str]:
    """What a person must know who trains without pretrained weights."""
    preset = PRESETS.get(config.model.preset)
    if preset is not None and preset.published is None and preset.backbone_file is None:
        return [f"{config.model.preset} starts from random weights, as it is meant to"]
    passes = config.train.epochs * images
    return [
        "WARNING: the model starts from RANDOM weights, backbone included.",
        "  DETR learns slowly from nothing: the authors trained 300 to 500 epochs on COCO's 118,000 images with "
        "an ImageNet backbone.",
        f"  This run sees {passes:,} images in all; below some millions expect an AP near 0.",
        "  To fine-tune instead: --init published (COCO weights), --init backbone (ImageNet) or --init PATH.",
    ]


class SplitEvaluator:
    """Evaluates models on one split, always in the same way; the one evaluator of training and ``eval``.

    Args:
        config: Preprocessing, loading and the number of detections.
        class_map: The model's classes.
        split: The images and their annotations.
        device: Where the model is.
        precision: As in :class:`detrkit.inference.predictor.Detector`.
        batch_size: Images at once; the numbers do not depend on it.
        progress: Called with the number of images done after each batch.
        peers: The processes that share the work; the first gets all detections.

    Raises:
        DataError: No class of the model is a class of the split.
    """

    def __init__(
        self,
        config: Config,
        class_map: ClassMap,
        split: Split,
        device: torch.device,
        *,
        batch_size: int | None = None,
        precision: Any = "32",
        progress: Callable[[int], None] | None = None,
        peers: Peers | None = None,
    ):
        self.config = config
        self.class_map = class_map
        self.split = split
        self.device = device
        self.precision = precision
        self.batch_size = batch_size or _batch_that_fits(config)
        self.progress = progress
        self.peers = peers
        self.truth: CocoTruth = ground_truth_from_index(split.index)
        match_classes(class_map, self.truth.class_map)  # better now than after an epoch

    def __call__(self, model: nn.Module) -> CocoMetrics:
        """The metrics of a model; see :meth:`collect`."""
        return self.collect(model).finish()

    def measure(self, model: nn.Module) -> Mapping[str, float]:
        """The twelve numbers, on the first process; nothing on the others, which do their share all the same."""
        evaluator = self.collect(model)
        return evaluator.finish().values if self.peers is None or self.peers.rank == 0 else {}

    def collect(self, model: nn.Module) -> CocoEvaluator:
        """Run a model over the split; the evaluator then holds all its detections, once each.

        With several processes, the batches are those that one alone would make, dealt out in turn, so that the
        detections are the same to the last bit. The first process's evaluator gets all, the others keep theirs.

        Raises:
            DataError: An image cannot be read; raised on all processes.
        """
        evaluator = CocoEvaluator(self.truth, self.class_map, self.config.train.max_detections)
        share = self._detections(model)
        if self.peers is None:
            for done, (image_id, detections) in enumerate(share, start=1):
                evaluator.add(image_id, detections)
                self._tell(done)
        else:
            self.peers.share_statistics(model)
            collect_together(self.peers, evaluator, share, len(self.split.index), self.batch_size)
        return evaluator

    def _tell(self, done: int) -> None:
        if self.progress is not None and (done % self.batch_size == 0 or done == len(self.split.index)):
            self.progress(done)

    def _detections(self, model: nn.Module) -> Iterator[tuple[int, ImageDetections]]:
        """Image id and detections of this process's images."""
        dataset = CocoDataset(
            self.split.index, self.split.files.images, eval_transform(self.config.transforms), on_bad_image="error"
        )
        rank, world_size = (0, 1) if self.peers is None else (self.peers.rank, self.peers.world_size)
        sampler = EvaluationBatchSampler(len(dataset), self.batch_size, rank, world_size)
        loader = build_loader(dataset, sampler, self.config.data, pin=self.device.type == "cuda")
        batches = (batch for batch in loader if batch is not None)
        postprocess = get_family(self.config.model.family).postprocess
        return detect_batches(
            model,
            postprocess,
            batches,
            self.class_map,
            self.config,
            self.device,
            self.precision,
            channels_last=True,
        )

    def draw_samples(self, model: nn.Module, count: int) -> list[tuple[str, np.ndarray]]:
        """The first images of the split with what the model sees on them, uint8 ``[H, W, 3]``."""
        index = self.split.index
        dataset = CocoDataset(index, self.split.files.images, eval_transform(self.config.transforms))
        sampler = EpochBatchSampler(min(count, len(index)), 1, seed=0, shuffle=False)
        loader = build_loader(dataset, sampler, self.config.data.model_copy(update={"workers": 0}), pin=False)
        postprocess = get_family(self.config.model.family).postprocess
        batches = (batch for batch in loader if batch is not None)
        rows = {int(image_id): row for row, image_id in enumerate(index.image_ids[: len(sampler)])}
        drawn = []
        for image_id, found in detect_batches(
            model, postprocess, batches, self.class_map, self.config, self.device, self.precision
        ):
            image = dataset.read_image(rows[image_id]).permute(1, 2, 0).numpy()
            detections = to_supervision(found, self.class_map, threshold=0.5)
            drawn.append((index.file_name(rows[image_id]), draw(image, detections)))
        return drawn


def _batch_that_fits(config: Config) -> int:
    """Images that the device is known to hold at once, of those that a batch of training has."""
    train = config.train
    return min(train.batch_size, train.micro_batch) if isinstance(train.micro_batch, int) else train.batch_size


def _read_data(config: Config, say: Say) -> tuple[Split, Split]:
    train = read_split(config, config.data.train_split)
    val = read_split(config, config.data.val_split, strict=True)
    for line in dict.fromkeys([*train.lines(), *val.lines()]):
        say(line)
    if (train.files.annotations, train.files.listings) == (val.files.annotations, val.files.listings):
        say("WARNING: the validation split is the training split; its AP says nothing about new images")
    return train, val


def _find_cache(config: Config, train: Split, say: Say) -> ImageCache | None:
    needed = needed_size(config.transforms)
    cache, lines = find_cache(config.data, config.data.train_split, train.index, train.files.images, needed)
    for line in lines:
        say(line)
    return cache


def _fit(
    fabric: Fabric,
    config: Config,
    model: nn.Module,
    class_map: ClassMap,
    train: Split,
    val: Split,
    cache: ImageCache | None,
    run_dir: Path,
    resume: Mapping[str, Any] | None,
    on_evaluation: OnEvaluation | None,
    new: Collection[str] = (),
) -> FitResult:
    dataset = training_dataset(config, train, cache, fabric.device.type)
    sampler = EpochBatchSampler(
        len(dataset),
        config.train.batch_size,
        seed=config.train.seed,
        shuffle=True,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
        size_of=dataset.sample_size if config.data.buckets else None,
    )
    loader = build_loader(dataset, sampler, config.data, pin=fabric.device.type == "cuda")
    evaluator = SplitEvaluator(
        config,
        class_map,
        val,
        fabric.device,
        precision=config.train.precision,
        peers=Peers() if fabric.world_size > 1 else None,
    )

    def draw_samples(network: nn.Module) -> Sequence[tuple[str, np.ndarray]]:
        return evaluator.draw_samples(network, config.train.log_images)

    with lost_peers():
        result = fit(
            config,
            model,
            build_criterion(config, class_map),
            loader,
            class_map,
            run_dir,
            evaluator.measure,
            draw_samples=draw_samples,
            on_evaluation=on_evaluation,
            new=new,
            resume=resume,
            fabric=fabric,
        )
        if fabric.is_global_zero:
            _draw_curves(run_dir)
        leave_processes(fabric)
    return result


def _draw_curves(run_dir: Path) -> None:
    """Draw ``curves.png``, unless it shows all there is."""
    log, picture = run_dir / "metrics.jsonl", run_dir / "curves.png"
    if log.exists() and not (picture.exists() and picture.stat().st_mtime_ns > log.stat().st_mtime_ns):
        plot_curves(log, picture)


def _absolute_paths(config: Config, train: Split, val: Split) -> Config:
    """The config with paths that hold from any working directory."""
    found = {
        "root": config.data.root,
        "train_annotations": train.files.annotations,
        "train_images": train.files.images,
        "val_annotations": val.files.annotations,
        "val_images": val.files.images,
    }
    given = {
        key: path for key, path in found.items() if path is not None and getattr(config.data, key) is not None
    }
    absolute = {key: str(Path(path).expanduser().resolve()) for key, path in given.items()}
    init = config.train.init
    if Path(init).expanduser().exists() and init not in ("auto", "none", "published", "backbone"):
        init = str(Path(init).expanduser().resolve())
    return config.model_copy(
        update={
            "data": config.data.model_copy(update=absolute),
            "train": config.train.model_copy(update={"init": init}),
        }
    )


def _say_nothing(_message: str) -> None:
    """What all processes but the first have to say."""
