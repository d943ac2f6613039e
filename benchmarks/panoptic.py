"""DETR-R50 with masks against Hugging Face transformers' DetrForSegmentation, with the same random weights.

    python -m benchmarks.panoptic

Peak memory of training at 800 x 1066, one image of 7 objects, and seconds of a prediction, from normalised
pixels to a panoptic picture of 480 x 640, each competitor in its own process. Prediction is timed with as many
segments as an image of COCO has, and with every query: transformers makes all masks either way.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.detr_speed import OBJECTS, SIZE_HW
from detrkit.config import TrainConfig
from detrkit.detectors.stages import model_stages
from detrkit.families.detr.export import write_hub
from detrkit.families.detr.family import DETR
from detrkit.families.detr.weights import coco_panoptic_class_map
from detrkit.families.family import BuiltModel, build_criterion
from detrkit.families.parts import find_places
from detrkit.families.recipes import preset_config
from detrkit.families.weights import Weights
from detrkit.hardware import PeakMemory
from detrkit.training.optim import apply_gradients, build_optimizer
from detrkit.types import GroundTruth

PRESET = "detr-r50-panoptic"
FILE_HW = (480, 640)
SEGMENTS = 20  # of the best queries: an image of COCO has 11 segments on average, and DETR proposes more
NAMES = ("transformers, eager float32", "detrkit float32", "detrkit bf16")


def make_one(theirs: bool) -> Any:
    """detrkit's or transformers' model; the weights are the same."""
    torch.manual_seed(0)
    preset = preset_config(PRESET)
    config = preset.model.model_copy(update={"backbone_norm": "frozen", "frozen_stages": 2})
    class_map = coco_panoptic_class_map()
    ours = DETR.build(config, class_map.num_labels)
    if not theirs:
        return ours
    from transformers import DetrForSegmentation

    with tempfile.TemporaryDirectory() as folder:
        write_hub(folder, Weights(ours.state_dict(), config, class_map, "random"), preset)
        return DetrForSegmentation.from_pretrained(folder, attn_implementation="eager")


def make_truth() -> GroundTruth:
    """Objects of one image, each with a rectangle for a mask."""
    generator = torch.Generator().manual_seed(0)
    boxes = torch.rand(OBJECTS, 4, generator=generator) * 0.3 + 0.2
    height, width = SIZE_HW
    masks = torch.zeros(OBJECTS, height, width, dtype=torch.bool)
    for mask, (x, y, w, h) in zip(masks, boxes.tolist(), strict=True):
        rows, columns = (
            (int((c - s / 2) * n), int((c + s / 2) * n)) for c, s, n in ((y, h, height), (x, w, width))
        )
        mask[max(rows[0], 0) : rows[1], max(columns[0], 0) : columns[1]] = True
    return GroundTruth(torch.randint(0, 80, (OBJECTS,), generator=generator), boxes, (OBJECTS,), masks)


def training(name: str, model: Any) -> Callable[[], object]:
    """Forward, loss over all layers, backward, clipping and AdamW step, dropout on."""
    truth, class_map = make_truth(), coco_panoptic_class_map()
    assert truth.masks is not None
    pixels = torch.randn(1, 3, *SIZE_HW)
    mixed = torch.autocast("cpu", dtype=torch.bfloat16, enabled="bf16" in name)
    model.train()
    if name.startswith("transformers"):
        model.config.auxiliary_loss = True
        labels = [
            {
                "class_labels": torch.tensor(class_map.logit_index)[truth.labels],
                "boxes": truth.boxes_cxcywh,
                "masks": truth.masks.float(),
            }
        ]
        their_optimizer = torch.optim.AdamW([part for part in model.parameters() if part.requires_grad], lr=1e-4)

        def them() -> None:
            model(pixels, labels=labels).loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            their_optimizer.step()
            their_optimizer.zero_grad()

        return them
    config = preset_config(PRESET)
    model.to(memory_format=torch.channels_last)
    optimizer, criterion = (
        build_optimizer(model, TrainConfig(), find_places(model)),
        build_criterion(config, class_map),
    )
    pixels = pixels.contiguous(memory_format=torch.channels_last)

    def us() -> None:
        with mixed:
            outputs = model(pixels)
        criterion(outputs, truth).total.backward()
        apply_gradients(optimizer, 0.1)
        optimizer.zero_grad()

    return us


def prediction(name: str, model: Any, segments: int | None) -> Callable[[], object]:
    """From normalised pixels to a panoptic picture in the file's pixels."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(1, 3, *SIZE_HW, generator=generator)
    model.eval()
    if name.startswith("transformers"):
        from transformers import DetrImageProcessor

        processor = DetrImageProcessor()

        def them() -> None:
            with torch.inference_mode():
                found = model(pixels)
                threshold = _threshold(found.logits.softmax(-1)[0, :, :-1].amax(-1), segments)
                processor.post_process_panoptic_segmentation(
                    found, threshold=threshold, target_sizes=[FILE_HW], label_ids_to_fuse=set()
                )

        return them
    DETR.prepare_inference(model)
    model.to(memory_format=torch.channels_last)
    built = BuiltModel(model, DETR, preset_config(PRESET), coco_panoptic_class_map())
    stages = model_stages(built, torch.device("cpu"), "bf16" if "bf16" in name else "32")
    stuff = coco_panoptic_class_map().stuff

    def us() -> None:
        [found] = stages.postprocess(stages.forward((pixels, None)), [FILE_HW])
        threshold = _threshold(torch.from_numpy(found.scores), segments)
        found.panoptic(stuff, score=threshold)  # type: ignore[attr-defined]

    return us


def _threshold(scores: Tensor, segments: int | None) -> float:
    """Return the score that so many are above; 0 for all."""
    return 0.0 if segments is None else float(scores.sort(descending=True).values[segments])


def measure(name: str, what: str, repeats: int) -> float:
    """Return the peak memory of three training steps in GiB, above that of the built model, or seconds."""
    model = make_one(name.startswith("transformers"))
    if what == "memory":
        memory = PeakMemory(torch.device("cpu"))
        gc.collect()
        if sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)  # what building left behind is no part of the level
        level = memory.now()
        memory.reset()
        work = training(name, model)
        for _ in range(3):
            work()
        return (memory.peak() - level) / 2**30
    work = prediction(name, model, SEGMENTS if what == "best" else None)
    work()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def main() -> None:
    """Measure all competitors, each in a process of its own, or one of them in this."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=("memory", "best", "all"))
    parser.add_argument("--name", choices=NAMES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.name:
        print(json.dumps(measure(arguments.name, arguments.only, arguments.repeats)))
        return
    titles = {
        "memory": f"peak memory of training at {SIZE_HW[0]} x {SIZE_HW[1]}, GiB",
        "best": f"prediction, {SEGMENTS} segments, s",
        "all": "prediction, every query a segment, s",
    }
    for what, title in titles.items():
        if arguments.only not in (None, what):
            continue
        first = None
        for name in NAMES:
            command = [sys.executable, "-m", "benchmarks.panoptic", "--only", what, "--name", name]
            command += ["--repeats", str(arguments.repeats)]
            root = Path(__file__).resolve().parents[1]
            done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
            if done.returncode < 0:
                print(f"{title}: {name} was killed; is there memory enough?", flush=True)
                continue
            assert done.returncode == 0, done.stderr
            value = float(done.stdout.strip().rpartition("\n")[2])
            first = value if name == NAMES[0] else first
            share = "" if first is None else f" ({value / first:.2f} of the first)"
            print(f"{title}: {name} {value:.2f}{share}", flush=True)


if __name__ == "__main__":
    main()
