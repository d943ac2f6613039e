"""Forward and training step of DETR-R50 against Hugging Face transformers, with the same random weights."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.timing import Row, time_in_turn
from detrkit.config import TrainConfig
from detrkit.families import preset_config
from detrkit.families.detr.weights import coco_class_map
from detrkit.families.registry import build_criterion, get_family
from detrkit.families.weights import Weights
from detrkit.inference.detect import run_model
from detrkit.training.optim import build_optimizer
from detrkit.types import GroundTruth

SIZE_HW = (800, 1066)
OBJECTS = 7  # an image of COCO has so many on average


def make_pair() -> tuple[nn.Module, Any]:
    """detrkit's and transformers' DETR-R50 with the same random weights."""
    from transformers import DetrForObjectDetection

    torch.manual_seed(0)
    config = preset_config("detr-r50").model.model_copy(update={"backbone_norm": "frozen", "frozen_stages": 2})
    family = get_family("detr")
    ours = family.build(config, 91)
    with tempfile.TemporaryDirectory() as folder:
        family.write_hub(folder, Weights(ours.state_dict(), config, coco_class_map(), "random"), 800, 1333)
        theirs = DetrForObjectDetection.from_pretrained(folder, attn_implementation="eager")
    return ours, theirs


def forward(ours: nn.Module, theirs: Any, device: torch.device, repeats: int, batch: int = 1) -> list[Row]:
    """One forward at 800 x 1066, from normalised images for them, from uint8 for us."""
    config = preset_config("detr-r50")
    uint8 = torch.randint(0, 256, (batch, 3, *SIZE_HW), dtype=torch.uint8, device=device)
    pixels = torch.randn(batch, 3, *SIZE_HW, device=device)
    theirs = theirs.eval().to(device)
    fast = copy.deepcopy(ours).eval().to(device)
    get_family("detr").prepare_inference(fast)
    fast.to(memory_format=torch.channels_last)

    def them() -> None:
        with torch.inference_mode():
            theirs(pixels)

    def us(precision: Any, model: nn.Module = fast) -> Callable[[], object]:
        return lambda: run_model(model, uint8, None, config, device, precision, channels_last=True)

    competitors: dict[str, Callable[[], object]] = {
        "transformers, eager float32": them,
        "detrkit float32": us("32"),
        "detrkit bf16": us("bf16"),
    }
    if device.type == "cuda":
        competitors["detrkit bf16, torch.compile"] = us("bf16", torch.compile(copy.deepcopy(fast)))
    return time_in_turn(competitors, repeats, device)


def backbone(ours: nn.Module, theirs: Any, device: torch.device, repeats: int) -> list[Row]:
    """The ResNet-50 alone."""
    pixels = torch.randn(1, 3, *SIZE_HW, device=device)
    mask = torch.ones(1, *SIZE_HW, device=device)
    fast = copy.deepcopy(ours).eval().to(device)
    get_family("detr").prepare_inference(fast)
    network = fast.backbone[0].to(memory_format=torch.channels_last)
    last = pixels.contiguous(memory_format=torch.channels_last)
    their_backbone = theirs.eval().to(device).model.backbone

    def them() -> None:
        with torch.inference_mode():
            their_backbone(pixels, mask)

    def us(dtype: torch.dtype | None) -> Callable[[], object]:
        def work() -> None:
            with torch.inference_mode(), torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                network(last)

        return work

    return time_in_turn(
        {
            "transformers, eager float32": them,
            "detrkit float32": us(None),
            "detrkit bf16": us(torch.bfloat16),
        },
        repeats,
        device,
    )


def training_step(ours: nn.Module, theirs: Any, device: torch.device, repeats: int, batch: int = 2) -> list[Row]:
    """Forward, loss over all layers, backward and AdamW step, dropout on."""
    config = preset_config("detr-r50")
    class_map = coco_class_map()
    generator = torch.Generator().manual_seed(0)
    counts = (OBJECTS,) * batch
    labels = torch.randint(0, 80, (sum(counts),), generator=generator)
    boxes = torch.rand(sum(counts), 4, generator=generator) * 0.3 + 0.2
    truth = GroundTruth(labels, boxes, counts).to(device)
    slots = torch.tensor(class_map.slots)[labels].to(device)
    their_labels = [
        {"class_labels": part, "boxes": box}
        for part, box in zip(slots.split(OBJECTS), truth.boxes_cxcywh.split(OBJECTS), strict=True)
    ]
    pixels = torch.randn(batch, 3, *SIZE_HW, device=device)
    last = pixels.contiguous(memory_format=torch.channels_last)
    criterion = build_criterion(config, class_map)

    theirs = theirs.train().to(device)
    theirs.config.auxiliary_loss = True
    their_optimizer = torch.optim.AdamW([p for p in theirs.parameters() if p.requires_grad], lr=1e-4)

    def them() -> None:
        theirs(pixels, labels=their_labels).loss.backward()
        nn.utils.clip_grad_norm_(theirs.parameters(), 0.1)
        their_optimizer.step()
        their_optimizer.zero_grad()

    def us(model: nn.Module, dtype: torch.dtype | None) -> Callable[[], object]:
        optimizer = build_optimizer(model, TrainConfig())
        parameters = [p for p in model.parameters() if p.requires_grad]

        def work() -> None:
            with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                outputs = model(last)
            criterion(outputs, truth).total.backward()
            nn.utils.clip_grad_norm_(parameters, 0.1)
            optimizer.step()
            optimizer.zero_grad()

        return work

    plain = copy.deepcopy(ours).train().to(device, memory_format=torch.channels_last)
    mixed = copy.deepcopy(plain)
    competitors: dict[str, Callable[[], object]] = {
        "transformers, eager float32": them,
        "detrkit float32": us(plain, None),
        "detrkit bf16": us(mixed, torch.bfloat16),
    }
    if device.type == "cuda":
        compiled = torch.compile(copy.deepcopy(plain))
        competitors["detrkit bf16, torch.compile"] = us(compiled, torch.bfloat16)
    rows = time_in_turn(competitors, repeats, device)
    theirs.config.auxiliary_loss = False
    return rows
