"""The peers of the harness of convergence: each learns and detects, at the right places."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from benchmarks.convergence import peer_training
from benchmarks.convergence.competitors import Conditions, config_of
from benchmarks.convergence.data_sets import Files, find_data
from benchmarks.convergence.peer_models import Found, PeerNetwork
from benchmarks.convergence.peer_training import PeerStages, objects_of, prepare, train_peer, train_step
from benchmarks.convergence.peers import PEERS, Peer
from detrkit.config import Config, update_config
from detrkit.data.coco import CocoDataset, SampleKey
from detrkit.data.loader import collate
from detrkit.data.split import Split, read_split
from detrkit.data.transforms import eval_transform
from detrkit.detectors.detector import Detector
from detrkit.detectors.on_split import collect
from detrkit.errors import TrainingError
from detrkit.types import Batch
from tests.unit.data.scenes import targets_of

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


@pytest.mark.parametrize(("name", "least", "most"), [("dfine-n", 3.6e6, 3.9e6), ("rtdetrv2-n", 3e6, 5e6)])
def test_transformers_are_the_smallest_and_their_heads_begin_with_low_scores(name: str, least: float, most: float):
    network = PEERS[name].build(3, (240, 320))
    assert least < sum(parameter.numel() for parameter in network.parameters()) < most
    biases = [value for key, value in network.named_parameters() if "class_embed" in key and key.endswith("bias")]
    assert biases
    for bias in biases:
        assert torch.allclose(bias.sigmoid(), torch.tensor(0.01), atol=1e-5)
    norms = [module for module in network.modules() if type(module).__name__.endswith("FrozenBatchNorm2d")]
    assert norms == []


class Oracle(PeerNetwork):
    """Knows the objects of the batch that it was made with."""

    def __init__(self, batch: Batch):
        super().__init__()
        self.objects = objects_of(batch, CPU)
        self.at = 0

    def detect(self, images: Tensor) -> list[Found]:
        found = self.objects[self.at : self.at + len(images)]
        self.at += len(images)
        return [Found(each.boxes_xyxy, torch.ones(len(each.labels)), each.labels) for each in found]


def make_higher(files: Files) -> None:
    """Images that are not square, with the same objects."""
    content = json.loads(files.val_annotations.read_text())
    for entry in content["images"]:
        higher = Image.new("RGB", (128, 190))
        with Image.open(files.val_images / entry["file_name"]) as image:
            higher.paste(image)
        higher.save(files.val_images / entry["file_name"])
        entry["height"] = 190
    files.val_annotations.write_text(json.dumps(content))


def test_boxes_come_back_in_pixels_of_the_files(demo: Files):
    config = update_config(
        config_for("fcos-mobilenet", demo), {"transforms.eval_size": 50, "transforms.max_size": 77}
    )
    make_higher(demo)
    val = read_split(config, "val", strict=True)
    assert set(map(tuple, val.index.sizes_hw.tolist())) == {(190, 128)}
    stages = PeerStages(Oracle(batch_of(config, val)), config, 6, CPU)
    subject = Detector(stages, val.index.class_map, name="oracle", kind="peer")
    assert collect(subject, val, batch_size=3).finish()["AP"] == pytest.approx(1.0, abs=1e-6)


def test_input_is_padded_with_nothing_and_boxes_stay_where_they_are(demo: Files):
    config = config_for("fcos-mobilenet", demo)
    batch = batch_of(config, read_split(config, "train"))
    cut = dataclasses.replace(
        batch, images=batch.images[:, :, :40, :50], padding_mask=batch.padding_mask[:, :40, :50]
    )
    images = prepare(cut.images, cut.padding_mask, config)
    assert images.shape[-2:] == (64, 64)
    assert images[:, :, 40:].abs().max() == 0
    assert images[:, :, :, 50:].abs().max() == 0
    assert images[:, :, :40, :50].abs().max() > 0
    for target, objects in zip(targets_of(batch), objects_of(batch, CPU), strict=True):
        assert torch.allclose(objects.boxes_xyxy, target["boxes"].as_subclass(Tensor), atol=1e-3)
        assert torch.equal(objects.labels, target["labels"])


def test_the_average_is_what_is_evaluated_and_epochs_count_from_one(
    demo: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seen = []

    def evaluation(*_: object) -> object:
        return lambda network: seen.append(network.weight.item()) or {"AP": 0.5}

    class Walker(PeerNetwork):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def loss(self, images: Tensor, objects: object) -> Tensor:
            return self.weight.sum()

    monkeypatch.setitem(PEERS, "walker", Peer(lambda *_: Walker(), {"train.lr": 0.1, "train.clip_norm": 0}))
    monkeypatch.setattr(peer_training, "_evaluation", evaluation)
    config = update_config(
        config_for("walker", demo),
        {"train.epochs": 4, "train.eval_every": 2, "train.batch_size": 8},
    )
    ends = []
    train_peer(config, tmp_path / "run", lambda epoch, metrics: ends.append((epoch, metrics)) or False)
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(record["kind"], record["epoch"]) for record in records] == [
        ("epoch", 1),
        ("epoch", 2),
        ("eval", 2),
        ("epoch", 3),
        ("epoch", 4),
        ("eval", 4),
    ]
    assert ends == [(2, {"AP": 0.5}), (4, {"AP": 0.5})]
    # one step an epoch, of 0.1, 0.1, 0.075 and 0.025 down; the average's decay is 2/11, 3/12 and 4/13
    assert [record["loss"] for record in records if record["kind"] == "epoch"] == pytest.approx(
        [0, -0.1, -0.2, -0.275], abs=1e-5
    )
    assert seen == pytest.approx([-0.1818, -0.2851], abs=1e-4)


def test_a_loss_that_is_not_finite_ends_the_run(demo: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Broken(PeerNetwork):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def loss(self, images: Tensor, objects: object) -> Tensor:
            return self.weight.sum() * torch.nan

    monkeypatch.setitem(PEERS, "broken", Peer(lambda *_: Broken(), {"train.lr": 1e-3}))
    with pytest.raises(TrainingError, match=r"broken: the loss of epoch 1 is nan"):
        train_peer(config_for("broken", demo), tmp_path / "run")
