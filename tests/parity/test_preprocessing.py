from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detrkit.config import TransformConfig
from detrkit.data.coco import CocoDataset, SampleKey
from detrkit.data.loader import collate
from detrkit.data.read import read_coco
from detrkit.data.transforms import eval_transform
from detrkit.preprocess import normalize_images


@pytest.fixture(scope="module")
def processor() -> Any:
    return pytest.importorskip("transformers").DetrImageProcessor()


@pytest.fixture(scope="module")
def dataset(shared_data: Path) -> CocoDataset:
    folder = shared_data / "coco_mini" / "val2017"
    index, _ = read_coco(shared_data / "coco_mini" / "annotations" / "instances_val2017.json", folder, "error")
    return CocoDataset(index, folder, eval_transform(TransformConfig()), on_bad_image="error")


def test_batches_equal_those_of_transformers(processor: Any, dataset: CocoDataset) -> None:
    sizes = dataset.index.sizes_hw
    by_aspect = np.argsort(sizes[:, 0] / sizes[:, 1])
    chosen = [int(by_aspect[place]) for place in (0, 20, 55, 80, -1)]
    assert len({tuple(sizes[row]) for row in chosen}) >= 4
    batch = collate([dataset[SampleKey(0, row)] for row in chosen])
    assert batch is not None
    images = [dataset.read_image(row) for row in chosen]
    expected = processor(images=images, annotations=[coco_annotation(dataset, row) for row in chosen],
                         return_tensors="pt")  # fmt: skip
    config = TransformConfig()
    pixels = normalize_images(batch.images, config.mean, config.std, batch.padding_mask)
    assert pixels.shape == expected["pixel_values"].shape
    # a resized pixel that differed by 1 of 255 would show as 0.017: the difference left is float32 rounding
    torch.testing.assert_close(pixels, expected["pixel_values"], rtol=0, atol=1e-5)
    assert torch.equal(~batch.padding_mask, expected["pixel_mask"].bool())
    assert tuple(len(labels["boxes"]) for labels in expected["labels"]) == batch.truth.counts
    boxes = torch.cat([labels["boxes"] for labels in expected["labels"]])
    # transformers normalises by the unpadded size and then rescales to the padded one
    padded = torch.tensor([batch.images.shape[3], batch.images.shape[2]] * 2)
    rows = torch.repeat_interleave(torch.arange(len(chosen)), torch.tensor(batch.truth.counts))
    own = torch.tensor([[width, height] * 2 for height, width in batch.sizes_hw])[rows]
    torch.testing.assert_close(batch.truth.boxes_cxcywh * own / padded, boxes, rtol=0, atol=1e-6)


def test_resized_boxes_are_exactly_those_of_transformers(processor: Any, dataset: CocoDataset) -> None:
    for row in range(0, len(dataset), 7):
        sample = dataset[SampleKey(0, row)]
        assert sample is not None
        image, target = sample
        size_hw = (int(image.shape[1]), int(image.shape[2]))
        plain = dataset.read_target(row, target["orig_size_hw"])["boxes"].as_subclass(torch.Tensor)
        expected = processor.resize_annotation({"boxes": plain}, target["orig_size_hw"], size_hw)["boxes"]
        assert torch.equal(target["boxes"].as_subclass(torch.Tensor), expected)


def coco_annotation(dataset: CocoDataset, row: int) -> dict[str, Any]:
    index, rows = dataset.index, dataset.index.annotation_rows(row)
    annotations = [
        {
            "bbox": [float(x1), float(y1), float(x2 - x1), float(y2 - y1)],
            "category_id": int(label),
            "area": float(area),
            "iscrowd": int(iscrowd),
        }
        for (x1, y1, x2, y2), label, area, iscrowd in zip(
            index.boxes_xyxy[rows], index.labels[rows], index.area[rows], index.iscrowd[rows], strict=True
        )
    ]
    return {"image_id": int(index.image_ids[row]), "annotations": annotations}
