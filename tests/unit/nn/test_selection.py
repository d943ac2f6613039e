from __future__ import annotations

import pytest
import torch

from detrkit.losses.scoring import SOFTMAX
from detrkit.nn.selection import best_tokens, hide_missing, locate_cells

DEVICE = torch.device("cpu")


def best(logits: torch.Tensor) -> torch.Tensor:
    return SOFTMAX.scores(logits).amax(-1)


def test_anchors_have_the_centres_and_sides_of_rt_detr():
    from transformers.models.rt_detr_v2.modeling_rt_detr_v2 import RTDetrV2Model

    shapes = ((8, 10), (4, 5), (2, 3))
    theirs, inside = RTDetrV2Model._cached_generate_anchors(shapes, 0.05)
    ours = locate_cells(shapes, (None, None, None), DEVICE)
    assert bool(inside.all())
    torch.testing.assert_close(ours.anchors, theirs.sigmoid())
    torch.testing.assert_close(ours.points, ours.anchors[..., :2])
    assert ours.valid.all()


def test_the_best_tokens_come_first():
    logits = torch.zeros(2, 5, 3)
    logits[0, 3, 1] = 5.0
    logits[0, 1, 0] = 4.0
    logits[0, 2, 2] = 9.0  # sure that nothing is there
    logits[1, 4, 0] = 1.0
    logits[1, 0, 0] = 50.0
    valid = torch.ones(2, 5, dtype=torch.bool)
    valid[1, 0] = False  # padding, however sure it is
    chosen, real = best_tokens(best(logits), valid, 4)
    assert chosen[0, :2].tolist() == [3, 1]
    assert 2 not in chosen[0]
    assert chosen[1, 0] == 4
    assert 0 not in chosen[1]
    assert real.all()


@pytest.mark.parametrize("tokens", [3, 6])
def test_missing_tokens_are_marked(tokens: int):
    valid = torch.zeros(2, tokens, dtype=torch.bool)
    valid[0, :2] = True
    valid[1, :1] = True
    chosen, real = best_tokens(torch.rand(2, tokens), valid, 5)
    assert chosen.shape == real.shape == (2, 5)
    assert real.tolist() == [[True, True, False, False, False], [True, False, False, False, False]]
    assert sorted(chosen[0, :2].tolist()) == [0, 1]
    assert chosen[1, 0] == 0


def test_tokens_that_are_not_numbers_are_not_taken_for_missing():
    """Or a step whose features are not finite would look like a sound one."""
    _, real = best_tokens(torch.full((1, 4), torch.nan), torch.ones(1, 4, dtype=torch.bool), 3)
    assert real.all()


def test_what_stands_for_no_token_finds_nothing_and_teaches_nothing():
    logits = torch.randn(2, 1, 3, 4, requires_grad=True)
    boxes = torch.rand(2, 1, 3, 4, requires_grad=True)
    real = torch.tensor([[True, False, True]])
    hidden_logits, hidden_boxes = hide_missing(logits, boxes, real, SOFTMAX.nothing(logits))
    kept = [0, 2]
    assert torch.equal(hidden_logits[:, :, kept], logits[:, :, kept])
    assert torch.equal(hidden_boxes[:, :, kept], boxes[:, :, kept])
    assert (hidden_logits[:, :, 1].softmax(-1)[..., :-1] < 1e-8).all()
    (hidden_logits.sum() + hidden_boxes.sum()).backward()
    assert not logits.grad[:, :, 1].any()  # type: ignore[index]
    assert not boxes.grad[:, :, 1].any()  # type: ignore[index]
    assert logits.grad[:, :, kept].all()  # type: ignore[index]
