"""The over-fit check: can detr-r18, from random weights, learn 8 real images by heart?

A detector that cannot has a fault in its data, loss, model or loop. Uses the first 8 annotated images of a
folder in COCO layout: `python -m benchmarks.overfit --data ../shared/data/coco_mini`. With `--panoptic` of COCO
panoptic, and it is `detr-nano-two-stage-panoptic` that learns: `--data ../shared/data/coco_panoptic_yolo`; PQ is
0.87 after 4.6 minutes of one core.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import detrkit
from detrkit.cli.shared import parse_assignments
from detrkit.config import DataConfig, Layout
from detrkit.data.formats import find_split

IMAGES = 8
SIZE = 320  # of the longer side, in pixels
# Everything random is off, and the rate is that of a small set rather than COCO's.
SETTINGS = {
    "transforms.recipe": "resize",
    "transforms.eval_size": SIZE,
    "transforms.max_size": SIZE,
    "transforms.flip": 0.0,
    "model.dropout": 0.0,
    "data.workers": 0,
    "train.batch_size": IMAGES,
    "train.precision": "bf16",
    "train.log_every": 20,
    "train.log_images": 0,
    "train.schedule": "cosine",
    "train.warmup_steps": 20,
    "train.lr": 3e-4,
    "train.backbone_lr": 3e-4,
    "train.weight_decay": 0.0,
    "train.epochs": 100,
    "train.eval_every": 50,
    # What detr-tiny learns from nothing with: 50 steps reach AP50 0.92, where 300 without them reach 0.35.
    "model.pre_norm": True,
    "model.query_init": "grid",
    "model.query_reference": True,
    "model.position_at_input": True,
    "model.position_scale": 25.0,
    "model.position_temperature": 20.0,
    "aids.dense": "center",
}


# Perfect masks have PQ 0.95 at this size, 0.96 at 320 for twice the work; steps count more than images of a step.
PANOPTIC_SIZE = 224
PANOPTIC_SETTINGS = {
    **{key: value for key, value in SETTINGS.items() if not key.startswith(("model.", "aids."))},
    "transforms.eval_size": PANOPTIC_SIZE,
    "transforms.max_size": PANOPTIC_SIZE,
    "train.batch_size": 4,
    "train.lr": 1e-3,
    "train.backbone_lr": 1e-3,
    "train.epochs": 200,
    "train.eval_every": 100,
}


def write_subset(source: Path, folder: Path, count: int = IMAGES, layout: Layout = "auto") -> Path:
    """A data set whose training and validation images are the same first ``count`` annotated ones."""
    files = find_split(source, "train", DataConfig(layout=layout))
    kind = "panoptic" if layout == "panoptic" else "instances"
    content = json.loads(files.annotations.read_text(encoding="utf-8"))
    annotated = {annotation["image_id"] for annotation in content["annotations"]}
    images = sorted(
        (image for image in content["images"] if image["id"] in annotated), key=lambda image: image["id"]
    )
    chosen = images[:count]
    ids = {image["id"] for image in chosen}
    content["images"] = chosen
    content["annotations"] = [item for item in content["annotations"] if item["image_id"] in ids]
    (folder / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        (folder / "annotations" / f"{kind}_{split}.json").write_text(json.dumps(content), encoding="utf-8")
        if kind == "panoptic":
            (folder / "annotations" / f"{kind}_{split}").symlink_to(files.annotations.with_suffix("").resolve())
        (folder / split).symlink_to(files.images.resolve())
    return folder


def overfit(
    source: Path,
    changes: dict[str, object] | None = None,
    say: Callable[[str], None] = print,
    *,
    panoptic: bool = False,
) -> dict[str, float]:
    """Train on 8 images and measure on the same 8; the numbers of the last evaluation."""
    preset, own = ("detr-nano-two-stage-panoptic", PANOPTIC_SETTINGS) if panoptic else ("detr-r18", SETTINGS)
    with tempfile.TemporaryDirectory() as folder:
        data = write_subset(source, Path(folder) / "data", layout="panoptic" if panoptic else "auto")
        settings = {**own, **(changes or {})}
        run = detrkit.train(preset, data, run=Path(folder) / "run", init="none", changes=settings, say=say)
        return dict(run.last_metrics)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--panoptic", action="store_true")
    parser.add_argument("--set", dest="assignments", action="append", default=[])
    arguments = parser.parse_args()
    metrics = overfit(arguments.data, parse_assignments(arguments.assignments), panoptic=arguments.panoptic)
    found = ", ".join(f"{name} {metrics[name]:.3f}" for name in ("AP", "AP50", "PQ") if name in metrics)
    print(f"{found} on the {IMAGES} images it was trained on")


if __name__ == "__main__":
    main()
