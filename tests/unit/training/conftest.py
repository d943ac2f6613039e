"""A detector, a data set and a loader small enough to train for many epochs in a second."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from detrkit.classes import ClassMap
from detrkit.config import Config, update_config
from detrkit.distributed import make_fabric
from detrkit.families.family import BuiltModel
from detrkit.losses.criterion import Criterion
from detrkit.training.loop import FitResult, fit
from detrkit.training.session import TrainingSetup
from detrkit.types import Batch, GroundTruth, Outputs

NUM_QUERIES = 6
SIDE = 32


class ToyDetector(nn.Module):
    """A convolution, queries, two decoder layers; dropout 0.1 unless told otherwise."""

    def __init__(self, dropout: float = 0.1, num_labels: int = 3, dim: int = 16):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, dim, 8, stride=8), nn.ReLU())
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.query_embed = nn.Embedding(NUM_QUERIES, dim)
        self.layers = nn.ModuleList(nn.Linear(dim, dim) for _ in range(2))
        self.class_embed = nn.Linear(dim, num_labels + 1)
        self.bbox_embed = nn.Linear(dim, 4)
        self.register_buffer("scale", torch.ones(()))

    def forward(self, images: Tensor, padding_mask: Tensor | None = None, objects: object = None) -> Outputs:
        features = self.backbone(images).flatten(2).transpose(1, 2)
        weights = (features @ self.query_embed.weight.to(features.dtype).T).softmax(1)
        x = weights.transpose(1, 2) @ features + self.query_embed.weight
        layers = []
        for layer in self.layers:
            x = self.norm(x + self.dropout(layer(x)).relu())
            layers.append(x)
        stacked = torch.stack(layers)
        return Outputs(self.class_embed(stacked), self.bbox_embed(stacked).sigmoid() * self.scale)


class ToyImages(Dataset[dict[str, Any]]):
    """Random images with 0 to 3 objects, each a function of its place."""

    def __init__(self, count: int, unreadable: frozenset[int] = frozenset()):
        self.count = count
        self.unreadable = unreadable

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any] | None:
        if index in self.unreadable:
            return None
        generator = torch.Generator().manual_seed(index)
        objects = index % 4
        centers = torch.rand(objects, 2, generator=generator) * 0.5 + 0.25
        return {
            "image": torch.randint(0, 256, (3, SIDE, SIDE), dtype=torch.uint8, generator=generator),
            "boxes": torch.cat((centers, torch.full((objects, 2), 0.3)), 1),
            "labels": torch.randint(0, 3, (objects,), generator=generator),
            "image_id": 1000 + index,
        }


def collate(items: list[dict[str, Any] | None]) -> Batch | None:
    readable = [item for item in items if item is not None]
    if not readable:
        return None
    truth = GroundTruth(
        torch.cat([item["labels"] for item in readable]),
        torch.cat([item["boxes"] for item in readable]),
        tuple(len(item["labels"]) for item in readable),
    )
    images = torch.stack([item["image"] for item in readable])
    mask = torch.zeros(len(readable), SIDE, SIDE, dtype=torch.bool)
    sizes = tuple((SIDE, SIDE) for _ in readable)
    return Batch(images, mask, truth, sizes, tuple(item["image_id"] for item in readable), sizes)


class ToySampler:
    """Batches in an order that is a function of the epoch; a rank takes every world_size-th image."""

    def __init__(self, count: int, batch_size: int, rank: int = 0, world_size: int = 1):
        self.count, self.batch_size = count, batch_size
        self.rank, self.world_size = rank, world_size
        self.epoch = self.start_batch = 0

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        self.epoch, self.start_batch = epoch, start_batch

    @property
    def num_batches(self) -> int:
        return -(-self.count // self.world_size // self.batch_size)

    def __len__(self) -> int:
        return self.num_batches - self.start_batch

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.epoch)
        order = torch.randperm(self.count, generator=generator).tolist()[self.rank :: self.world_size]
        for batch in range(self.start_batch, self.num_batches):
            yield order[batch * self.batch_size : (batch + 1) * self.batch_size]


def toy_loader(
    count: int = 12,
    batch_size: int = 2,
    *,
    unreadable: frozenset[int] = frozenset(),
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> DataLoader[Batch | None]:
    sampler = ToySampler(count, batch_size, rank, world_size)
    images = ToyImages(count, unreadable)
    return DataLoader(images, batch_sampler=sampler, collate_fn=collate, num_workers=workers)


def toy_config(**train: Any) -> Config:
    defaults = {"device": "cpu", "epochs": 2, "lr": 1e-2, "backbone_lr": 1e-3, "log_every": 2, "batch_size": 2}
    return update_config(Config(), {"train": {**defaults, **train}})


@dataclasses.dataclass
class Toy:
    """One training of the toy; ``scores`` are the APs that its evaluations give, the last one repeating."""

    run_dir: Path
    scores: list[float] = dataclasses.field(default_factory=lambda: [0.5])
    dropout: float = 0.1
    fabric: Fabric | None = None
    evaluated: list[dict[str, Tensor]] = dataclasses.field(default_factory=list)

    class_map = ClassMap(("a", "b", "c"), (1, 2, 3))

    def model(self) -> ToyDetector:
        torch.manual_seed(0)
        return ToyDetector(self.dropout)

    def criterion(self, config: Config) -> Criterion:
        return Criterion(config.loss, self.class_map, NUM_QUERIES)

    def setup(
        self, config: Config, model: nn.Module | None = None, loader: DataLoader[Batch | None] | None = None
    ) -> TrainingSetup:
        loader = toy_loader() if loader is None else loader
        built = BuiltModel(model or self.model(), cast("Any", None), config, self.class_map)
        return TrainingSetup(built, self.criterion(config), loader)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        assert not model.training
        torch.rand(17)  # an evaluation may draw random numbers; training must not notice
        self.evaluated.append({name: value.clone() for name, value in model.state_dict().items()})
        place = min(len(self.evaluated), len(self.scores)) - 1
        return {"AP": self.scores[place], "AP50": 0.9}

    def fit(
        self,
        config: Config,
        *,
        model: nn.Module | None = None,
        loader: DataLoader[Batch | None] | None = None,
        evaluate: Any = None,
        draw_samples: Any = None,
        resume: Mapping[str, Any] | None = None,
    ) -> FitResult:
        return fit(
            self.setup(config, model, loader),
            self.run_dir,
            self.fabric or make_fabric(config.train),
            evaluate or self.evaluate,
            draw_samples=draw_samples,
            resume=resume,
        )


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy(tmp_path / "run")


@pytest.fixture
def float16_fabric() -> Fabric:
    """Float16 with a loss scaler on the CPU, which Fabric does not choose by itself."""
    scaler = torch.amp.GradScaler("cpu")
    return Fabric(accelerator="cpu", plugins=MixedPrecision("16-mixed", device="cpu", scaler=scaler))


@pytest.fixture
def make_loader() -> Any:
    return toy_loader


@pytest.fixture
def make_config() -> Any:
    return toy_config
