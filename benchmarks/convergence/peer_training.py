"""A plain training loop for the peers: detrkit's images, augmentation and evaluator, the peers' models and losses.

Writes ``config.yaml`` and the lines of epochs and evaluations of ``metrics.jsonl`` as a run of detrkit does.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torchvision.ops import box_convert

from benchmarks.convergence.peer_models import MULTIPLE, Found, Objects, PeerNetwork
from benchmarks.convergence.peers import PEERS
from detrkit.classes import SizeHW
from detrkit.config import Config, write_config
from detrkit.data.loader import EpochBatchSampler, build_loader
from detrkit.data.split import Split, read_split
from detrkit.detectors.detector import Detector
from detrkit.detectors.labels import labelled_detections
from detrkit.detectors.on_split import collect
from detrkit.detectors.stages import autocast
from detrkit.errors import TrainingError
from detrkit.evaluation.truth import ground_truth_from_index
from detrkit.files import make_folder
from detrkit.hardware import resolve_device
from detrkit.preprocess import Preprocessing, image_size_hw, normalize_images, pad_images, resized_size_hw
from detrkit.training.run import training_dataset
from detrkit.types import Batch, ImageDetections

OnEvaluation = Callable[[int, Mapping[str, float]], bool]


def train_peer(config: Config, run_dir: Path, on_evaluation: OnEvaluation | None = None) -> None:
    """Train the peer that ``config.model.preset`` names, from random weights.

    Args:
        config: Of all it says, data, sizes, flips, batch size, rates, clipping, average and epochs count.
        run_dir: The run folder.
        on_evaluation: Given epoch and metrics after each evaluation; True ends training.

    Raises:
        TrainingError: The loss is NaN or infinite.
    """
    make_folder(run_dir)
    write_config(config, run_dir / "config.yaml")
    device = resolve_device(config.train.device)
    train, val = (
        read_split(config, config.data.train_split),
        read_split(config, config.data.val_split, strict=True),
    )
    torch.manual_seed(config.train.seed)
    network = PEERS[config.model.preset].build(len(train.index.class_map), _least_size(config, train, val))
    network = network.to(device).train()
    dataset = training_dataset(config, train, None, "cpu")  # "cpu": flips and colours are not left to a device
    sampler = EpochBatchSampler(len(dataset), config.train.batch_size, seed=config.train.seed)
    loader = build_loader(dataset, sampler, config.data, pin=device.type == "cuda")
    sampler.set_epoch(0)
    optimizer = _optimizer(network, config)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _rate(config, len(loader)))
    average = AveragedModel(network, multi_avg_fn=_averaging(config), use_buffers=True)
    evaluate = _evaluation(config, val, train, device)
    step = 0
    with (run_dir / "metrics.jsonl").open("w", encoding="utf-8") as log:
        for epoch in range(1, config.train.epochs + 1):
            began_s, total = time.monotonic(), torch.zeros((), device=device)
            sampler.set_epoch(epoch - 1)
            for batch in loader:
                if batch is not None:
                    total += train_step(network, batch, optimizer, config, device)
                    average.update_parameters(network)
                schedule.step()
                step += 1
            loss = total.item() / len(loader)
            if not math.isfinite(loss):
                raise TrainingError(f"{config.model.preset}: the loss of epoch {epoch} is {loss}; lower its rate")
            seconds = time.monotonic() - began_s
            _write(log, "epoch", step, epoch, {"seconds": seconds, "loss": loss})
            if epoch == config.train.epochs or epoch % config.train.eval_every == 0:
                metrics = evaluate(average.module)
                _write(log, "eval", step, epoch, metrics)
                if on_evaluation is not None and on_evaluation(epoch, metrics):
                    return


def train_step(
    network: PeerNetwork, batch: Batch, optimizer: torch.optim.Optimizer, config: Config, device: torch.device
) -> Tensor:
    """One step on one batch; returns its loss, without gradient."""
    images = prepare(batch.images.to(device, non_blocking=True), batch.padding_mask.to(device), config)
    with autocast(device, config.train.precision):
        loss = network.loss(images, objects_of(batch, device))
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    if config.train.clip_norm:
        nn.utils.clip_grad_norm_(network.parameters(), config.train.clip_norm)
    optimizer.step()
    return loss.detach().float()


def prepare(images: Tensor, padding_mask: Tensor, config: Config) -> Tensor:
    """Images normalised, and padded with 0 to a multiple of :data:`MULTIPLE`."""
    normalized = normalize_images(images, config.transforms.mean, config.transforms.std, padding_mask)
    height, width = images.shape[-2:]
    padded = nn.functional.pad(normalized, (0, -width % MULTIPLE, 0, -height % MULTIPLE))
    return padded.contiguous(memory_format=torch.channels_last)


def objects_of(batch: Batch, device: torch.device) -> list[Objects]:
    """Of each image; crowd regions and boxes without area are left out."""
    found = []
    boxes_of = batch.truth.boxes_cxcywh.split(batch.truth.counts)
    labels_of = batch.truth.labels.split(batch.truth.counts)
    for boxes, labels, (height, width) in zip(boxes_of, labels_of, batch.sizes_hw, strict=True):
        corners = box_convert(boxes, "cxcywh", "xyxy") * torch.tensor([width, height, width, height])
        kept = (corners[:, 2:] > corners[:, :2]).all(dim=1)
        found.append(Objects(corners[kept].to(device), labels[kept].to(device)))
    return found


class PeerStages:
    """A peer's detections, image by image, at the size of detrkit's own evaluation.

    Args:
        network: In evaluation mode, on ``device``.
        config: Sizes and precision.
        num_classes: Of the data set.
        device: Where the network is.
    """

    pads = False

    def __init__(self, network: PeerNetwork, config: Config, num_classes: int, device: torch.device):
        self.network: nn.Module = network
        self.device = device
        self._peer = network
        self._config = config
        self._preprocessing = Preprocessing.from_config(config.transforms)
        self._classes = torch.arange(num_classes).numpy()

    def resize(self, image: Tensor) -> Tensor:
        """Resize by the size rule."""
        return self._preprocessing.resize(image)

    def preprocess(self, images: Sequence[Tensor]) -> tuple[Tensor, list[SizeHW]]:
        """Pad and normalise; with the sizes without padding."""
        stacked, mask = pad_images(images)
        prepared = prepare(stacked.to(self.device), mask.to(self.device), self._config)
        return prepared, [image_size_hw(image) for image in images]

    def forward(self, inputs: tuple[Tensor, list[SizeHW]]) -> tuple[list[Found], list[SizeHW]]:
        """Detections in pixels of the resized images."""
        images, sizes_hw = inputs
        with torch.inference_mode(), autocast(self.device, self._config.train.precision):
            return self._peer.detect(images), sizes_hw

    def postprocess(
        self, outputs: tuple[list[Found], list[SizeHW]], orig_sizes_hw: Sequence[SizeHW]
    ) -> list[ImageDetections]:
        """In pixels of the images' files, cut at their borders."""
        detections = []
        for found, (height, width), (orig_height, orig_width) in zip(*outputs, orig_sizes_hw, strict=True):
            corners = torch.tensor([orig_width, orig_height, orig_width, orig_height])
            boxes = found.boxes_xyxy.float().cpu() * corners / torch.tensor([width, height, width, height])
            boxes = boxes.clamp(min=0).minimum(corners.float())
            detections.append(labelled_detections(boxes, found.scores, found.labels, self._classes))
        return detections


def _evaluation(
    config: Config, val: Split, train: Split, device: torch.device
) -> Callable[[PeerNetwork], Mapping[str, float]]:
    truth, class_map = ground_truth_from_index(val.index), train.index.class_map

    def evaluate(network: PeerNetwork) -> Mapping[str, float]:
        stages = PeerStages(network.eval(), config, len(class_map), device)
        subject = Detector(stages, class_map, name=config.model.preset, kind="peer")
        return collect(subject, val, truth=truth, batch_size=config.train.batch_size).finish().values

    return evaluate


def _least_size(config: Config, *splits: Split) -> SizeHW:
    """Least height and least width among the images as the network sees them."""
    transforms = config.transforms
    sizes = [
        resized_size_hw((height, width), transforms.eval_size, transforms.max_size)
        for split in splits
        for height, width in split.index.sizes_hw.tolist()
    ]
    return min(height for height, _ in sizes), min(width for _, width in sizes)


def _optimizer(network: nn.Module, config: Config) -> torch.optim.AdamW:
    """AdamW; norms and biases do not decay."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.train.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.train.lr, fused=True)


def _rate(config: Config, batches: int) -> Callable[[int], float]:
    """Share of the rate by step: a linear warm-up, then a cosine to 0."""
    warm_up, total = config.train.warmup_steps, batches * config.train.epochs

    def share(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm_up) / max(1, total - warm_up))))

    return share


def _averaging(config: Config) -> Callable[[Sequence[Tensor], Sequence[Tensor], Tensor | int], None]:
    """An exponential average whose decay warms up as detrkit's, so that it forgets the random weights."""
    most = config.train.ema_decay or 0.0

    @torch.no_grad()
    def average(averages: Sequence[Tensor], current: Sequence[Tensor], count: Tensor | int) -> None:
        decay = min(most, (1 + int(count)) / (10 + int(count)))
        if averages[0].is_floating_point():
            torch._foreach_lerp_(list(averages), list(current), 1.0 - decay)
        else:  # counters of batches
            torch._foreach_copy_(list(averages), list(current))

    return average


def _write(log: Any, kind: str, step: int, epoch: int, values: Mapping[str, float]) -> None:
    log.write(json.dumps({"kind": kind, "step": step, "epoch": epoch, **values}) + "\n")
    log.flush()
