from __future__ import annotations

import pytest
import torch
from torch import nn

from detrkit.errors import CheckpointError
from detrkit.training.ema import Ema


def model_with_buffers() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def test_average_follows_the_formula_with_warm_decay():
    model = model_with_buffers()
    ema = Ema(model, decay=0.3)
    expected = {name: tensor.double().clone() for name, tensor in model.state_dict().items()}
    for count in range(1, 8):
        with torch.no_grad():
            model[0].weight.add_(torch.randn(2, 3))
            model[1].running_mean.add_(1.0)
        ema.update()
        decay = min(0.3, (1 + count) / (10 + count))
        for name, tensor in model.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * tensor.double()
    averages = ema.state_dict()["weights"]
    assert "1.num_batches_tracked" not in averages  # a count has no average
    for name, average in averages.items():
        torch.testing.assert_close(average.double(), expected[name], rtol=1e-5, atol=1e-6)
    assert ema.state_dict()["count"] == 7


def test_applied_shows_the_average_and_restores_exactly():
    model = model_with_buffers()
    ema = Ema(model, decay=0.9)
    with torch.no_grad():
        model[0].weight.mul_(1.1)
    ema.update()
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    average = ema.state_dict()["weights"]["0.weight"].clone()

    def fail_inside():
        with ema.applied():
            assert torch.equal(model[0].weight, average)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_inside()
    assert all(torch.equal(own[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(ema.state_dict()["weights"]["0.weight"], average)


def test_average_of_another_model_is_refused():
    with pytest.raises(CheckpointError, match="differ at"):
        Ema(nn.Linear(3, 2), 0.9).load_state_dict(Ema(model_with_buffers(), 0.9).state_dict())
