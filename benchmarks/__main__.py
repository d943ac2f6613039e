"""Run every benchmark and write ``docs/benchmarks.md``: ``make bench``, or ``python -m benchmarks --quick``."""

from __future__ import annotations

import argparse
import datetime
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from benchmarks import annotations, data_speed, detr_speed, evaluation, gpu_training, loading
from benchmarks.detr_speed import Job
from benchmarks.timing import machine, table

_OTHERS = ("data", "loading", "annotations", "evaluation")

DOCS = Path(__file__).resolve().parents[1] / "docs"

INTRODUCTION = """# Benchmarks

Made by `make bench`, which times detrkit and its peers in turn in one run and writes this page. Medians;
`times as fast` is the first row's median over this row's. Single times vary from machine to machine and from hour
to hour, ratios much less. transformers attends in its eager way on a CPU, and as it chooses on a GPU.
"""

MEMORY_NOTE = (
    "Peak memory: of three steps in a process of its own, above the level after building the model (gradients, "
    "optimiser, activations, temporaries); resident memory as the kernel's highest mark (VmHWM, set back through "
    "/proc/self/clear_refs). In brackets: the part of the first row's."
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few repeats, and print instead of writing the page")
    parser.add_argument("--out", type=Path, help="the page to write")
    parser.add_argument("--only", choices=("forward", "compiled", "backbone", "train", *_OTHERS))
    parser.add_argument("--model", default=detr_speed.PRESET, help="preset of forward and train")
    parser.add_argument("--data", type=Path, help="folder in COCO layout to load from; generated if not given")
    parser.add_argument("--batches", default="2,4,8,16,32", help="images a step of training on a GPU")
    arguments = parser.parse_args()
    repeats = 3 if arguments.quick else 5
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batches = [int(batch) for batch in arguments.batches.split(",")]
    parts = _parts(device, repeats, arguments.only, arguments.data, arguments.model, batches)
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    head = "\n".join([INTRODUCTION, f"## {today}, {device.type.upper()}", "", machine(), ""])
    if arguments.quick or arguments.only:
        for part in itertools.chain([head], parts):  # each at once: what is cut off later keeps it
            print(part, flush=True)
        return
    page = "\n".join([head, *parts])
    path = arguments.out or DOCS / ("benchmarks.md" if device.type == "cpu" else "benchmarks-cuda.md")
    path.write_text(page, encoding="utf-8")
    print(f"written to {path}")


def _parts(
    device: torch.device, repeats: int, only: str | None, data: Path | None, preset: str, batches: Sequence[int]
) -> Iterator[str]:
    if only in (None, "loading"):
        costs = loading.loading_table(loading.loading(repeats, data))
        yield f"### Training images at DETR's recipe, batches of {loading.BATCH}\n\n{costs}\n"
    if only in (None, "annotations"):
        reading = annotations.reading_table(min(repeats, 3))
        yield f"### Reading an annotation file of the size of COCO's training split\n\n{reading}\n"
    if only in (None, "data"):
        title = "One 640 x 480 JPEG to the input of the model at 800 x 1066"
        yield table(title, data_speed.preprocessing(repeats))
        title = "COCO evaluation, 5,000 images x 100 detections"
        yield table(title, data_speed.evaluation(1), "AP of both was equal to the last digit.")
    if only in (None, "evaluation"):
        costs = evaluation.costs_table(evaluation.costs())
        yield f"### Evaluation of 5,000 images x 100 detections, step by step\n\n{costs}\n"
    if only in _OTHERS:
        return
    ours, theirs = detr_speed.make_pair(preset, "eager" if device.type == "cpu" else None)
    size_hw = detr_speed.size_of(preset)
    pixels = "{} x {}".format(*size_hw)
    if only in (None, "forward", "compiled"):
        compiled = only == "compiled"
        for batch in (1,) if device.type == "cpu" else (1, 8):
            times = (3 if device.type == "cpu" else 10) * repeats  # short ones: medians of few runs are noise
            rows = detr_speed.forward(ours, theirs, device, times, batch, preset, compiled=compiled)
            images = "one image" if batch == 1 else f"{batch} images"
            yield table(f"Forward of {preset}, {images} of {pixels}, uint8 to boxes", rows)
    if only == "backbone" or (only is None and preset == detr_speed.PRESET):
        yield table("The ResNet-50 backbone alone", detr_speed.backbone(ours, theirs, device, repeats))
    if only in (None, "train"):
        if device.type == "cuda":
            rates = gpu_training.gpu_report(device, max(repeats, 10), batches, preset=preset)
            yield f"### Training of {preset}, images of {pixels}\n\n{rates}\n"
        else:
            rows = detr_speed.training_step(ours, theirs, Job(device, 2, size_hw, preset), repeats)
            yield table(f"Training step of {preset}, 2 images of {pixels}", rows, MEMORY_NOTE)


if __name__ == "__main__":
    main()
