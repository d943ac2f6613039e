"""Preprocessing against transformers' DetrImageProcessor, evaluation against pycocotools."""

from __future__ import annotations

import contextlib
import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.timing import Row, time_in_turn
from detrkit.classes import ClassMap
from detrkit.config import TransformConfig
from detrkit.evaluation.evaluator import CocoEvaluator
from detrkit.ops.images import decode_image
from detrkit.preprocess import normalize_images, resize_image, resized_size_hw
from detrkit.types import ImageDetections


def preprocessing(repeats: int, jpeg: Path | None = None) -> list[Row]:
    """One 640 x 480 JPEG file to the model's input at 800 pixels."""
    from transformers import DetrImageProcessor

    processor = DetrImageProcessor()
    config = TransformConfig()
    with tempfile.TemporaryDirectory() as folder:
        path = jpeg or Path(folder) / "image.jpg"
        if jpeg is None:
            natural_looking(480, 640).save(path, quality=90)

        def them() -> Any:
            return processor(images=Image.open(path).convert("RGB"), return_tensors="pt")

        def us() -> torch.Tensor:
            image = decode_image(path)
            size_hw = resized_size_hw((image.shape[-2], image.shape[-1]), config.eval_size, config.max_size)
            return normalize_images(resize_image(image, size_hw)[None], config.mean, config.std, None)

        return time_in_turn({"transformers DetrImageProcessor": them, "detrkit": us}, repeats, inner=10)


def evaluation(repeats: int, images: int = 5000, detections: int = 100) -> list[Row]:
    """COCO box metrics of 5,000 images with 100 detections each, from arrays in memory."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth, found = _detections(images, detections)
    classes = ClassMap.from_categories(truth["categories"])
    results = np.concatenate(
        [
            np.column_stack(
                (
                    np.full(len(part.scores), image_id),
                    part.boxes_xyxy[:, :2],
                    part.boxes_xyxy[:, 2:] - part.boxes_xyxy[:, :2],
                    part.scores,
                    part.class_ids + 1,
                )
            )
            for image_id, part in found.items()
        ]
    ).astype(np.float64)
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO()
        reference.dataset = truth
        reference.createIndex()
    aps: dict[str, float] = {}

    def them() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            evaluator = COCOeval(reference, reference.loadRes(results), "bbox")
            evaluator.evaluate()
            evaluator.accumulate()
            evaluator.summarize()
        aps["them"] = float(evaluator.stats[0])

    def us() -> None:
        evaluator = CocoEvaluator(truth, classes)
        for image_id, part in found.items():
            evaluator.add(image_id, part)
        aps["us"] = evaluator.finish()["AP"]

    rows = time_in_turn({"pycocotools": them, "detrkit (hotcoco)": us}, repeats)
    if aps["us"] != aps["them"]:
        raise AssertionError(f"the two disagree: {aps}")
    return rows


def natural_looking(height: int, width: int) -> Image.Image:
    """A picture with the smoothness of a photograph, so that the JPEG has a photograph's size."""
    random = np.random.default_rng(0)
    picture = np.zeros((height, width, 3))
    for cells in (4, 16, 64, 160):
        noise = random.uniform(0, 255 / cells**0.4, (cells * height // width, cells, 3)).astype(np.uint8)
        picture += np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))
    return Image.fromarray((255 * picture / picture.max()).astype(np.uint8))


def _detections(images: int, per_image: int) -> tuple[dict[str, Any], dict[int, ImageDetections]]:
    """Ground truth like COCO's in number, and detections that hit part of it."""
    random = np.random.default_rng(0)
    annotations: list[dict[str, Any]] = []
    found = {}
    for image_id in range(1, images + 1):
        count = int(random.integers(0, 15))
        corner = random.uniform(0, 400, (count, 2))
        size = random.uniform(8, 200, (count, 2))
        classes = random.integers(0, 80, count)
        for (x, y), (w, h), label in zip(corner.tolist(), size.tolist(), classes.tolist(), strict=True):
            annotation = {"id": len(annotations) + 1, "image_id": image_id, "category_id": label + 1}
            annotations.append({**annotation, "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0})
        boxes = np.concatenate((corner, corner + size), 1)
        hits = boxes[random.integers(0, count, per_image // 2)] if count else np.zeros((0, 4))
        hits = hits + random.normal(0, 6, hits.shape)
        rest = random.uniform(0, 300, (per_image - len(hits), 4))
        rest[:, 2:] += rest[:, :2] + 5
        found[image_id] = ImageDetections(
            np.concatenate((hits, rest)).astype(np.float32),
            random.uniform(0, 1, per_image).astype(np.float32),
            random.integers(0, 80, per_image),
        )
    truth = {
        "images": [{"id": i + 1, "width": 640, "height": 640, "file_name": f"{i}.jpg"} for i in range(images)],
        "annotations": annotations,
        "categories": [{"id": i + 1, "name": f"class {i}"} for i in range(80)],
    }
    return truth, found
