"""Recipes and peers alike: a config for a data set, and a way to train by it."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from benchmarks.convergence.budget import OnEvaluation
from benchmarks.convergence.data_sets import Files
from benchmarks.convergence.peer_training import train_peer
from benchmarks.convergence.peers import COMMON, PEERS
from benchmarks.convergence.recipes import RECIPES
from detrkit.config import Config, update_config
from detrkit.errors import UsageError
from detrkit.families.recipes import preset_config, resolve_config
from detrkit.training.run import start_run


@dataclasses.dataclass(frozen=True)
class Conditions:
    """What holds for every competitor of a comparison.

    Args:
        precision: As ``train.precision``.
        device: As ``train.device``.
        threads: Of torch on the CPU.
        init: Starting weights of recipes: none, a path or a hub id; peers begin from random ones.
    """

    precision: Literal["32", "bf16", "16"] = "32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 1
    init: str = "none"

    def changes(self) -> dict[str, Any]:
        """Config values."""
        on_cuda = self.device != "cpu" and torch.cuda.is_available()
        return {
            # few cores have enough to do with the model, and decoding in a process of its own is no less work
            "data.workers": "auto" if on_cuda else 0,
            "train.precision": self.precision,
            "train.device": self.device,
            "train.log_images": 0,
            "train.trackers": [],
        }


def kind_of(name: str) -> Literal["recipe", "peer"]:
    """Whether a competitor is one of detrkit's recipes or a peer.

    Raises:
        UsageError: There is no such competitor.
    """
    if name in RECIPES:
        return "recipe"
    if name in PEERS:
        return "peer"
    raise UsageError(f"no competitor is called {name!r}; recipes: {', '.join(RECIPES)}; peers: {', '.join(PEERS)}")


def config_of(name: str, files: Files, seed: int, conditions: Conditions) -> Config:
    """The config of a competitor on a data set; only epochs and evaluations are still to be set.

    Raises:
        ConfigError: A recipe changes what does not exist.
    """
    is_peer = kind_of(name) == "peer"
    square = not is_peer and not preset_config(RECIPES[name].preset).transforms.keep_aspect
    shared = {**conditions.changes(), **files.changes(square=square), "train.seed": seed}
    if is_peer:
        return update_config(Config(), {**COMMON, **shared, "model.preset": name, **PEERS[name].changes})
    recipe = RECIPES[name]
    own = {"train.init": conditions.init, "train.recipe": recipe.recipe, **recipe.changes}
    return resolve_config(recipe.preset, None, {**shared, **own})


def train(config: Config, run_dir: Path, on_evaluation: OnEvaluation | None = None) -> None:
    """Train by a config, whoever's it is.

    Raises:
        KeyboardInterrupt: It was interrupted.
        DetrkitError: It failed.
    """
    # a preset of detrkit may have a peer's name, but not its section, which is that of no family in particular
    if config.model.preset in PEERS and config.model.family == Config().model.family:
        train_peer(config, run_dir, on_evaluation)
        return
    result = start_run(config, run_dir, _quiet, on_evaluation=on_evaluation)
    if result.stopped == "interrupted":  # after the step, and saved; the harness itself is to stop too
        raise KeyboardInterrupt


def command_of(name: str, run_dir: Path) -> str:
    """The command that repeats a run from its config."""
    config, target = shlex.quote(str(run_dir / "config.yaml")), shlex.quote(f"repeat-{run_dir.name}")
    if kind_of(name) == "peer":
        return f"python -m benchmarks.convergence --repeat {config} --out {target}"
    return f"detrkit train --model {RECIPES[name].preset} --config {config} --run {target}"


def count_parameters(network: nn.Module) -> int:
    """Numbers that training can change."""
    return sum(parameter.numel() for parameter in network.parameters())


def describe(changes: Mapping[str, Any]) -> str:
    """Config values in one line."""
    return ", ".join(f"{key}={value}" for key, value in changes.items())


def _quiet(_message: str) -> None:
    """Say nothing: the table tells all."""
