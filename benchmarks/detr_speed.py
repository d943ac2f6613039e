"""Forward and training step of DETR-R50 against Hugging Face transformers, with the same random weights."""

from __future__ import annotations

import copy
import ctypes
import dataclasses
import gc
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.timing import Row, time_in_turn
from detrkit.config import TrainConfig
from detrkit.detectors.load import make_detector
from detrkit.families.detr.export import write_hub
from detrkit.families.detr.family import DETR
from detrkit.families.detr.weights import coco_class_map
from detrkit.families.family import BuiltModel, build_criterion
from detrkit.families.parts import find_places
from detrkit.families.recipes import preset_config
from detrkit.families.weights import Weights
from detrkit.hardware import PeakMemory
from detrkit.nn.recompute import set_recompute
from detrkit.training.optim import apply_gradients, build_optimizer
from detrkit.types import GroundTruth

SIZE_HW = (800, 1066)
OBJECTS = 7  # an image of COCO has so many on average


@dataclasses.dataclass(frozen=True)
class Job:
    """What is trained on: images of one size, without padding."""

    device: torch.device
    batch: int = 2
    size_hw: tuple[int, int] = SIZE_HW


def make_pair() -> tuple[nn.Module, Any]:
    """detrkit's and transformers' DETR-R50 with the same random weights."""
    from transformers import DetrForObjectDetection

    torch.manual_seed(0)
    preset = preset_config("detr-r50")
    config = preset.model.model_copy(update={"backbone_norm": "frozen", "frozen_stages": 2})
    ours = DETR.build(config, 91)
    with tempfile.TemporaryDirectory() as folder:
        write_hub(folder, Weights(ours.state_dict(), config, coco_class_map(), "random"), preset)
        theirs = DetrForObjectDetection.from_pretrained(folder, attn_implementation="eager")
    return ours, theirs


def forward(ours: nn.Module, theirs: Any, device: torch.device, repeats: int, batch: int = 1) -> list[Row]:
    """One forward at 800 x 1066, from normalised images for them, from uint8 for us."""
    config = preset_config("detr-r50")
    uint8 = torch.randint(0, 256, (batch, 3, *SIZE_HW), dtype=torch.uint8, device=device)
    pixels = torch.randn(batch, 3, *SIZE_HW, device=device)
    theirs = theirs.eval().to(device)
    fast = copy.deepcopy(ours).eval().to(device)
    DETR.prepare_inference(fast)
    fast.to(memory_format=torch.channels_last)

    def them() -> None:
        with torch.inference_mode():
            theirs(pixels)

    def us(precision: Any, model: nn.Module = fast) -> Callable[[], object]:
        built = BuiltModel(model, DETR, config, coco_class_map())
        stages = make_detector(built, device=device, precision=precision).stages
        images = list(uint8)
        return lambda: stages.forward(stages.preprocess(images))

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
    DETR.prepare_inference(fast)
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
        {"transformers, eager float32": them, "detrkit float32": us(None), "detrkit bf16": us(torch.bfloat16)},
        repeats,
        device,
    )


THEIRS = "transformers, eager float32"
RECOMPUTE = "detrkit bf16, recompute"
COMPILED = "detrkit bf16, torch.compile"


def training_work(name: str, ours: nn.Module, theirs: Any, job: Job) -> Callable[[], object]:
    """Forward, loss over all layers, backward, clipping and AdamW step, dropout on; models are changed."""
    config = preset_config("detr-r50")
    class_map = coco_class_map()
    generator = torch.Generator().manual_seed(0)
    counts = (OBJECTS,) * job.batch
    labels = torch.randint(0, 80, (sum(counts),), generator=generator)
    boxes = torch.rand(sum(counts), 4, generator=generator) * 0.3 + 0.2
    truth = GroundTruth(labels.to(job.device), boxes.to(job.device), counts)
    pixels = torch.randn(job.batch, 3, *job.size_hw, device=job.device)
    mixed = torch.autocast(job.device.type, dtype=torch.bfloat16, enabled="bf16" in name)
    if name.startswith("transformers"):
        theirs = theirs.train().to(job.device)
        theirs.config.auxiliary_loss = True
        logit_index = torch.tensor(class_map.logit_index)[labels].to(job.device)
        their_labels = [
            {"class_labels": part, "boxes": box}
            for part, box in zip(logit_index.split(OBJECTS), truth.boxes_cxcywh.split(OBJECTS), strict=True)
        ]
        parameters = [parameter for parameter in theirs.parameters() if parameter.requires_grad]
        their_optimizer = torch.optim.AdamW(parameters, lr=1e-4)

        def them() -> None:
            with mixed:
                loss = theirs(pixels, labels=their_labels).loss
            loss.backward()
            nn.utils.clip_grad_norm_(theirs.parameters(), 0.1)
            their_optimizer.step()
            their_optimizer.zero_grad()

        return them
    model = ours.train().to(job.device, memory_format=torch.channels_last)
    set_recompute(model, "recompute" in name)
    optimizer = build_optimizer(model, TrainConfig(), find_places(model))
    criterion = build_criterion(config, class_map)
    last = pixels.contiguous(memory_format=torch.channels_last)
    runs = torch.compile(model) if "compile" in name else model

    def us() -> None:
        with mixed:
            outputs = runs(last)
        criterion(outputs, truth).total.backward()
        apply_gradients(optimizer, 0.1)
        optimizer.zero_grad()

    return us


def training_step(ours: nn.Module, theirs: Any, job: Job, repeats: int) -> list[Row]:
    """Training steps on the CPU timed in turn; the peak memory of each in a process of its own."""
    competitors = {
        name: training_work(name, ours if number == 1 else copy.deepcopy(ours), theirs, job)
        for number, name in enumerate((THEIRS, "detrkit float32", "detrkit bf16", RECOMPUTE))
    }
    rows = time_in_turn(competitors, repeats, job.device)
    theirs.config.auxiliary_loss = False
    return [dataclasses.replace(row, memory_gib=memory_of_its_own(row.name, job) / 2**30) for row in rows]


def memory_of_its_own(name: str, job: Job) -> int:
    """Peak memory in bytes of three training steps in a new process, see :func:`measure_memory`."""
    size = "x".join(map(str, job.size_hw))
    command = [sys.executable, "-m", "benchmarks.detr_speed", name, job.device.type, str(job.batch), size]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    return int(done.stdout.strip().rpartition("\n")[2])


def measure_memory(name: str, job: Job) -> int:
    """Peak memory above the level after building the model: gradients, optimiser, activations, temporaries.

    On the CPU the resident memory of the process, whose highest mark Linux keeps and sets back on request; what a
    sampler would miss between two samples is in it, and what the allocator holds back too.
    """
    ours, theirs = make_pair()
    ours, theirs = (None, theirs) if name.startswith("transformers") else (ours, None)
    if job.device.type == "cuda":
        (ours or theirs).to(job.device)
    memory = PeakMemory(job.device)
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)  # what building left behind is no part of the level
    level = memory.now()
    memory.reset()
    work = training_work(name, ours, theirs, job)  # type: ignore[arg-type]
    for _ in range(3):
        work()
    return memory.peak() - level


def main() -> None:
    """Print the peak memory of one competitor, for :func:`memory_of_its_own`."""
    name, device, batch, size = sys.argv[1:]
    height, width = map(int, size.split("x"))
    print(measure_memory(name, Job(torch.device(device), int(batch), (height, width))))


if __name__ == "__main__":
    main()
