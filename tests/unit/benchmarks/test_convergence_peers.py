"""The peers of the harness of convergence: each learns and detects, at the right places."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.convergence.competitors import Conditions, config_of
from benchmarks.convergence.data_sets import Files, find_data
from benchmarks.convergence.peer_training import PeerStages, train_step
from benchmarks.convergence.peers import PEERS
from detrkit.config import Config, update_config
from detrkit.data.coco import CocoDataset, SampleKey
from detrkit.data.loader import collate
from detrkit.data.split import Split, read_split
from detrkit.data.transforms import eval_transform
from detrkit.detectors.detector import Detector
from detrkit.detectors.on_split import collect
from detrkit.types import Batch

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _without_warnings_of_others() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' own
        yield


@pytest.fixture
def demo(tmp_path: Path) -> Files:
    return find_data("demo", None, tmp_path, quick=True)


def config_for(name: str, files: Files) -> Config:
    config = config_of(name, files, 0, Conditions(device="cpu"))
    return update_config(config, {"train.epochs": 1, "train.warmup_steps": 1})


def batch_of(config: Config, split: Split) -> Batch:
    dataset = CocoDataset(split.index, split.files.images, eval_transform(config.transforms))
    batch = collate([dataset[SampleKey(0, row)] for row in range(len(split.index))])
    assert batch is not None
    return batch


@pytest.mark.parametrize("name", ["dfine-n", "rtdetrv2-n", "fcos-mobilenet", "fcos-r18", "retinanet-r18"])
def test_every_peer_makes_a_step_and_detects(demo: Files, name: str):
    config = update_config(config_for(name, demo), {"train.precision": "bf16"})
    train = read_split(config, "train")
    batch = batch_of(config, train)
    assert 0 in batch.truth.counts  # an image without objects among them
    torch.manual_seed(0)
    network = PEERS[name].build(6, (96, 96)).train()
    before = {key: value.clone() for key, value in network.named_parameters()}
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    loss = train_step(network, batch, optimizer, config, CPU)
    assert torch.isfinite(loss)
    assert loss > 0
    changed = [key for key, value in network.named_parameters() if not torch.equal(value, before[key])]
    assert len(changed) > 0.9 * len(before)
    stages = PeerStages(network.eval(), config, 6, CPU)
    subject = Detector(stages, train.index.class_map, name=name, kind="peer")
    metrics = collect(subject, train, batch_size=4).finish()
    assert metrics.images == len(train.index)
    assert 0 <= metrics["AP"] < 0.5
