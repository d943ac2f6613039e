from __future__ import annotations

import torch

from detrkit.config import LossConfig
from detrkit.losses.criterion import Criterion
from detrkit.losses.dense import assign_tokens
from detrkit.types import ClassMap, DenseOutputs, GroundTruth, Outputs

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


def test_micro_batches_add_up_to_the_whole_batch():
    boxes = [[0.3, 0.3, 0.2, 0.3], [0.6, 0.6, 0.7, 0.7], [0.5, 0.4, 0.3, 0.3]]
    dense = make_dense(3)
    outputs, truth = make_outputs(dense), truth_of(boxes, (2, 0, 1))
    criterion = Criterion(LossConfig(), CLASSES, 5)
    whole = criterion(outputs, truth)
    shared = criterion.normalizers((2, 0, 1))
    parts = []
    for images, objects, counts in (((0, 1), (0, 2), (2,)), ((1, 3), (2, 3), (0, 1))):
        image, rows = slice(*images), slice(*objects)
        part = dense._replace(logits=dense.logits[image], boxes_cxcywh=dense.boxes_cxcywh[image])
        part_outputs = Outputs(outputs.logits[:, image], outputs.boxes_cxcywh[:, image], part)
        part_truth = GroundTruth(truth.labels[rows], truth.boxes_cxcywh[rows], counts)
        parts.append(criterion(part_outputs, part_truth, shared))
    torch.testing.assert_close(sum(part.total for part in parts), whole.total, rtol=1e-6, atol=0)
    torch.testing.assert_close(sum(part.terms["dense"] for part in parts), whole.terms["dense"], rtol=1e-6, atol=0)


def test_images_without_objects_teach_no_object_only():
    dense = make_dense(2)
    losses = Criterion(LossConfig(), CLASSES, 5)(make_outputs(dense), truth_of([], (0, 0)))
    losses.total.backward()
    assert dense.logits.grad[..., -1].max() < 0  # every token is pushed towards no-object
    assert dense.boxes_cxcywh.grad.abs().sum() == 0


def test_without_weight_the_tokens_do_not_count():
    outputs, truth = make_outputs(make_dense(1)), truth_of([[0.5, 0.5, 0.3, 0.3]], (1,))
    without = Criterion(LossConfig(dense_weight=0), CLASSES, 5)(outputs, truth)
    plain = Criterion(LossConfig(), CLASSES, 5)(outputs._replace(dense=None), truth)
    assert without.total == plain.total
    assert "dense" not in without.terms
