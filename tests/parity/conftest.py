"""The same random weights in detrkit's DETR and in Hugging Face transformers'."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detrkit.config import Config
from detrkit.families.detr.config import DetrConfig
from detrkit.families.detr.export import write_hub
from detrkit.families.detr.model import Detr, build_detr
from detrkit.families.detr.weights import coco_class_map
from detrkit.families.recipes import preset_config
from detrkit.families.weights import Weights


@dataclasses.dataclass(frozen=True)
class Pair:
    ours: Detr
    theirs: Any
    config: DetrConfig


def randomize(model: torch.nn.Module, seed: int = 0) -> None:
    """Fresh random weights with frozen norms that do something, as trained ones would."""
    generator = torch.Generator().manual_seed(seed)
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5, generator=generator)
        elif name.endswith("running_mean"):
            buffer.normal_(0, 0.1, generator=generator)
        elif name.endswith("bias"):
            buffer.normal_(0, 0.2, generator=generator)
        elif name.endswith("weight"):
            # Small on residual branches: a hundred layers must not turn float32 rounding into a difference. In
            # float64, gradients agree to 1e-6 without that too.
            buffer.uniform_(0.1, 0.25, generator=generator) if "bn3" in name else buffer.uniform_(
                0.7, 1.1, generator=generator
            )


def make_pair(preset: str, folder: Path) -> Pair:
    from transformers import DetrForObjectDetection

    torch.manual_seed(0)
    config = preset_config(preset).model.model_copy(
        update={"padding": "published", "dropout": 0.0, "backbone_norm": "frozen", "frozen_stages": 2}
    )
    ours = build_detr(config, 91).eval()
    randomize(ours)
    weights = Weights(ours.state_dict(), config, coco_class_map(), "random")
    write_hub(folder, weights, Config())
    theirs = DetrForObjectDetection.from_pretrained(folder, attn_implementation="eager").eval()
    theirs.config.dropout = 0.0
    return Pair(ours, theirs, config)


@pytest.fixture(
    scope="session",
    params=["detr-r50", *(pytest.param(name, marks=pytest.mark.slow) for name in ("detr-r50-dc5", "detr-r101"))],
)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(request.param, tmp_path_factory.mktemp(request.param))


def padded_batch(sizes_hw: list[tuple[int, int]], extra: int = 0, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Random images of several sizes in one tensor, zero on padding, and their mask (True = padding)."""
    generator = torch.Generator().manual_seed(seed)
    height = max(size[0] for size in sizes_hw) + extra
    width = max(size[1] for size in sizes_hw) + extra
    images = torch.zeros(len(sizes_hw), 3, height, width)
    mask = torch.ones(len(sizes_hw), height, width, dtype=torch.bool)
    for index, (h, w) in enumerate(sizes_hw):
        images[index, :, :h, :w] = torch.randn(3, h, w, generator=generator)
        mask[index, :h, :w] = False
    return images, mask


@pytest.fixture
def use_float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Let models compute in float64, where they ask for float32 too."""

    def use(*models: nn.Module) -> None:
        torch.set_default_dtype(torch.float64)
        monkeypatch.setattr(Tensor, "float", Tensor.double)
        for model in models:
            model.double()

    yield use
    torch.set_default_dtype(torch.float32)
