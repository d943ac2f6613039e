"""Augmentation of batches inside the step."""

from __future__ import annotations

import torch

from detrkit.config import update_config
from detrkit.training import forward_backward as passes

ON = {"transforms.on_device": True, "transforms.photometric": 0.5}


def batches_of(toy, config, make_loader, monkeypatch) -> list[torch.Tensor]:
    """Images as they reach the model, step after step."""
    seen = []

    def catch(batch, config):
        seen.append(batch.images.clone())
        return inputs(batch, config)

    inputs = passes.model_inputs
    with monkeypatch.context() as patch:
        patch.setattr(passes, "model_inputs", catch)
        toy.fit(config, loader=make_loader(4, 2))
    return seen


def test_batches_are_augmented_by_seed_and_step(toy, tmp_path, make_config, make_loader, monkeypatch):
    config = update_config(make_config(), {"transforms.flip": 0.0})
    plain = batches_of(toy, config, make_loader, monkeypatch)
    toy.run_dir = tmp_path / "second"
    first = batches_of(toy, update_config(config, ON), make_loader, monkeypatch)
    toy.run_dir = tmp_path / "third"
    again = batches_of(toy, update_config(config, ON), make_loader, monkeypatch)
    toy.run_dir = tmp_path / "fourth"
    other = batches_of(toy, update_config(config, {**ON, "train.seed": 1}), make_loader, monkeypatch)
    assert len(plain) == len(first) == 4
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert not any(torch.equal(one, two) for one, two in zip(first, plain, strict=True))
    assert not all(torch.equal(one, two) for one, two in zip(first, other, strict=True))


def test_micro_batches_of_a_step_are_augmented_each_in_its_own_way(toy, make_config, make_loader, monkeypatch):
    seeds = []
    augment = passes.augment_batch

    def catch(batch, config, seed):
        seeds.append(seed)
        return augment(batch, config, seed)

    monkeypatch.setattr(passes, "augment_batch", catch)
    toy.fit(update_config(make_config(accumulate=2), ON), loader=make_loader(8, 2))
    assert len(seeds) == len(set(seeds)) == 8
