from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from detrkit.nn.denoising import NoisedObjects, block_mask, noise_objects
from detrkit.types import NO_OBJECT, NO_QUERY, Objects

LABEL_NOISE, BOX_NOISE = 0.25, 0.4


def make_objects(counts: tuple[int, ...], num_labels: int = 7, seed: int = 0) -> Objects:
    """Boxes far enough from the border that noise leaves them inside the image."""
    generator = torch.Generator().manual_seed(seed)
    total = sum(counts)
    centers = torch.rand(total, 2, generator=generator) * 0.2 + 0.4
    sides = torch.rand(total, 2, generator=generator) * 0.2 + 0.1
    logit_index = torch.randint(0, num_labels, (total,), generator=generator)
    return logit_index, torch.cat((centers, sides), dim=1), counts


def noised(objects: Objects, copies: int = 2, num_labels: int = 7, seed: int = 0, **noise: float) -> NoisedObjects:
    torch.manual_seed(seed)
    return noise_objects(
        objects, copies, num_labels, **{"label_noise": LABEL_NOISE, "box_noise": BOX_NOISE, **noise}
    )


def corners(boxes: torch.Tensor) -> torch.Tensor:
    return torch.cat((boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2), dim=-1)


def moves(found: NoisedObjects, objects: Objects, image: int, start: int, count: int) -> torch.Tensor:
    """How far each corner of an image's queries lies from its object's: halves of its sides [copies, 2, n, 4]."""
    boxes = objects[1][start : start + count]
    most = max(objects[2])
    queries = corners(found.boxes_cxcywh[image]).view(-1, 2, most, 4)[:, :, :count]
    return (queries - corners(boxes)).abs() / (0.5 * boxes[:, 2:].repeat(1, 2))


def test_each_object_lies_once_near_and_once_further_off_in_every_copy():
    objects = make_objects((5, 2))
    found = noised(objects, copies=60)
    most, copies = 5, 60
    assert found.objects.shape == (2, copies * 2 * most)
    for image, start, count in ((0, 0, 5), (1, 5, 2)):
        pairs = found.objects[image].view(copies, 2, most)
        assert (pairs[:, 0, :count] == torch.arange(start, start + count)).all()
        assert (pairs[:, 1, :count] == NO_OBJECT).all()
        assert (pairs[:, :, count:] == NO_QUERY).all()
        moved = moves(found, objects, image, start, count)
        near, far = moved[:, 0], moved[:, 1]
        assert near.max() <= BOX_NOISE + 1e-4
        assert near.max() > 0.9 * BOX_NOISE  # and really that far
        assert near.mean().item() == pytest.approx(BOX_NOISE / 2, rel=0.1)
        assert far.min() >= BOX_NOISE - 1e-4
        assert far.max() <= 2 * BOX_NOISE + 1e-4
        assert far.mean().item() == pytest.approx(1.5 * BOX_NOISE, rel=0.1)


def test_the_share_of_wrong_labels_is_the_one_asked_for():
    logit_index, boxes, counts = make_objects((10,), num_labels=80)
    found = noised((logit_index, boxes, counts), copies=200, num_labels=80)
    told = found.logit_index.view(-1, 10)
    wrong = (told != logit_index).float().mean().item()
    assert wrong == pytest.approx(LABEL_NOISE * 79 / 80, abs=0.03)
    assert (told.min(), told.max()) == (0, 79)  # any slot, never no-object's
    true = noised((logit_index, boxes, counts), num_labels=80, label_noise=0.0)
    assert torch.equal(true.logit_index.view(-1, 10), logit_index.expand(4, -1))


def test_boxes_stay_in_the_image_and_keep_a_size():
    boxes = torch.tensor([[0.01, 0.5, 0.02, 1.0], [0.99, 0.99, 0.02, 0.02], [0.5, 0.5, 0.0, 0.0]])
    found = noised((torch.zeros(3, dtype=torch.int64), boxes, (3,)), copies=50, box_noise=1.0)
    assert (found.boxes_cxcywh[..., 2:] >= 1e-3).all()
    assert corners(found.boxes_cxcywh).min() >= -1e-3
    assert corners(found.boxes_cxcywh).max() <= 1 + 1e-3
    assert found.boxes_cxcywh.logit(eps=1e-4).isfinite().all()


@pytest.mark.parametrize("counts", [(0,), (0, 0), ()])
def test_a_batch_without_objects_has_no_queries(counts: tuple[int, ...]):
    found = noised((torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), counts))
    assert found.logit_index.shape == (len(counts), 0)
    assert found.boxes_cxcywh.shape == (len(counts), 0, 4)
    assert found.blocks.shape == (0,)


def test_of_more_than_a_hundred_objects_the_first_are_noised():
    objects = make_objects((130, 2))
    found = noised(objects, copies=1)
    assert found.objects.shape == (2, 200)
    assert torch.equal(found.objects[0].view(2, 100)[0], torch.arange(100))
    assert torch.equal(found.objects[1].view(2, 100)[0, :2], torch.tensor([130, 131]))  # not 100 and 101
    assert moves(found, (objects[0], objects[1], (100, 2)), 1, 130, 2)[:, 0].max() <= BOX_NOISE + 1e-4


def test_queries_that_are_none_are_seen_by_nobody_and_attention_stays_finite():
    exists = torch.tensor([[True, True, False, True], [False, False, False, False]])
    mask = block_mask(torch.tensor([0, 0, 0, 1]), exists)
    assert mask.shape == (2, 1, 4, 4)
    assert mask.diagonal(dim1=-2, dim2=-1).all()  # whose softmax would be that of nothing
    others = mask & ~torch.eye(4, dtype=torch.bool)
    assert others[0, 0].int().tolist() == [[0, 1, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
    assert not others[1].any()
    values = torch.randn(2, 1, 4, 8)
    for dtype in (torch.float32, torch.bfloat16):
        part = values.to(dtype)
        assert functional.scaled_dot_product_attention(part, part, part, attn_mask=mask).isfinite().all()
