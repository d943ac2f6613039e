"""Forward and training step of a preset against Hugging Face transformers, with the same random weights."""

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
from detrkit.classes import COCO_CATEGORY_IDS, COCO_NAMES, ClassMap
from detrkit.config import Config, TrainConfig, update_config
from detrkit.detectors.load import make_detector
from detrkit.families.build import get_family
from detrkit.families.detr.weights import coco_class_map
from detrkit.families.family import BuiltModel
from detrkit.families.parts import find_places
from detrkit.families.recipes import preset_config
from detrkit.families.weights import Weights
from detrkit.families.writers import get_writers
from detrkit.hardware import PeakMemory
from detrkit.nn.recompute import set_recompute
from detrkit.training.optim import apply_gradients, build_optimizer
from detrkit.types import GroundTruth

PRESET = "detr-r50"
SIZE_HW = (800, 1066)
OBJECTS = 7  # an image of COCO has so many on average


@dataclasses.dataclass(frozen=True)
class Job:
    """What is trained, and on what: images of one size, without padding."""

    device: torch.device
    batch: int = 2
    size_hw: tuple[int, int] = SIZE_HW
    preset: str = PRESET


def size_of(preset: str) -> tuple[int, int]:
    """An image of COCO as the preset sees it."""
    transforms = preset_config(preset).transforms
    return SIZE_HW if transforms.keep_aspect else (transforms.eval_size, transforms.eval_size)


def config_of(preset: str) -> Config:
    """As published, and as transformers computes it: padding counts as image, all layers detect."""
    config = preset_config(preset)
    if config.model.family == "detr":
        return update_config(config, {"model.backbone_norm": "frozen", "model.frozen_stages": 2})
    return update_config(config, {"model.padding": "published", "model.eval_layers": None})


def classes_of(config: Config) -> ClassMap:
    """COCO's, in the rows of the published head."""
    return coco_class_map() if config.model.family == "detr" else ClassMap(COCO_NAMES, COCO_CATEGORY_IDS)


def make_pair(preset: str = PRESET, attention: str | None = "eager") -> tuple[nn.Module, Any]:
    """detrkit's model of a preset and transformers' with the same weights; how that attends, or its own choice."""
    from transformers import AutoModelForObjectDetection

    torch.manual_seed(0)
    config = config_of(preset)
    classes, family = classes_of(config), get_family(config.model)
    ours = family.build(config.model, classes.num_labels)
    with tempfile.TemporaryDirectory() as folder:
        weights = Weights(ours.state_dict(), config.model, classes, "random")
        get_writers(family, "").hub(folder, weights, config)
        theirs = AutoModelForObjectDetection.from_pretrained(folder, attn_implementation=attention)
    return ours, theirs


def forward(
    ours: nn.Module,
    theirs: Any,
    device: torch.device,
    repeats: int,
    batch: int = 1,
    preset: str = PRESET,
    *,
    compiled: bool = False,
) -> list[Row]:
    """One forward at the preset's size, from normalised images for them, from uint8 for us.

    Args:
        ours: Of :func:`make_pair`, as the next one.
        theirs: Of transformers.
        device: Where.
        repeats: Counted runs.
        batch: Images at once.
        preset: The model.
        compiled: Time what ``torch.compile`` makes of them, which takes minutes to be made.
    """
    config, size_hw = config_of(preset), size_of(preset)
    classes, family = classes_of(config), get_family(config.model)
    uint8 = torch.randint(0, 256, (batch, 3, *size_hw), dtype=torch.uint8, device=device)
    pixels = torch.randn(batch, 3, *size_hw, device=device)
    theirs = theirs.eval().to(device)
    fast = copy.deepcopy(ours).eval().to(device)
    family.prepare_inference(fast)
    fast.to(memory_format=torch.channels_last)

    def them(model: Any = theirs, *, mixed: bool = False) -> Callable[[], object]:
        def work() -> None:
            with torch.inference_mode(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=mixed):
                model(pixels)

        return work

    def us(precision: Any, model: nn.Module = fast) -> Callable[[], object]:
        built = BuiltModel(model, family, config, classes)
        stages = make_detector(built, device=device, precision=precision).stages
        images = list(uint8)
        return lambda: stages.forward(stages.preprocess(images))

    if not compiled:
        competitors = {THEIRS: them(), "detrkit float32": us("32"), "detrkit bf16": us("bf16")}
        if device.type == "cuda":
            competitors["transformers, bf16 autocast"] = them(mixed=True)
        return time_in_turn(competitors, repeats, device)
    theirs_compiled = torch.compile(copy.deepcopy(theirs))
    competitors = {THEIRS: them(), "transformers, bf16, torch.compile": them(theirs_compiled, mixed=True)}
    # each is a copy of its own: two modes of one module would share what is compiled
    for name, options in (("torch.compile", {}), ("CUDA graph", {"mode": "reduce-overhead"})):
        network = torch.compile(copy.deepcopy(fast), fullgraph=True, **options)
        competitors[f"detrkit bf16, {name}"] = us("bf16", network)
    return time_in_turn(competitors, repeats, device)


def backbone(ours: nn.Module, theirs: Any, device: torch.device, repeats: int) -> list[Row]:
    """The ResNet-50 alone."""
    pixels = torch.randn(1, 3, *SIZE_HW, device=device)
    mask = torch.ones(1, *SIZE_HW, device=device)
    fast: Any = copy.deepcopy(ours).eval().to(device)
    fast.prepare_inference()
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


THEIRS = "transformers float32"
RECOMPUTE = "detrkit bf16, recompute"
COMPILED = "detrkit bf16, torch.compile"


def training_work(name: str, ours: nn.Module, theirs: Any, job: Job) -> Callable[[], object]:
    """Forward, loss over all layers, backward, clipping and AdamW step, dropout on; models are changed."""
    config = config_of(job.preset)
    class_map, family = classes_of(config), get_family(config.model)
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
    family.add_aids(model, config.model, config.aids)
    model.to(job.device)
    optimizer = build_optimizer(model, TrainConfig(), find_places(model))
    criterion = family.build_criterion(config, class_map)
    told = (None, criterion.objects(truth)) if config.aids.denoising else ()
    last = pixels.contiguous(memory_format=torch.channels_last)
    runs = torch.compile(model) if "compile" in name else model

    def us() -> None:
        with mixed:
            outputs = runs(last, *told)
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
    command = [
        sys.executable,
        "-m",
        "benchmarks.detr_speed",
        name,
        job.device.type,
        str(job.batch),
        size,
        job.preset,
    ]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    return int(done.stdout.strip().rpartition("\n")[2])


def measure_memory(name: str, job: Job) -> int:
    """Peak memory above the level after building the model: gradients, optimiser, activations, temporaries.

    On the CPU the resident memory of the process, whose highest mark Linux keeps and sets back on request; what a
    sampler would miss between two samples is in it, and what the allocator holds back too.
    """
    ours, theirs = make_pair(job.preset)
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
    name, device, batch, size, preset = sys.argv[1:]
    height, width = map(int, size.split("x"))
    print(measure_memory(name, Job(torch.device(device), int(batch), (height, width), preset)))


if __name__ == "__main__":
    main()
