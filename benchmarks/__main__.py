"""Run every benchmark and write ``docs/benchmarks.md``: ``make bench``, or ``python -m benchmarks --quick``."""

from __future__ import annotations

import argparse
import datetime
from pathlib import Path

import torch

from benchmarks import annotations, data_speed, detr_speed, evaluation, gpu_training, loading
from benchmarks.detr_speed import Job
from benchmarks.timing import machine, table

DOCS = Path(__file__).resolve().parents[1] / "docs"

INTRODUCTION = """# Benchmarks

Made by `make bench`, which times detrkit and its peers in turn in one run and writes this page. Medians;
`times as fast` is the first row's median over this row's. Single times vary from machine to machine and from hour
to hour, ratios much less.
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
    parser.add_argument(
        "--only", choices=("forward", "backbone", "train", "data", "loading", "annotations", "evaluation")
    )
    parser.add_argument("--model", default=detr_speed.PRESET, help="preset of forward and train")
    parser.add_argument("--data", type=Path, help="folder in COCO layout to load from; generated if not given")
    arguments = parser.parse_args()
    repeats = 3 if arguments.quick else 5
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    parts = _parts(device, repeats, arguments.only, arguments.data, arguments.model)
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    page = "\n".join([INTRODUCTION, f"## {today}, {device.type.upper()}", "", machine(), "", *parts])
    if arguments.quick or arguments.only:
        print(page)
        return
    path = arguments.out or DOCS / ("benchmarks.md" if device.type == "cpu" else "benchmarks-cuda.md")
    path.write_text(page, encoding="utf-8")
    print(f"written to {path}")


def _parts(device: torch.device, repeats: int, only: str | None, data: Path | None, preset: str) -> list[str]:
    parts = []
    if only in (None, "loading"):
        costs = loading.loading_table(loading.loading(repeats, data))
        parts.append(f"### Training images at DETR's recipe, batches of {loading.BATCH}\n\n{costs}\n")
    if only in (None, "annotations"):
        reading = annotations.reading_table(min(repeats, 3))
        parts.append(f"### Reading an annotation file of the size of COCO's training split\n\n{reading}\n")
    if only in (None, "data"):
        title = "One 640 x 480 JPEG to the input of the model at 800 x 1066"
        parts.append(table(title, data_speed.preprocessing(repeats)))
        title = "COCO evaluation, 5,000 images x 100 detections"
        parts.append(table(title, data_speed.evaluation(1), "AP of both was equal to the last digit."))
    if only in (None, "evaluation"):
        costs = evaluation.costs_table(evaluation.costs())
        parts.append(f"### Evaluation of 5,000 images x 100 detections, step by step\n\n{costs}\n")
    if only in ("data", "loading", "annotations", "evaluation"):
        return parts
    ours, theirs = detr_speed.make_pair(preset)
    size_hw = detr_speed.size_of(preset)
    pixels = "{} x {}".format(*size_hw)
    if only in (None, "forward"):
        rows = detr_speed.forward(ours, theirs, device, repeats, preset=preset)
        parts.append(table(f"Forward of {preset}, one image of {pixels}, uint8 to boxes", rows))
    if only == "backbone" or (only is None and preset == detr_speed.PRESET):
        parts.append(table("The ResNet-50 backbone alone", detr_speed.backbone(ours, theirs, device, repeats)))
    if only in (None, "train"):
        if device.type == "cuda":
            rates = gpu_training.gpu_report(device, max(repeats, 10), preset=preset)
            parts.append(f"### Training of {preset}, images of {pixels}\n\n{rates}\n")
        else:
            rows = detr_speed.training_step(ours, theirs, Job(device, 2, size_hw, preset), repeats)
            parts.append(table(f"Training step of {preset}, 2 images of {pixels}", rows, MEMORY_NOTE))
    return parts


if __name__ == "__main__":
    main()
