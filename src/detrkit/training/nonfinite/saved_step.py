"""Replay files: a step with everything that it depends on, so that it can be repeated bit for bit."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Annotated

import msgspec
import torch
from torch import Tensor

from detrkit.checkpoint import save_checkpoint
from detrkit.classes import ClassMap
from detrkit.config import Config
from detrkit.types import Batch, GroundTruth

REPLAY_FOLDER = "nonfinite"
"""Folder of a run with its replay files."""

_Positive = Annotated[int, msgspec.Meta(ge=1)]


class SavedBatch(msgspec.Struct, frozen=True):
    """A batch as tensors and primitives; shapes and names are those of :class:`detrkit.types.Batch`."""

    images: Tensor
    padding_mask: Tensor
    labels: Tensor
    boxes_cxcywh: Tensor
    counts: list[int]
    sizes_hw: list[tuple[int, int]]
    image_ids: list[int]
    masks: Tensor | None = None
    has_mask: list[bool] = []

    @classmethod
    def pack(cls, batch: Batch) -> SavedBatch:
        """Return a copy of a batch on the host."""
        return cls(
            images=batch.images.clone(),
            padding_mask=batch.padding_mask.clone(),
            labels=batch.truth.labels.clone(),
            boxes_cxcywh=batch.truth.boxes_cxcywh.clone(),
            counts=list(batch.truth.counts),
            sizes_hw=list(batch.sizes_hw),
            image_ids=list(batch.image_ids),
            masks=None if batch.truth.masks is None else batch.truth.masks.clone(),
            has_mask=list(batch.truth.has_mask),
        )

    def unpack(self) -> Batch:
        """Return the batch."""
        truth = GroundTruth(self.labels, self.boxes_cxcywh, tuple(self.counts), self.masks, tuple(self.has_mask))
        sizes = tuple(self.sizes_hw)
        return Batch(self.images, self.padding_mask, truth, sizes, tuple(self.image_ids), sizes)


class SavedStep(msgspec.Struct, frozen=True):
    """A step as a replay file holds it; the keys of the file are the names.

    Args:
        path: path of the file, which is not in it.
        config: config of the run.
        class_map: class map of the run.
        model: state of the model that the step began with.
        step: number of the step, from 1.
        epoch: number of its epoch, from 1.
        process: number of the process, from 0.
        world_size: number of processes.
        share: 0 if this process had no image, otherwise 1.
        micro_batch: images at once.
        num_threads: threads of torch.
        machine: device and torch that it was made with, in words.
        resting: names of the modules that were not in training mode.
        normalizers: normalizers of its losses: number of boxes, weight of classes.
        values: recorded loss, terms, gradient norm and loss scale.
        damage: fault of its boxes, known beforehand; empty if none.
        batches: images and objects, on the host.
        frozen: names of the parameters without gradients.
    """

    path: Path
    config: Config
    class_map: ClassMap
    model: dict[str, Tensor]
    step: _Positive
    epoch: int
    process: int
    world_size: _Positive
    share: float
    micro_batch: _Positive
    num_threads: Annotated[int, msgspec.Meta(ge=1, le=1024)]
    machine: str
    resting: list[str]
    normalizers: tuple[float, float]
    values: dict[str, float]
    damage: str
    batches: list[SavedBatch]
    frozen: list[str] = []


def write_step(saved: SavedStep) -> None:
    """Write a replay file.

    Raises:
        CheckpointError: The disk is full or cannot be written.
    """
    payload = msgspec.structs.asdict(saved)
    payload["config"] = saved.config.model_dump(mode="json")
    payload["class_map"] = saved.class_map.to_dict()
    payload["batches"] = [msgspec.structs.asdict(batch) for batch in saved.batches]
    del payload["path"]
    save_checkpoint(saved.path, {"kind": "replay", **payload})


def machine(device: torch.device) -> str:
    """Return what the last bits of a step depend on, in words."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else (platform.processor() or "CPU")
    return f"{device.type} ({name}), torch {torch.__version__}"
