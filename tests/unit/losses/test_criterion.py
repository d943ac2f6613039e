from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from detrkit.config import LossConfig
from detrkit.losses.criterion import Criterion
from detrkit.losses.matcher import HungarianMatcher
from detrkit.types import ClassMap, GroundTruth, Outputs

CLASSES = ClassMap(("a", "b", "c"), (1, 2, 3))


def make_outputs(layers: int = 2, images: int = 3, queries: int = 6, seed: int = 0) -> Outputs:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(layers, images, queries, 4, generator=generator)
    boxes = torch.rand(layers, images, queries, 4, generator=generator) * 0.5 + 0.2
    return Outputs(logits.requires_grad_(), boxes.requires_grad_())


def make_truth(counts: tuple[int, ...], seed: int = 1) -> GroundTruth:
    generator = torch.Generator().manual_seed(seed)
    total = sum(counts)
    boxes = torch.rand(total, 4, generator=generator) * 0.4 + 0.3
    return GroundTruth(torch.randint(0, 3, (total,), generator=generator), boxes, counts)


def test_the_matching_is_the_cheapest_of_all():
    outputs, truth = make_outputs(layers=2, images=2, queries=5), make_truth((3, 2))
    matcher = HungarianMatcher()
    matches = matcher(outputs, truth, truth.labels)
    costs = matcher.costs(outputs, truth, truth.labels).numpy()
    for layer in range(2):
        for image, (start, count) in enumerate(((0, 3), (3, 2))):
            chosen = matches.images[layer] == image
            pairs = zip(
                matches.objects[layer][chosen].tolist(), matches.queries[layer][chosen].tolist(), strict=True
            )
            found = sum(costs[layer, o, q] for o, q in pairs)
            best = min(
                sum(costs[layer, start + i, q] for i, q in enumerate(queries))
                for queries in itertools.permutations(range(5), count)
            )
            assert found == pytest.approx(best)


def test_all_layers_and_images_share_one_host_transfer(monkeypatch: pytest.MonkeyPatch):
    transfers = []
    original = torch.Tensor.cpu
    monkeypatch.setattr(
        torch.Tensor, "cpu", lambda self, *a, **k: transfers.append(self.shape) or original(self, *a, **k)
    )
    for name in ("item", "tolist", "numpy"):
        method = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda self, *a, _m=method, _n=name, **k: transfers.append(_n) or _m(self, *a, **k)
        )
    truth = make_truth((2, 0, 4))
    Criterion(LossConfig(), CLASSES, 6)(make_outputs(), truth)
    # the cost tensor goes to the host once; .numpy() on that host tensor is free
    assert transfers == [torch.Size([2, 6, 6]), "numpy"]


def test_costs_that_are_not_finite_are_chosen_last():
    outputs, truth = make_outputs(layers=1, images=1, queries=4), make_truth((2,))
    boxes = outputs.boxes_cxcywh.detach().clone()
    boxes[0, 0, 1] = float("nan")
    boxes[0, 0, 2] = float("inf")
    matches = HungarianMatcher()(Outputs(outputs.logits, boxes), truth, truth.labels)
    assert set(matches.queries[0].tolist()) == {0, 3}


def test_more_objects_than_queries_match_every_query():
    outputs, truth = make_outputs(layers=1, images=1, queries=3), make_truth((5,))
    matches = HungarianMatcher()(outputs, truth, truth.labels)
    assert sorted(matches.queries[0].tolist()) == [0, 1, 2]
    losses = Criterion(LossConfig(), CLASSES, 3)(outputs, truth)
    assert torch.isfinite(losses.total)


def test_images_without_objects_give_a_class_loss_and_no_box_loss():
    outputs = make_outputs()
    losses = Criterion(LossConfig(), CLASSES, 6)(outputs, make_truth((0, 0, 0)))
    assert losses.terms["l1"].item() == 0.0
    assert losses.terms["giou"].item() == 0.0
    assert losses.terms["class"].item() > 0
    losses.total.backward()
    assert outputs.logits.grad.abs().sum() > 0
    assert outputs.boxes_cxcywh.grad.abs().sum() == 0


def test_no_objects_still_reach_every_output_so_that_no_parameter_is_unused():
    outputs = make_outputs()
    Criterion(LossConfig(), CLASSES, 6)(outputs, make_truth((0, 0, 0))).total.backward()
    assert outputs.boxes_cxcywh.grad is not None


def test_losses_of_micro_batches_add_up_to_the_whole_batch():
    outputs, truth = make_outputs(images=4), make_truth((3, 0, 1, 2))
    criterion = Criterion(LossConfig(), CLASSES, 6)
    whole = criterion(outputs, truth).total
    parts = [((0, 2), (0, 3), (3, 0)), ((2, 4), (3, 6), (1, 2))]
    shared = criterion.normalizers((3, 0)) + criterion.normalizers((1, 2))
    total = sum(
        criterion(
            Outputs(outputs.logits[:, a:b], outputs.boxes_cxcywh[:, a:b]),
            GroundTruth(truth.labels[c:d], truth.boxes_cxcywh[c:d], counts),
            shared,
        ).total
        for (a, b), (c, d), counts in parts
    )
    torch.testing.assert_close(total, whole, rtol=1e-6, atol=0)


def test_the_order_of_images_does_not_matter():
    outputs, truth = make_outputs(images=2), make_truth((2, 3))
    swapped = Outputs(outputs.logits.flip(1), outputs.boxes_cxcywh.flip(1))
    order = [2, 3, 4, 0, 1]
    swapped_truth = GroundTruth(truth.labels[order], truth.boxes_cxcywh[order], (3, 2))
    criterion = Criterion(LossConfig(), CLASSES, 6)
    torch.testing.assert_close(criterion(outputs, truth).total, criterion(swapped, swapped_truth).total)


def test_without_aux_only_the_last_layer_counts():
    outputs, truth = make_outputs(layers=3), make_truth((1, 1, 1))
    alone = Outputs(outputs.logits[-1:], outputs.boxes_cxcywh[-1:])
    without = Criterion(LossConfig(aux=False), CLASSES, 6)(outputs, truth).total
    torch.testing.assert_close(without, Criterion(LossConfig(), CLASSES, 6)(alone, truth).total)


def test_a_perfect_prediction_has_no_box_loss_and_no_class_error():
    truth = make_truth((2, 1))
    logits = torch.full((1, 2, 3, 4), -20.0)
    boxes = torch.full((1, 2, 3, 4), 0.1)
    for image, query, target in ((0, 2, 0), (0, 0, 1), (1, 1, 2)):
        logits[0, image, query, truth.labels[target]] = 20.0
        boxes[0, image, query] = truth.boxes_cxcywh[target]
    for image, query in ((0, 1), (1, 0), (1, 2)):
        logits[0, image, query, 3] = 20.0
    terms = Criterion(LossConfig(), CLASSES, 3)(Outputs(logits, boxes), truth).terms
    assert terms["class_error"].item() == 0.0
    np.testing.assert_allclose([terms[name].item() for name in ("class", "l1", "giou")], 0, atol=1e-5)


def test_labels_go_to_the_slots_of_the_class_map():
    sparse = ClassMap(("a", "b"), (2, 5), slots=(2, 5), num_slots=7)
    logits = torch.zeros(1, 1, 2, 8)
    logits[..., 0, 5] = 9.0
    logits[..., 1, 7] = 9.0
    truth = GroundTruth(torch.tensor([1]), torch.tensor([[0.5, 0.5, 0.2, 0.2]]), (1,))
    outputs = Outputs(logits, truth.boxes_cxcywh.expand(1, 1, 2, 4))
    assert Criterion(LossConfig(), sparse, 2)(outputs, truth).terms["class"].item() < 0.01
