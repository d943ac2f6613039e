from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from detrkit.config import TrainConfig
from detrkit.training.optim import apply_gradients, build_optimizer, learning_rates, lr_factor, set_lr


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1))
        self.attention = nn.MultiheadAttention(4, 2)
        self.class_embed = nn.Linear(4, 2)  # a head, in spite of its name
        self.shared_head = self.class_embed
        self.query_embed = nn.Embedding(3, 4)
        self.level_embed = nn.Parameter(torch.zeros(2, 4))
        self.norm = nn.LayerNorm(4)
        self.backbone[0].weight.requires_grad_(False)


def test_groups_by_part_and_decay():
    model = Model()
    config = TrainConfig(lr=1e-3, backbone_lr=1e-4, weight_decay=0.05)
    optimizer = build_optimizer(model, config)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {
        group["name"]: (
            {names[id(parameter)] for parameter in group["params"]},
            group["lr"],
            group["weight_decay"],
        )
        for group in optimizer.param_groups
    }
    assert found == {
        "backbone": ({"backbone.2.weight"}, 1e-4, 0.05),
        "backbone_no_decay": (
            {"backbone.0.bias", "backbone.1.weight", "backbone.1.bias", "backbone.2.bias"},
            1e-4,
            0.0,
        ),
        "model": ({"attention.in_proj_weight", "attention.out_proj.weight", "class_embed.weight"}, 1e-3, 0.05),
        "model_no_decay": (
            {
                "attention.in_proj_bias",
                "attention.out_proj.bias",
                "class_embed.bias",
                "query_embed.weight",
                "level_embed",
                "norm.weight",
                "norm.bias",
            },
            1e-3,
            0.0,
        ),
    }
    assert learning_rates(optimizer) == {"backbone": 1e-4, "model": 1e-3}
    set_lr(optimizer, 0.5)
    set_lr(optimizer, 0.1)
    assert learning_rates(optimizer) == pytest.approx({"backbone": 1e-5, "model": 1e-4})


def test_fused_step_equals_plain_step():
    torch.manual_seed(0)
    first, second = nn.Linear(5, 4), nn.Linear(5, 4)
    second.load_state_dict(first.state_dict())
    config = TrainConfig(lr=1e-2, weight_decay=0.1)
    fused = build_optimizer(first, config)
    groups = [
        {"params": [second.weight], "weight_decay": 0.1},
        {"params": [second.bias], "weight_decay": 0.0},
    ]
    plain = torch.optim.AdamW(groups, lr=1e-2, fused=False, foreach=False)
    for _ in range(10):
        batch = torch.randn(3, 5)
        for model in (first, second):
            model.zero_grad()
            model(batch).square().sum().backward()
        expected = nn.utils.clip_grad_norm_(second.parameters(), 0.1)
        norm = apply_gradients(fused, clip_norm=0.1)
        plain.step()
        torch.testing.assert_close(norm, expected)
        # the same sums in another order: float32 rounding
        torch.testing.assert_close(first.weight, second.weight, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(first.bias, second.bias, rtol=1e-5, atol=1e-6)


def test_clip_norm_zero_does_not_clip():
    model = nn.Linear(1, 1)
    optimizer = build_optimizer(model, TrainConfig())
    model.weight.grad, model.bias.grad = torch.tensor([[300.0]]), torch.tensor([400.0])
    assert apply_gradients(optimizer, clip_norm=0.0) == 500.0
    assert model.bias.grad == 400.0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_gradient_that_is_not_finite_changes_nothing(value):
    torch.manual_seed(0)
    model = nn.Linear(5, 4)
    optimizer = build_optimizer(model, TrainConfig(lr=1e-2))
    model(torch.randn(2, 5)).sum().backward()
    apply_gradients(optimizer, clip_norm=0.1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    moments = [tensor.clone() for state in optimizer.state.values() for tensor in state.values()]
    model.weight.grad[0, 0] = value
    assert not apply_gradients(optimizer, clip_norm=0.1).isfinite()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    after = [tensor for state in optimizer.state.values() for tensor in state.values()]
    assert all(torch.equal(old, new) for old, new in zip(moments, after, strict=True))


def test_step_schedule_warms_up_and_drops():
    config = TrainConfig(schedule="step", warmup_steps=4, drop_at=0.8, drop_factor=0.1)
    factors = [lr_factor(step, 10, config) for step in range(10)]
    assert factors == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 0.1, 0.1])


def test_cosine_schedule_goes_from_one_to_zero():
    config = TrainConfig(schedule="cosine")
    assert [lr_factor(step, 4, config) for step in (0, 2, 4)] == pytest.approx([1.0, 0.5, 0.0])
    warm = TrainConfig(schedule="cosine", warmup_steps=2)
    assert [lr_factor(step, 4, warm) for step in (0, 1, 2, 3)] == pytest.approx([0.5, 1.0, 1.0, 0.5])


def test_constant_schedule_and_warmup_longer_than_training():
    assert lr_factor(99, 100, TrainConfig(schedule="constant")) == 1.0
    assert lr_factor(1, 2, TrainConfig(schedule="constant", warmup_steps=10)) == pytest.approx(0.2)
    assert lr_factor(1, 2, TrainConfig(schedule="cosine", warmup_steps=10)) == pytest.approx(0.2)
