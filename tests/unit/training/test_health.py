from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detrkit.losses.criterion import LastLayer
from detrkit.training.forward_backward import Passes
from detrkit.training.health import MATCHES_TO_JUDGE, Health, probe_boxes
from detrkit.types import Batch
from tests.unit.training.conftest import Toy, ToyDetector, toy_config, toy_loader

QUERIES = 4


def seen(images: int, objects: int = 0, matched: tuple[int, ...] = ()) -> LastLayer:
    """Outputs in which the first ``objects`` queries of each image predict one at 0.9, the others at 0.1."""
    logits = torch.zeros(images, QUERIES, 2)
    logits[..., 1] = math.log(9.0)
    logits[:, :objects, 1] = -math.log(9.0)
    flags = torch.zeros(images, QUERIES, dtype=torch.bool)
    flags[:, list(matched)] = True
    return LastLayer(logits, torch.full((images, QUERIES, 4), 0.5), flags)


def test_spread_of_boxes_over_images_and_queries():
    health = Health()
    health.observe(seen(2))
    boxes = torch.full((2, QUERIES, 4), 0.5)
    health.observe_boxes(boxes)
    assert health.figures()["box_spread_images"] == 0
    assert health.figures()["box_spread_queries"] == 0
    health.clear()
    health.observe(seen(2))
    health.observe_boxes(boxes + torch.tensor([-0.1, 0.1])[:, None, None])
    assert health.figures()["box_spread_images"] == pytest.approx(0.1 * math.sqrt(2))  # of two, n - 1
    assert health.figures()["box_spread_queries"] == pytest.approx(0, abs=1e-7)
    health.clear()
    health.observe(seen(2))
    health.observe_boxes(boxes + torch.tensor([-0.1, 0.1, -0.1, 0.1])[:, None])
    assert health.figures()["box_spread_images"] == pytest.approx(0, abs=1e-7)
    assert health.figures()["box_spread_queries"] == pytest.approx(0.1)


def test_use_of_queries_is_judged_after_many_matches_and_over_windows():
    health = Health()
    windows = 0
    while health.last_use is None:
        health.observe(seen(10, matched=(0, 2)))
        health.clear()
        windows += 1
    use = health.last_use
    assert windows == MATCHES_TO_JUDGE * QUERIES / (10 * 2)
    assert (use.dead, use.queries, use.images, use.matches) == (2, QUERIES, 10 * windows, 20 * windows)
    assert use.objects_per_image == pytest.approx(2)
    health.observe(seen(1))
    assert health.figures()["queries_used"] == pytest.approx(0.5)


def test_nothing_is_read_before_it_is_asked_for_and_processes_are_summed():
    shapes = []

    def two_processes(rows: Tensor) -> Tensor:
        shapes.append(tuple(rows.shape))
        return 2 * rows

    health = Health(two_processes)
    for _ in range(3):  # steps; processes may cut them into different numbers of micro-batches
        health.observe(seen(1, objects=1))
        health.observe(seen(1, objects=3))
        health.end_step()
    assert shapes == []
    assert health.figures()["objects_share"] == pytest.approx(0.5)
    health.figures()
    assert shapes == [(3, 6 + QUERIES)]


def passes(model: nn.Module) -> Any:
    """As much of the passes as a look at the boxes needs."""
    fabric = SimpleNamespace(device=torch.device("cpu"), autocast=torch.no_grad)
    config = toy_config()
    return Passes(config, fabric, model, Toy.criterion(Toy, config), 0)  # type: ignore[arg-type]


def batch_of(count: int) -> Batch:
    batch = next(iter(toy_loader(count, count)))
    assert batch is not None
    return batch


@pytest.mark.parametrize("images", [1, 2, 5])
def test_boxes_are_looked_at_without_dropout_and_modes_come_back(images: int):
    torch.manual_seed(0)
    model = ToyDetector(dropout=0.5).train()
    model.norm.eval()
    batch, state = batch_of(images), torch.get_rng_state()
    found = [probe_boxes(passes(model), model, [batch], 3, 2) for _ in range(2)]
    assert torch.equal(found[0], found[1])
    assert len(found[0]) == max(images, 2)
    assert found[0].std(0).max() > 1e-4  # the single image differs from itself upside down
    assert torch.equal(torch.get_rng_state(), state)
    assert [part.training for part in model.modules()] == [part is not model.norm for part in model.modules()]
