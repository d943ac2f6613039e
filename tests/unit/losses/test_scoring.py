from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch.nn import functional
from torchvision.ops import sigmoid_focal_loss

from detrkit.config import LossConfig
from detrkit.losses.criterion import Criterion, Normalizers
from detrkit.losses.scoring import SOFTMAX, ClassScoring, SigmoidScoring
from detrkit.types import DenoisedOutputs, DenseOutputs, GroupOutputs, Outputs
from tests.unit.losses.test_criterion import CLASSES, iou_of, make_truth

SLOTS = len(CLASSES)
BOTH = [SOFTMAX, SigmoidScoring()]


def test_focal_loss_is_torchvisions():
    scoring = SigmoidScoring(alpha=0.3, gamma=1.5)
    logits = torch.randn(2, 3, 5, SLOTS, requires_grad=True)
    targets = torch.randint(0, SLOTS + 1, (2, 3, 5))
    one_hot = functional.one_hot(targets, SLOTS + 1)[..., :-1].float()
    wanted = sigmoid_focal_loss(logits, one_hot, alpha=0.3, gamma=1.5, reduction="none").sum(-1)
    found = scoring.losses(logits, targets)
    torch.testing.assert_close(found, wanted)
    (mine,) = torch.autograd.grad(found.sum(), logits, retain_graph=True)
    (theirs,) = torch.autograd.grad(wanted.sum(), logits)
    torch.testing.assert_close(mine, theirs)


def test_focal_cost_is_the_difference_of_two_focal_losses():
    logits = torch.randn(4, SLOTS)
    ones = torch.ones_like(logits)
    wanted = sigmoid_focal_loss(logits, ones) - sigmoid_focal_loss(logits, 0 * ones)
    torch.testing.assert_close(SigmoidScoring().costs(logits), wanted)


def test_varifocal_loss_follows_its_equation():
    """Equation 2 of arXiv:2008.13367: -q (q log p + (1 - q) log(1 - p)), or -alpha p^gamma log(1 - p)."""
    scoring = SigmoidScoring(alpha=0.75)
    logits = torch.tensor([[0.3, -1.0, 2.0], [0.5, 0.1, -0.2]])
    found = scoring.losses(logits, torch.tensor([1, 3]), torch.tensor([0.6, 1.0]))
    p = logits.sigmoid()
    background = -0.75 * p**2 * (1 - p).log()
    own = 0.6 * -(0.6 * p[0, 1].log() + 0.4 * (1 - p[0, 1]).log())
    torch.testing.assert_close(
        found, torch.stack((background[0, 0] + own + background[0, 2], background[1].sum()))
    )


def test_matchability_loss_follows_its_equation():
    """Of arXiv:2412.04234: -q^g log p - (1 - q^g) log(1 - p), or -p^g log(1 - p); number by number."""
    logits, targets, qualities = torch.randn(3, 4, SLOTS), torch.randint(0, SLOTS + 1, (3, 4)), torch.rand(3, 4)
    qualities[0] = 0.0  # a box that misses its object: what varifocal loss takes no notice of
    logits.requires_grad_()
    found = SigmoidScoring(alpha=0.75, matchability=1.5).losses(logits, targets, qualities)
    wanted = torch.zeros(3, 4)
    for row, column, name in itertools.product(range(3), range(4), range(SLOTS)):
        x = logits[row, column, name].item()
        p, q = 1 / (1 + math.exp(-x)), qualities[row, column].item() ** 1.5
        own = targets[row, column] == name
        wanted[row, column] -= q * math.log(p) + (1 - q) * math.log(1 - p) if own else p**1.5 * math.log(1 - p)
    torch.testing.assert_close(found, wanted)
    # weights are no way to score less: with q and the weight fixed the gradient is weight * (p - q^g)
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    own = functional.one_hot(targets, SLOTS + 1)[..., :-1].bool()
    p = logits.detach().sigmoid()
    expected = torch.where(own, p - qualities[..., None] ** 1.5, p**1.5 * p)
    torch.testing.assert_close(gradient, expected)


def test_criterion_takes_the_matchability_loss_by_name():
    truth, generator = make_truth((2, 1)), torch.Generator().manual_seed(0)
    logits = torch.randn(1, 2, 5, SLOTS, generator=generator)
    boxes = torch.rand(1, 2, 5, 4, generator=generator) * 0.4 + 0.3
    terms = {}
    for class_targets in ("iou", "mal"):
        config = LossConfig.model_validate({"class_targets": class_targets})
        criterion = Criterion(config, CLASSES, 5, scoring=SigmoidScoring(alpha=0.75))
        terms[class_targets] = criterion(Outputs(logits, boxes), truth).terms
    matches = criterion.matcher(Outputs(logits, boxes), truth, truth.labels)
    assert (terms["mal"]["l1"], terms["mal"]["giou"]) == (terms["iou"]["l1"], terms["iou"]["giou"])
    p, wanted = logits[0].sigmoid(), 0.0
    taken = {}
    for image, query, number in matches.pairs[:, 0].T.tolist():
        taken[image, query, int(truth.labels[number])] = iou_of(
            boxes[0, image, query].tolist(), truth.boxes_cxcywh[number].tolist()
        )
    for place in itertools.product(range(2), range(5), range(SLOTS)):
        score, target = p[place].item(), taken.get(place)
        goal, weight = (0.0, score**1.5) if target is None else (target**1.5, 1.0)
        wanted -= weight * (goal * math.log(score) + (1 - goal) * math.log(1 - score)) / 3
    assert terms["mal"]["class"].item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("scoring", BOTH, ids=["softmax", "sigmoid"])
def test_nothing_finds_nothing_and_a_sure_class_is_found(scoring: ClassScoring):
    logits = torch.zeros(2, SLOTS + scoring.extra_columns)
    logits[0] = scoring.nothing(logits)
    logits[1] = scoring.nothing(logits)
    logits[1, 1] = 20.0
    assert scoring.finds_object(logits).tolist() == [False, True]
    torch.testing.assert_close(scoring.object_scores(logits), torch.tensor([0.0, 1.0]), atol=1e-6, rtol=0)
    assert scoring.scores(logits).shape == (2, SLOTS)
    assert scoring.scores(logits)[1].argmax() == scoring.costs(logits)[1].argmin() == 1


@pytest.mark.parametrize(("class_targets", "dense"), [("hard", "center"), ("iou", "aligned"), ("mal", "center")])
@pytest.mark.parametrize("scoring", BOTH, ids=["softmax", "sigmoid"])
def test_images_one_by_one_give_the_gradient_of_the_batch(scoring: ClassScoring, class_targets: str, dense: Any):
    """Queries, groups, tokens and noised objects; an image without objects too."""
    torch.manual_seed(0)
    layers, images, queries, columns = 2, 3, 6, SLOTS + scoring.extra_columns
    truth = make_truth((2, 0, 1))
    logits = torch.randn(layers, images, queries, columns, requires_grad=True)
    boxes = torch.rand(layers, images, queries, 4).clamp(0.1, 0.6).requires_grad_()
    noised = torch.tensor([[0, 1, -1], [-2, -2, -2], [2, -1, -2]])
    criterion = Criterion(
        LossConfig.model_validate({"class_targets": class_targets}), CLASSES, queries, dense, scoring=scoring
    )

    def outputs(part: slice, objects: torch.Tensor) -> Outputs:
        own, own_boxes = logits[:, part], boxes[:, part]
        points = torch.rand(1, queries, 2, generator=torch.Generator().manual_seed(1))
        return Outputs(
            own,
            own_boxes,
            DenseOutputs(own[-1], own_boxes[-1], points, torch.ones(1, queries, dtype=torch.bool)),
            GroupOutputs(own[:, :, None], own_boxes[:, :, None]),
            DenoisedOutputs(own[:, :, : objects.shape[1]], own_boxes[:, :, : objects.shape[1]], objects, 1),
        )

    whole = criterion(outputs(slice(None), noised), truth)
    wanted = torch.autograd.grad(whole.total, (logits, boxes))
    assert whole.total.isfinite()
    normalizers = sum((criterion.normalizers((count,)) for count in truth.counts), Normalizers(0.0, 0.0))
    total = torch.zeros(())
    start = 0
    for image, count in enumerate(truth.counts):
        own = type(truth)(truth.labels[start : start + count], truth.boxes_cxcywh[start : start + count], (count,))
        objects = torch.where(noised[image] >= 0, noised[image] - start, noised[image])[None]
        objects = objects if count else objects[:, :0]  # as without objects nothing is noised
        total = total + criterion(outputs(slice(image, image + 1), objects), own, normalizers).total
        start += count
    torch.testing.assert_close(total, whole.total)
    torch.testing.assert_close(torch.autograd.grad(total, (logits, boxes)), wanted)
