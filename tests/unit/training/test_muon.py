from __future__ import annotations

import pytest
import torch
from torch import nn

from detrkit.classes import ClassMap
from detrkit.config import TrainConfig
from detrkit.families.build import build_model
from detrkit.families.parts import find_places
from detrkit.families.recipes import preset_config
from detrkit.training.muon import orthogonalize
from detrkit.training.optim import apply_gradients, build_optimizer

CONFIG = TrainConfig(lr=1e-2, backbone_lr=1e-2, weight_decay=0.1, muon=0.2)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 32, 3)
        self.twin = nn.Conv2d(8, 32, 3)
        self.depthwise = nn.Conv2d(32, 32, 5, groups=32)
        self.attention = nn.MultiheadAttention(16, 2)
        self.box_head = nn.Linear(16, 4)
        self.embed = nn.Embedding(40, 20)
        self.to(memory_format=torch.channels_last)


MATRICES = {"conv.weight", "twin.weight", "attention.in_proj_weight", "attention.out_proj.weight"}


def as_matrices(name: str, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The weights that torch's own Muon, which takes two dimensions alone, is given."""
    return weight.detach().flatten(1).chunk(3 if "in_proj" in name else 1)


def make_steps(net: Net, config: TrainConfig, steps: int = 4):
    optimizer = build_optimizer(net, config)
    noise = torch.Generator().manual_seed(1)
    seen = []
    for _ in range(steps):
        for parameter in net.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=noise)
        seen.append({name: parameter.grad.clone() for name, parameter in net.named_parameters()})
        apply_gradients(optimizer, 0.0)
    return optimizer, seen


def test_matrices_move_as_by_torchs_muon_and_all_else_as_by_adamw():
    torch.manual_seed(0)
    net, plain = Net(), Net()
    plain.load_state_dict(net.state_dict())
    before = {name: weight.detach().clone() for name, weight in net.named_parameters()}
    optimizer, gradients = make_steps(net, CONFIG)
    make_steps(plain, CONFIG.model_copy(update={"muon": 0.0}))

    of_muon = {name for group in optimizer.param_groups if group["muon"] for name in group["param_names"]}
    assert of_muon == MATRICES
    for name, weight in net.named_parameters():
        if name not in MATRICES:
            assert torch.equal(weight, plain.get_parameter(name)), name
            continue
        parts = [nn.Parameter(part.clone()) for part in as_matrices(name, before[name])]
        peer = torch.optim.Muon(parts, lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
        for step in gradients:
            for part, gradient in zip(parts, as_matrices(name, step[name]), strict=True):
                part.grad = gradient.clone()
            peer.step()
        moved = zip(parts, as_matrices(name, before[name]), as_matrices(name, weight), strict=True)
        for part, start, ours in moved:
            assert (ours - part).norm() < 0.02 * (part - start).norm(), name  # both iterate in bfloat16


@pytest.mark.parametrize("scaled", [False, True])
def test_a_gradient_that_is_not_finite_changes_nothing(scaled: bool):
    torch.manual_seed(0)
    net = Net()
    optimizer, _ = make_steps(net, CONFIG)
    weights = {name: weight.clone() for name, weight in net.state_dict().items()}
    moments = [{key: moment.clone() for key, moment in state.items()} for state in optimizer.state.values()]
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, float("nan"))
    if scaled:
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        scaler.scale(torch.ones(()))
        scaler.step(optimizer)
    else:
        apply_gradients(optimizer, 1.0)
    assert all(torch.equal(weights[name], weight) for name, weight in net.state_dict().items())
    for former, state in zip(moments, optimizer.state.values(), strict=True):
        assert all(torch.equal(former[key], state[key]) for key in former)


def test_a_parameter_without_gradient_rests_hooks_are_called_once_and_a_state_is_loaded():
    net = Net()
    before = net.conv.weight.detach().clone()
    torch.optim.AdamW(net.parameters())  # one that is made has its step hooked
    optimizer, called = build_optimizer(net, CONFIG), []
    optimizer.register_step_post_hook(lambda *_: called.append(True))
    net.twin.weight.grad = torch.ones_like(net.twin.weight)
    apply_gradients(optimizer, 0.0)
    assert called == [True]
    assert torch.equal(net.conv.weight, before)
    assert net.conv.weight not in optimizer.state
    again = build_optimizer(net, CONFIG)
    again.load_state_dict(optimizer.state_dict())
    momenta = [made.state[net.twin.weight]["momentum_buffer"] for made in (optimizer, again)]
    assert torch.equal(*momenta)
    assert momenta[0].any()


@pytest.mark.parametrize("shape", [(3, 40, 16), (2, 16, 40), (1, 32, 32)])
def test_directions_become_equal(shape: tuple[int, ...]):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    ours, (left, _, right) = orthogonalize(matrices), torch.linalg.svd(matrices, full_matrices=False)
    values = left.mT @ ours @ right.mT
    diagonal = torch.linalg.diagonal(values)
    assert ((diagonal > 0.6) & (diagonal < 1.3)).all()
    assert (values - torch.diag_embed(diagonal)).abs().max() < 0.05


@pytest.mark.parametrize("preset", ["detr-nano", "detr-nano-two-stage", "rtdetr-nano", "dfine-n"])
def test_most_numbers_of_a_detector_are_in_matrices(preset: str):
    config = preset_config(preset)
    model = build_model(config, ClassMap(tuple(map(str, range(80))), tuple(range(80)))).model
    optimizer = build_optimizer(model, config.train.model_copy(update={"muon": 1.0}), find_places(model))
    weights = dict(model.named_parameters())
    names = {name for group in optimizer.param_groups if group["muon"] for name in group["param_names"]}
    assert sum(weights[name].numel() for name in names) > 0.9 * sum(map(torch.numel, weights.values()))
    assert not [name for name in names if "class_" in name or "norm" in name or "bias" in name]
