from __future__ import annotations

import pytest
import torch

from detrkit.classes import ClassMap
from detrkit.config import LossConfig
from detrkit.losses.criterion import Criterion
from detrkit.losses.dense import align_tokens, assign_tokens, dense_terms
from detrkit.types import DenseOutputs, GroundTruth, Outputs
from tests.unit.losses.test_criterion import iou_of

CLASSES = ClassMap(("a", "b"), (1, 2))


def make_dense(images: int, side: int = 4, seed: int = 0) -> DenseOutputs:
    generator = torch.Generator().manual_seed(seed)
    centers = (torch.arange(side) + 0.5) / side
    points = torch.stack((centers.repeat(side), centers.repeat_interleave(side)), -1)[None]
    return DenseOutputs(
        logits=torch.randn(images, side * side, 3, generator=generator).requires_grad_(),
        boxes_cxcywh=(torch.rand(images, side * side, 4, generator=generator) * 0.5 + 0.2).requires_grad_(),
        points=points,
        valid=torch.ones(1, side * side, dtype=torch.bool),
    )


def make_outputs(dense: DenseOutputs) -> Outputs:
    images = dense.logits.shape[0]
    generator = torch.Generator().manual_seed(3)
    boxes = torch.rand(1, images, 5, 4, generator=generator) * 0.4 + 0.3
    return Outputs(torch.randn(1, images, 5, 3, generator=generator), boxes, dense)


def truth_of(boxes: list[list[float]], counts: tuple[int, ...]) -> GroundTruth:
    labels = torch.arange(len(boxes)) % 2
    return GroundTruth(labels, torch.tensor(boxes).view(-1, 4), counts)


def test_a_small_object_gets_the_nearest_token_and_a_large_one_those_around_its_centre():
    truth = truth_of([[0.13, 0.1, 0.05, 0.05], [0.5, 0.5, 0.9, 0.9]], (2,))
    assigned = assign_tokens(make_dense(1), truth).view(4, 4)
    assert assigned.tolist() == [[0, -1, -1, -1], [-1, 1, 1, -1], [-1, 1, 1, -1], [-1, -1, -1, -1]]


def test_the_smaller_of_two_objects_wins_a_token():
    truth = truth_of([[0.4, 0.4, 0.9, 0.9], [0.38, 0.38, 0.2, 0.2]], (2,))
    assert assign_tokens(make_dense(1), truth).view(4, 4)[1, 1] == 1


def test_padding_is_never_assigned():
    dense = make_dense(1)._replace(valid=torch.zeros(1, 16, dtype=torch.bool))
    assert (assign_tokens(dense, truth_of([[0.5, 0.5, 0.9, 0.9]], (1,))) == -1).all()


def test_images_without_objects_teach_no_object_only():
    dense = make_dense(2)
    losses = Criterion(LossConfig(), CLASSES, 5)(make_outputs(dense), truth_of([], (0, 0)))
    losses.total.backward()
    assert dense.logits.grad[..., -1].max() < 0  # every token is pushed towards no-object
    assert dense.boxes_cxcywh.grad.abs().sum() == 0


def best_ten_by_loops(dense: DenseOutputs, truth: GroundTruth, logit_index: list[int]) -> list[list[int]]:
    """The rule of :func:`align_tokens` in plain loops, in float64."""
    found, start = [], 0
    for image, count in enumerate(truth.counts):
        tokens = range(dense.logits.shape[1])
        row = min(image, len(dense.valid) - 1)
        valid = [bool(dense.valid[row, token]) for token in tokens]
        points = dense.points[min(image, len(dense.points) - 1)].double()
        scores = dense.logits[image].detach().double().softmax(-1)
        boxes = dense.boxes_cxcywh[image].double().tolist()
        owner, owned_by = [-1] * len(tokens), [-1.0] * len(tokens)
        for number in range(start, start + count):
            cx, cy, w, h = truth.boxes_cxcywh[number].double().tolist()
            squared = [float((points[t, 0] - cx) ** 2 + (points[t, 1] - cy) ** 2) for t in tokens]
            inside = {
                t
                for t in tokens
                if valid[t] and abs(points[t, 0] - cx) <= w / 2 and abs(points[t, 1] - cy) <= h / 2
            }
            inside |= {min((t for t in tokens if valid[t]), key=squared.__getitem__)} if any(valid) else set()
            overlaps = {t: iou_of(boxes[t], [cx, cy, w, h]) for t in inside}
            # by how well it fits; where nothing overlaps, by nearness
            ranked = sorted(
                inside, key=lambda t: (-float(scores[t, logit_index[number]]) * overlaps[t] ** 6, squared[t])
            )
            for token in ranked[:10]:
                if overlaps[token] > owned_by[token]:
                    owner[token], owned_by[token] = number, overlaps[token]
        found.append(owner)
        start += count
    return found


def make_random(counts: tuple[int, ...], side: int = 8, seed: int = 0) -> tuple[DenseOutputs, GroundTruth]:
    """Tokens whose boxes lie around them, as those of a network do, and objects of all sizes."""
    generator = torch.Generator().manual_seed(seed)
    dense = make_dense(len(counts), side, seed)
    sides = torch.rand(len(counts), side * side, 2, generator=generator) * 0.4 + 0.1
    shift = (torch.rand(len(counts), side * side, 2, generator=generator) - 0.5) * 0.2
    boxes = torch.cat((dense.points + shift, sides), dim=-1)
    total = sum(counts)
    objects = torch.cat(
        (
            torch.rand(total, 2, generator=generator) * 0.8 + 0.1,
            torch.rand(total, 2, generator=generator) ** 2 * 0.5 + 0.05,
        ),
        dim=1,
    )
    labels = torch.randint(0, 2, (total,), generator=generator)
    return dense._replace(boxes_cxcywh=boxes), GroundTruth(labels, objects, counts)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("padded", [False, True])
def test_aligned_tokens_are_those_of_the_plain_rule(seed: int, padded: bool):
    counts = (4, 0, 1)
    dense, truth = make_random(counts, side=14, seed=seed)  # so many that objects must choose
    if padded:
        valid = torch.ones(3, 14, 14, dtype=torch.bool)
        valid[0, 10:], valid[2, :, 8:] = False, False
        dense = dense._replace(valid=valid.flatten(1))
    logit_index = truth.labels
    found = align_tokens(dense, truth, logit_index)
    assert found.tolist() == best_ten_by_loops(dense, truth, logit_index.tolist())
    assert (found[1] == -1).all()
    assert (found[~dense.valid.expand(3, -1)] == -1).all()


def test_an_object_that_nothing_overlaps_yet_gets_the_nearest_tokens():
    dense = make_dense(1, side=8)
    far = torch.tensor([0.95, 0.95, 0.01, 0.01]).expand(1, 64, 4)
    tiny = GroundTruth(torch.tensor([0]), torch.tensor([[0.2, 0.2, 0.01, 0.01]]), (1,))
    assigned = align_tokens(dense._replace(boxes_cxcywh=far), tiny, tiny.labels)
    assert (assigned >= 0).nonzero().tolist() == [[0, 8 + 1]]
    large = GroundTruth(torch.tensor([0]), torch.tensor([[0.4, 0.4, 0.7, 0.7]]), (1,))
    assigned = align_tokens(dense._replace(boxes_cxcywh=far), large, large.labels)[0]
    distance = (dense.points[0] - 0.4).square().sum(-1)
    assert int((assigned == 0).sum()) == 10
    assert distance[assigned == 0].max() <= distance[assigned == -1].min() + 1e-6


def test_between_two_objects_the_best_overlap_wins_and_a_tie_goes_to_one():
    dense = make_dense(1)
    boxes = torch.tensor([0.5, 0.5, 0.5, 0.5]).expand(1, 16, 4)
    two = truth_of([[0.5, 0.5, 0.9, 0.9], [0.5, 0.5, 0.5, 0.5]], (2,))
    assigned = align_tokens(dense._replace(boxes_cxcywh=boxes), two, two.labels)[0]
    inner = ((dense.points[0] - 0.5).abs() <= 0.25).all(-1)
    assert (assigned[inner] == 1).all()
    same = truth_of([[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5]], (2,))
    labels = torch.zeros(2, dtype=torch.int64)
    assigned = align_tokens(dense._replace(boxes_cxcywh=boxes), same, labels)[0]
    assert (assigned[inner] == 0).all()


def test_without_objects_or_image_nothing_is_aligned():
    dense = make_dense(2)
    nothing = truth_of([], (0, 0))
    assert (align_tokens(dense, nothing, nothing.labels) == -1).all()
    padding = dense._replace(valid=torch.zeros(1, 16, dtype=torch.bool))
    truth = truth_of([[0.5, 0.5, 0.9, 0.9]], (1, 0))
    assert (align_tokens(padding, truth, truth.labels) == -1).all()


def test_slots_of_a_sparse_head_are_looked_up():
    """Classes that lie on other columns than their ids."""
    dense, truth = make_random((3,), seed=2)
    wide = torch.full((1, 64, 8), -9.0)
    wide[..., [2, 5, 7]] = dense.logits.detach()
    logit_index = torch.tensor([2, 5])[truth.labels]
    found = align_tokens(dense._replace(logits=wide), truth, logit_index)
    assert torch.equal(found, align_tokens(dense, truth, truth.labels))


def test_the_loss_of_tokens_is_that_of_their_soft_labels():
    """Each object weighs one, shared by its tokens; what is no object weighs as unmatched queries would."""
    dense, truth = make_random((2,), side=4, seed=1)
    found = dense_terms(dense, truth, truth.labels, LossConfig(class_targets="iou"), 5, "aligned")
    owners = align_tokens(dense, truth, truth.labels)[0].tolist()
    logs = dense.logits[0].log_softmax(-1)
    free = owners.count(-1)
    wanted, l1 = 0.0, 0.0
    for token, owner in enumerate(owners):
        if owner == -1:
            wanted -= 0.1 * (5 - 2) / free * logs[token, 2].item()
            continue
        target = truth.boxes_cxcywh[owner].tolist()
        box = dense.boxes_cxcywh[0, token].tolist()
        score, share = iou_of(box, target), 1 / owners.count(owner)
        label = int(truth.labels[owner])
        wanted -= share * (score * logs[token, label].item() + (1 - score) * logs[token, 2].item())
        l1 += share * sum(abs(a - b) for a, b in zip(box, target, strict=True))
    assert found["class"].item() == pytest.approx(wanted, rel=1e-5)
    assert found["l1"].item() == pytest.approx(l1, rel=1e-5)
