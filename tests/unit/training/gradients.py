"""The gradient of one optimiser step, through the whole loop: by one process, and by two."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import DEFAULT, patch

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from detrkit.checkpoint import CheckpointStore
from detrkit.classes import ClassMap
from detrkit.config import Config, update_config
from detrkit.distributed import make_fabric
from detrkit.families.build import build_model
from detrkit.families.recipes import preset_config
from detrkit.training.loop import fit
from detrkit.training.session import TrainingSetup
from detrkit.types import Batch, GroundTruth

SIDE = 64
CLASSES = ClassMap(("a", "b", "c"), (1, 2, 3))
TWO_STAGE = {"model.backbone_norm": "group", "aids.denoising": 0}  # batch norms and noise are a batch's own
SMALL_DETR = {
    "model.backbone": "mini",
    "model.backbone_norm": "frozen",
    "model.hidden_dim": 32,
    "model.num_heads": 4,
    "model.encoder_layers": 1,
    "model.decoder_layers": 2,
    "model.ffn_dim": 32,
    "model.num_queries": 10,
}
# Without noise, which each process draws for itself, and without what are means over whatever a batch holds.
SMALL_REALTIME = {
    "train.init": "none",
    "model.backbone": "tiny",
    "model.backbone_norm": "group",
    "model.hidden_dim": 32,
    "model.encoder_dim": 32,
    "model.num_heads": 4,
    "model.decoder_layers": 2,
    "model.ffn_dim": 32,
    "model.encoder_ffn_dim": 32,
    "model.num_queries": 10,
    "aids.denoising": 0,
    "aids.dense": "none",
    "loss.union": False,
    "loss.ddf_weight": 0,
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A step of two processes.

    Args:
        preset: What is trained.
        model: Changes of the preset.
        on_oom: By which the gradients are exchanged after or within the backward pass.
        batches: Objects of each image, of each batch, of each process; a batch None is one without images.
        micro_batch: Images at once.
    """

    preset: str
    model: dict[str, Any]
    on_oom: str
    batches: tuple[list[tuple[int, ...] | None], list[tuple[int, ...] | None]]
    micro_batch: int | None = None


NO_OBJECTS = ([(2, 5)], [(0, 0)])
NO_IMAGES = ([(2, 1, 3)], [None])
ACCUMULATED = ([(2, 0, 1), (1,)], [(3, 1), None])

MODELS: dict[str, dict[str, Any]] = {
    "detr-tiny": {},
    "detr-r50": SMALL_DETR,
    "rtdetr-nano": SMALL_REALTIME,
    "dfine-n": SMALL_REALTIME,
    "detr-tiny-panoptic": {"model.num_queries": 10},
    "detr-tiny-two-stage-panoptic": TWO_STAGE,
    "detr-tiny-two-stage-panoptic+boxes-first": {**TWO_STAGE, "train.box_epochs": 1},
}
CASES = {
    f"{preset}-{on_oom}-{name}": Case(preset.partition("+")[0], model, on_oom, batches, micro_batch)
    for preset, model in MODELS.items()
    for on_oom in ("halve", "error")
    for name, batches, micro_batch in (
        ("no-objects", NO_OBJECTS, None),
        ("no-images", NO_IMAGES, None),
        ("accumulated", ACCUMULATED, 2),
    )
}


# Every model with every kind of batch and both ways of exchange, every kind of batch in both ways.
QUICK = [name for number, name in enumerate(CASES) if (number // 6 + number // 3 + number % 3) % 2 == 0]


def two_processes(fabric: Fabric, folder: Path, names: Sequence[str]) -> None:
    """Make the step of each case, and leave its gradients in the folder."""
    for name, case in ((name, CASES[name]) for name in names):
        batches = case.batches[fabric.global_rank]
        first = [len(objects or ()) for objects in (case.batches[0] if fabric.global_rank else [])]
        places = sum(first)
        loaded = []
        for objects in batches:
            loaded.append(None if objects is None else _batch(objects, places, case.preset))
            places += len(objects or ())
        gradients = _step(case, loaded, folder / name, accumulate=len(batches))
        if fabric.is_global_zero:
            torch.save(gradients, folder / f"gradients-{name}.pt")


def one_process(case: Case, folder: Path) -> dict[str, Tensor]:
    """The gradients of all images in one batch."""
    objects = [count for batches in case.batches for batch in batches for count in batch or ()]
    plain = dataclasses.replace(case, micro_batch=None)
    return _step(plain, [_batch(tuple(objects), 0, case.preset)], folder / "one", accumulate=1)


def _step(case: Case, batches: list[Batch | None], run_dir: Path, accumulate: int) -> dict[str, Tensor]:
    config = _config(case, accumulate)
    torch.manual_seed(0)
    built = build_model(config, CLASSES)
    gradients: dict[str, Tensor] = {}
    no_saves = patch.multiple(CheckpointStore, save_last=DEFAULT, save_best=DEFAULT)  # half of the time
    with _noting_gradients(built.model, gradients), no_saves:
        loader: Any = _Loader(batches)
        setup = TrainingSetup(built, built.family.build_criterion(config, CLASSES), loader)
        fit(setup, run_dir, make_fabric(config.train), lambda _model: {"AP": 0.0})
    return gradients


def _config(case: Case, accumulate: int) -> Config:
    stages = 2 if "train.box_epochs" in case.model else 1
    return update_config(
        preset_config(case.preset),
        {
            "model.dropout": 0.0,
            "transforms.mean": [0.5, 0.5, 0.5],
            "train": {
                "device": "cpu",
                "epochs": stages,
                "batch_size": 3,
                "accumulate": accumulate,
                "micro_batch": case.micro_batch,
                "on_oom": case.on_oom,
                "clip_norm": 0,
                "trackers": [],
                # the second stage's gradients are to be of the first's weights, not of what rounding makes of them
                **({"lr": 1e-12, "backbone_lr": 1e-12} if stages > 1 else {}),
            },
            **case.model,
        },
    )


@contextlib.contextmanager
def _noting_gradients(model: nn.Module, gradients: dict[str, Tensor]) -> Iterator[None]:
    stages = itertools.count()

    def note(*_: Any) -> None:
        stage = next(stages)
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                gradients[f"{stage} {name}"] = parameter.grad.detach().clone()

    handle = register_optimizer_step_pre_hook(note)
    try:
        yield
    finally:
        handle.remove()


class _Loader:
    """Batches that are there already."""

    def __init__(self, batches: list[Batch | None]):
        self.batches = batches
        self.batch_sampler = self

    def set_epoch(self, _epoch: int, _start_batch: int = 0) -> None:
        pass

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch | None]:
        return iter(self.batches)


def _batch(objects: tuple[int, ...], first_place: int, preset: str) -> Batch:
    """Images that are functions of their places; masks are noise."""
    images, boxes, labels, masks = [], [], [], []
    for place, count in enumerate(objects, start=first_place):
        generator = torch.Generator().manual_seed(place)
        images.append(torch.randint(0, 256, (3, SIDE, SIDE), dtype=torch.uint8, generator=generator))
        centers = torch.rand(count, 2, generator=generator) * 0.5 + 0.25
        boxes.append(torch.cat((centers, torch.rand(count, 2, generator=generator) * 0.3 + 0.1), 1))
        labels.append(torch.randint(0, 3, (count,), generator=generator))
        masks.append(torch.rand(count, SIDE, SIDE, generator=generator) < 0.3)
    has_masks = "panoptic" in preset
    truth = GroundTruth(torch.cat(labels), torch.cat(boxes), objects, torch.cat(masks) if has_masks else None)
    mask = torch.zeros(len(objects), SIDE, SIDE, dtype=torch.bool)
    return Batch(torch.stack(images), mask, truth, tuple((SIDE, SIDE) for _ in objects))
