"""Ways to fine-tune, side by side: AP after the same number of steps on few images.

detr-tiny learns three drawn shapes from 3,000 images, and goes on with 50 images of something else: six drawn
shapes in other colours (close; three of the classes keep their names), and photographs of blood cells (far).
AP does not depend on the machine's speed. On one core it takes a quarter of an hour:
`python -m benchmarks.finetuning --data ../shared/data/bccd_voc`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import detrkit
from detrkit.curation.synthetic import write_synthetic
from detrkit.families.build import is_run

PRETRAINING_IMAGES = 3000
PRETRAINING_CLASSES = 3
IMAGES = 50
VAL_IMAGES = 100
SEEDS = (0, 1)
EPOCHS = 32
BATCH = 10

PRETRAINED_PARTS = ("backbone", "input_proj", "encoder", "queries", "decoder", "box_head")

METHODS: dict[str, dict[str, Any]] = {
    "from scratch": {"train.init": "none"},
    "all parts at the full rate": {},
    "all parts at a tenth of the rate": {"train.lr": 1e-4, "train.backbone_lr": 1e-4},
    "pretrained parts at a tenth: `lr_scale`": {"train.lr_scale": dict.fromkeys(PRETRAINED_PARTS, 0.1)},
    "backbone at a tenth: `lr_scale`": {"train.lr_scale": {"backbone": 0.1}},
    "`layer_decay=0.8`": {"train.layer_decay": 0.8},
    "`head_steps=50`": {"train.head_steps": 50},
    "frozen backbone": {"train.freeze": ["backbone"]},
    "class and box head only": {"train.freeze": [part for part in PRETRAINED_PARTS if part != "box_head"]},
}
SETTINGS: dict[str, Any] = {
    "data.workers": 0,
    "train.epochs": EPOCHS,
    "train.eval_every": EPOCHS,
    "train.batch_size": BATCH,
    "train.warmup_steps": 20,
    "train.clip_norm": 1.0,  # and no average of weights: what the table of docs/finetuning.md was made with
    "train.ema_decay": None,
    "train.log_every": 100,
    "train.log_images": 0,
    "train.device": "cpu",
}


@dataclasses.dataclass(frozen=True)
class Target:
    """Few images to fine-tune on: config values that name them, by seed."""

    name: str
    data: Mapping[int, dict[str, str]]


def pretrain(work: Path) -> Path:
    """The run that all fine-tuning starts from; one that is there already is used again."""
    run = work / "pretrained"
    if not is_run(run):
        data = write_synthetic(
            work / "source", PRETRAINING_IMAGES, VAL_IMAGES, num_classes=PRETRAINING_CLASSES, seed=0
        )
        changes = {
            "train.seed": 0,
            "train.clip_norm": 1.0,
            "train.ema_decay": None,
            "train.eval_every": 7,
            "train.log_images": 0,
            "train.device": "cpu",
        }
        detrkit.train("detr-tiny", data, run=run, changes=changes, say=_quiet)
    return run


def close_target(work: Path) -> Target:
    """Six drawn shapes; a class's colour depends on how many there are, so that the three known ones change."""
    folders = {
        seed: write_synthetic(work / f"close-{seed}", IMAGES, VAL_IMAGES, seed=100 + seed) for seed in SEEDS
    }
    return Target("six shapes", {seed: {"data.root": str(folder)} for seed, folder in folders.items()})


def far_target(work: Path, source: Path) -> Target:
    """Some training images of a data set with COCO files, and all its validation images."""
    content = json.loads((source / "coco" / "instances_train.json").read_text(encoding="utf-8"))
    images = str(source / "JPEGImages")
    data = {}
    for seed in SEEDS:
        order = np.random.Generator(np.random.PCG64(seed)).permutation(len(content["images"]))
        chosen = [content["images"][place] for place in sorted(order[:IMAGES].tolist())]
        ids = {image["id"] for image in chosen}
        few = {
            "images": chosen,
            "annotations": [item for item in content["annotations"] if item["image_id"] in ids],
            "categories": content["categories"],
        }
        path = work / f"far-{seed}.json"
        path.write_text(json.dumps(few), encoding="utf-8")
        data[seed] = {
            "data.train_annotations": str(path),
            "data.train_images": images,
            "data.val_annotations": str(source / "coco" / "instances_val.json"),
            "data.val_images": images,
        }
    return Target(source.name, data)


def fine_tune(method: str, target: Target, seed: int, pretrained: Path, work: Path) -> float:
    """AP of one way after all its steps."""
    run = work / "run"
    shutil.rmtree(run, ignore_errors=True)
    changes = {"train.init": str(pretrained), **SETTINGS, **METHODS[method], **target.data[seed]}
    result = detrkit.train("detr-tiny", run=run, changes={**changes, "train.seed": seed}, say=_quiet)
    return float(result.last_metrics["AP"])


def measure(work: Path, source: Path | None, say: Callable[[str], None]) -> str:
    """Every way on every target, as a table."""
    pretrained = pretrain(work)
    targets = [close_target(work), *([] if source is None else [far_target(work, source)])]
    rows = []
    for method in METHODS:
        found = [[fine_tune(method, target, seed, pretrained, work) for seed in SEEDS] for target in targets]
        rows.append(_row(method, found))
        say(rows[-1])
    names = " | ".join(f"AP, {target.name}" for target in targets)
    return "\n".join([f"| | {names} |", "|---|" + "---|" * len(targets), *rows])


def _row(method: str, found: Sequence[Sequence[float]]) -> str:
    cells = [f"{np.mean(each):.3f} ({', '.join(f'{ap:.3f}' for ap in each)})" for each in found]
    return f"| {method} | {' | '.join(cells)} |"


def _quiet(_message: str) -> None:
    """Say nothing: the table tells all."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data", type=Path, help="folder of BCCD with coco/ and JPEGImages/; without it, only close"
    )
    parser.add_argument("--work", type=Path, help="folder to keep the pretrained run in, for another measurement")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = arguments.work or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        table = measure(work, arguments.data, lambda row: print(row, flush=True))
    steps = EPOCHS * IMAGES // BATCH
    print(f"\nAP after {steps} steps on {IMAGES} images: mean ({len(SEEDS)} seeds)\n\n{table}")


if __name__ == "__main__":
    main()
