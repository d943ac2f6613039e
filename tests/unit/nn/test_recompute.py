from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from detrkit.config import ModelConfig, update_config
from detrkit.families.build import get_family
from detrkit.families.recipes import preset_config
from detrkit.nn.recompute import set_recompute
from tests.parity.conftest import padded_batch

SIZES = [(64, 96), (70, 50)]


def small_config(**changes: object) -> ModelConfig:
    """A DETR of every kind of part, small."""
    small = {"backbone": "resnet18", "hidden_dim": 32, "num_heads": 4, "ffn_dim": 64, "num_queries": 5}
    layers = {"encoder_layers": 2, "decoder_layers": 2, "backbone_norm": "group", "frozen_stages": 0}
    return update_config(preset_config("detr-r50"), {"model": {**small, **layers, **changes}}).model


def build(**changes: object) -> nn.Module:
    torch.manual_seed(0)
    config = small_config(**changes)
    return get_family(config).build(config, 3).train()


def work(model: nn.Module, *, bf16: bool = False, padded: bool = True) -> tuple[Tensor, Tensor, int]:
    """Logits and boxes of a batch after a backward pass, and the bytes that the forward kept for it."""
    images, mask = padded_batch(SIZES)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(1)
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16), hooks:
        outputs = model(images, mask if padded else None)
    (outputs.logits.square().mean() + outputs.boxes_cxcywh.square().mean()).backward()
    return outputs.logits.detach(), outputs.boxes_cxcywh.detach(), sum(kept.values())


@pytest.mark.parametrize(
    ("changes", "bf16", "padded"),
    [
        ({"dropout": 0.2}, True, True),
        ({"dropout": 0.0, "pre_norm": True, "position_at_input": True}, False, False),
        ({"backbone_norm": "frozen", "frozen_stages": 2}, False, True),
        ({"backbone_norm": "batch", "dropout": 0.1}, False, False),
        ({"backbone": "tiny"}, True, True),
    ],
)
def test_outputs_gradients_and_buffers_are_the_same_bits(changes: dict[str, object], bf16: bool, padded: bool):
    plain = build(**changes)
    saving = copy.deepcopy(plain)
    assert set_recompute(saving, True) == 3  # backbone, encoder, decoder
    logits, boxes, kept = work(plain, bf16=bf16, padded=padded)
    same_logits, same_boxes, kept_less = work(saving, bf16=bf16, padded=padded)
    assert torch.equal(logits, same_logits)
    assert torch.equal(boxes, same_boxes)
    found = dict(saving.named_parameters())
    for name, parameter in plain.named_parameters():
        if parameter.grad is None:
            assert found[name].grad is None, name
        else:
            assert torch.equal(parameter.grad, found[name].grad), name  # type: ignore[arg-type]
    buffers = dict(saving.named_buffers())
    for name, buffer in plain.named_buffers():
        assert torch.equal(buffer, buffers[name]), name
    assert kept_less < 0.6 * kept
    assert saving.state_dict().keys() == plain.state_dict().keys()


def test_it_can_be_switched_off_and_does_nothing_without_gradients(monkeypatch: pytest.MonkeyPatch):
    model = build()
    set_recompute(model, True)
    images, mask = padded_batch(SIZES)

    def never(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("checkpointed")

    monkeypatch.setattr("detrkit.nn.recompute.checkpoint", never)
    with pytest.raises(AssertionError, match="checkpointed"):
        model(images, mask)
    with torch.no_grad():
        model(images, mask)
    model.eval()
    model(images, mask)
    model.train()
    set_recompute(model, False)
    model(images, mask)


@contextlib.contextmanager
def process_group(folder: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", f"file://{folder / 'store'}", rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def test_gradients_under_ddp_are_the_same(tmp_path: Path):
    plain = build(dropout=0.1)
    saving = copy.deepcopy(plain)
    set_recompute(saving, True)
    work(plain)
    with process_group(tmp_path):
        wrapped = DistributedDataParallel(saving)
        for _ in range(2):  # the second one after gradients have been exchanged once
            saving.zero_grad()
            work(wrapped)
    for (name, parameter), other in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(other.grad, parameter.grad, rtol=0, atol=0, msg=name)
