from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from detrkit.config import TrainConfig
from detrkit.families.parts import Place, find_places
from detrkit.training.optim import (
    apply_gradients,
    build_optimizer,
    learning_rates,
    lr_factor,
    new_parameters,
    set_lr,
    set_step_lr,
    train_mode,
)


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
    groups = [{"params": [second.weight], "weight_decay": 0.1}, {"params": [second.bias], "weight_decay": 0.0}]
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


def names_by_group(optimizer: torch.optim.Optimizer) -> dict[str, set[str]]:
    return {group["name"]: set(group["param_names"]) for group in optimizer.param_groups}


def places(model: nn.Module) -> dict[str, Place]:
    """Every top module is a part, the head at the top; the backbone has a stage for each of its modules."""
    depths = {"class_embed": 0, "norm": 1, "attention": 1, "query_embed": 2, "level_embed": 2}
    found = {}
    for name, _ in model.named_parameters(remove_duplicate=False):
        top, _, rest = name.partition(".")
        inner = rest.partition(".")[0]
        found[name] = (
            Place(f"backbone.{inner}", 5 - int(inner)) if top == "backbone" else Place(top, depths.get(top, 0))
        )
    return found


def test_the_most_specific_part_sets_the_rate():
    model = Model()
    config = TrainConfig(
        lr=1e-3, backbone_lr=1e-4, lr_scale={"backbone": 0.5, "backbone.2": 3.0, "attention": 0.1}
    )
    optimizer = build_optimizer(model, config, places(model))
    assert learning_rates(optimizer) == pytest.approx(
        {"model": 1e-3, "attention": 1e-4, "backbone": 5e-5, "backbone.2": 3e-4}
    )
    groups = names_by_group(optimizer)
    assert groups["backbone.2"] == {"backbone.2.weight"}
    assert groups["attention_no_decay"] == {"attention.in_proj_bias", "attention.out_proj.bias"}
    assert sum(len(group) for group in groups.values()) == sum(p.requires_grad for p in model.parameters())


def test_layer_decay_is_a_power_of_the_depth_and_multiplies_the_other_factors():
    model = Model()
    config = TrainConfig(lr=1.0, backbone_lr=0.1, layer_decay=0.5, lr_scale={"attention": 3.0})
    rates = learning_rates(build_optimizer(model, config, places(model)))
    assert rates == pytest.approx(
        {
            "model": 1.0,
            "norm": 0.5,
            "attention": 1.5,
            "query_embed": 0.25,
            "level_embed": 0.25,
            "backbone.0": 0.1 / 2**5,
            "backbone.1": 0.1 / 2**4,
            "backbone.2": 0.1 / 2**3,
        }
    )


HEAD = {"class_embed.weight", "class_embed.bias"}
HEAD_CONFIG = TrainConfig(lr=1e-2, backbone_lr=1e-2, head_steps=3, schedule="constant", warmup_steps=2)


def loss_of(model: nn.Module) -> torch.Tensor:
    """Something that every parameter has a gradient of."""
    return sum((parameter.square().sum() + parameter.sum() for parameter in model.parameters()), torch.zeros(()))


def test_what_is_new_is_known_from_a_saved_state():
    first = build_optimizer(Model(), HEAD_CONFIG, new=HEAD)
    saved = first.state_dict()
    assert new_parameters(saved) == HEAD
    again = build_optimizer(Model(), HEAD_CONFIG, new=new_parameters(saved))
    again.load_state_dict(saved)
    assert names_by_group(again) == names_by_group(first)
    assert new_parameters(build_optimizer(Model(), TrainConfig()).state_dict()) == frozenset()


def test_a_state_of_before_parts_had_rates_still_loads():
    model = Model()
    optimizer = build_optimizer(model, TrainConfig())
    saved = optimizer.state_dict()
    for group in saved["param_groups"]:
        del group["new"], group["param_names"]
    assert new_parameters(saved) == frozenset()
    again = build_optimizer(Model(), TrainConfig())
    again.load_state_dict(saved)
    set_step_lr(again, 0, 10, TrainConfig(head_steps=5))
    loss_of(model).backward()
    apply_gradients(again, clip_norm=0.1)
    assert learning_rates(again) == {"backbone": 1e-5, "model": 1e-4}


def test_boxes_and_masks_have_a_schedule_each_one_after_the_other():
    model = nn.ModuleDict({"class_embed": nn.Linear(2, 2), "mask_head": nn.Linear(2, 2)})
    config = TrainConfig(epochs=5, box_epochs=2, schedule="cosine", warmup_steps=0, lr=1.0)
    optimizer = build_optimizer(model, config, find_places(model))
    rates: list[float] = []
    for step in range(10):
        set_step_lr(optimizer, step, 10, config)
        rates += [learning_rates(optimizer)[name] for name in ("model", "model_masks")]
        learning = "class_embed" if step < 4 else "mask_head"
        assert [name for name, part in model["class_embed"].named_parameters() if part.requires_grad] == (
            ["weight", "bias"] if step < 4 else []
        )
        before = {name: value.clone() for name, value in model.state_dict().items()}
        loss_of(model).backward()
        apply_gradients(optimizer, clip_norm=1.0)
        optimizer.zero_grad()
        after = model.state_dict()
        assert {name for name in before if not torch.equal(before[name], after[name])} == {
            f"{learning}.weight",
            f"{learning}.bias",
        }
    expected: list[float] = []
    for step in range(4):
        expected += [0.5 * (1 + math.cos(math.pi * step / 4)), 0.0]
    for step in range(6):
        expected += [0.0, 0.5 * (1 + math.cos(math.pi * step / 6))]
    assert rates == pytest.approx(expected)


def modes(model: nn.Module) -> dict[str, bool]:
    return {name: module.training for name, module in model.named_modules()}


def test_modules_whose_parameters_all_rest_work_as_in_evaluation():
    layer = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    model = nn.Sequential(layer, nn.BatchNorm1d(2), nn.Dropout(0.5), nn.Linear(2, 2))
    layer.requires_grad_(False)
    model[1].requires_grad_(False)
    optimizer = build_optimizer(model, TrainConfig())
    for calls in range(2):
        train_mode(model, optimizer)
        assert modes(model) == {"": True, "0": False, "0.0": False, "0.1": False, "1": False, "2": True, "3": True}
        if calls == 0:
            model.eval()
    model.train()
    train_mode(model, optimizer)
    assert not model[0][1].training


def test_schedules():
    cases = [
        ({"schedule": "step", "warmup_steps": 4, "drop_at": 0.8, "drop_factor": 0.1}, 10, range(10)),
        ({"schedule": "cosine"}, 4, (0, 2, 4)),
        ({"schedule": "cosine", "warmup_steps": 2}, 4, range(4)),
        ({"schedule": "constant"}, 100, (99,)),
        ({"schedule": "constant", "warmup_steps": 10}, 2, (1,)),
        ({"schedule": "cosine", "warmup_steps": 10}, 2, (1,)),
        ({"schedule": "constant", "warmup_steps": 500, "warmup_share": 0.05}, 80, (0, 3, 4)),
        ({"schedule": "flat_cosine", "drop_at": 0.5, "drop_factor": 0.5, "warmup_steps": 2}, 8, (0, 1, 4, 6, 8)),
        ({"schedule": "flat_cosine", "drop_at": 1.0}, 4, (0, 3)),
    ]
    expected = [
        [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 0.1, 0.1],
        *([1.0, 0.5, 0.0], [0.5, 1.0, 1.0, 0.5], [1.0], [0.2], [0.2], [0.25, 1.0, 1.0]),
        *([0.5, 1.0, 1.0, 0.75, 0.5], [1.0, 1.0]),
    ]
    for (settings, total, steps), factors in zip(cases, expected, strict=True):
        config = TrainConfig.model_validate(settings)
        assert [lr_factor(step, total, config) for step in steps] == pytest.approx(factors), settings
