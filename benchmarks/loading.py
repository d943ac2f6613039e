"""From JPEG files to training batches at DETR's recipe, against torchvision's pipeline and transformers'.

torchvision's is that of its reference training scripts for detection (references/detection/presets.py):
``CocoDetection`` wrapped for v2, multi-scale resize, flip, floats of 0 to 1, ``SanitizeBoundingBoxes``, lists as
batches; DETR's crop branch is added with torchvision's own pieces. It is timed with both backends that the scripts
offer. Normalising is done by torchvision's models on the device, as by detrkit, and so is padding; transformers'
processor does both in the worker.

CPU time is measured, since it is what a loader has to spend, and a busy machine disturbs it less than the clock.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch.utils.data import DataLoader, Dataset
from torchvision import datasets, tv_tensors
from torchvision.transforms import v2

from benchmarks.data_speed import natural_looking
from detrkit.config import DataConfig, TransformConfig
from detrkit.data.coco import CocoDataset
from detrkit.data.formats import find_split
from detrkit.data.loader import EpochBatchSampler, build_loader
from detrkit.data.read import read_split_files
from detrkit.data.transforms import train_transform
from detrkit.preprocess import normalize_images

BATCH = 4
CONFIG = TransformConfig()


@dataclasses.dataclass(frozen=True)
class Cost:
    """CPU milliseconds an image: medians over the rounds."""

    name: str
    alone_ms: float
    worker_ms: float
    parent_ms: float

    @property
    def loader_ms(self) -> float:
        """Of both processes of a loader."""
        return self.worker_ms + self.parent_ms


class RandomSizeCrop(v2.Transform):
    """The crop of DETR's recipe, of torchvision's pieces."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = v2.query_size(flat_inputs)
        sides = [_between(min(384, side), min(600, side)) for side in (height, width)]
        return {
            "top": _between(0, height - sides[0]),
            "left": _between(0, width - sides[1]),
            "height": sides[0],
            "width": sides[1],
        }

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return self._call_kernel(v2.functional.crop, inpt, **params)


def reference_transform(backend: str) -> v2.Transform:
    """The reference scripts' ``multiscale`` preset, with the crop branch."""
    resize = v2.RandomShortestSize(min_size=CONFIG.scales, max_size=CONFIG.max_size)
    crop = v2.Compose([v2.RandomShortestSize(min_size=CONFIG.crop_scales), RandomSizeCrop(), resize])
    steps: list[v2.Transform] = [v2.ToImage()] if backend == "tensor" else []
    steps += [v2.RandomChoice([resize, crop], p=[1 - CONFIG.crop, CONFIG.crop])]
    steps += [v2.RandomHorizontalFlip(CONFIG.flip)]
    steps += [v2.ToImage()] if backend == "PIL" else []
    return v2.Compose(
        [
            *steps,
            v2.ToDtype(torch.float, scale=True),
            v2.ConvertBoundingBoxFormat(tv_tensors.BoundingBoxFormat.XYXY),
            v2.SanitizeBoundingBoxes(),
            v2.ToPureTensor(),
        ]
    )


def reference_dataset(annotations: Path, images: Path, backend: str) -> Dataset[Any]:
    """torchvision's data set with its transforms; without images that have no objects, as in the scripts."""
    with contextlib.redirect_stdout(io.StringIO()):
        dataset = datasets.CocoDetection(images, annotations, transforms=reference_transform(backend))
    dataset.ids = _usable(dataset, images)
    return datasets.wrap_dataset_for_transforms_v2(dataset, target_keys=("boxes", "labels", "image_id"))


class ProcessorDataset(Dataset[Any]):
    """transformers' DETR processor behind the same random flip, crop and scale."""

    def __init__(self, annotations: Path, images: Path):
        from transformers import DetrImageProcessor

        with contextlib.redirect_stdout(io.StringIO()):
            self.dataset = datasets.CocoDetection(images, annotations)
        self.dataset.ids = _usable(self.dataset, images)
        self.processor = DetrImageProcessor()
        first = v2.RandomShortestSize(min_size=CONFIG.crop_scales)
        self.flip = v2.RandomHorizontalFlip(CONFIG.flip)
        self.crop = v2.RandomApply([v2.Compose([first, RandomSizeCrop()])], p=CONFIG.crop)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> Any:
        picture, objects = self.dataset[row]
        image = v2.functional.to_image(picture.convert("RGB"))
        size_hw = (image.shape[-2], image.shape[-1])
        boxes = tv_tensors.BoundingBoxes([item["bbox"] for item in objects], format="XYWH", canvas_size=size_hw)
        image, boxes = self.crop(*self.flip(image, boxes))
        kept = [
            {**item, "bbox": box}
            for item, box in zip(objects, boxes.tolist(), strict=True)
            if box[2] > 0 and box[3] > 0
        ]
        short = CONFIG.scales[_between(0, len(CONFIG.scales) - 1)]
        found = self.processor(
            images=image,
            annotations={"image_id": objects[0]["image_id"], "annotations": kept},
            size={"shortest_edge": short, "longest_edge": CONFIG.max_size},
            do_pad=False,
            return_tensors="pt",
        )
        return found["pixel_values"][0], found["labels"][0]

    def collate(self, samples: Sequence[Any]) -> Any:
        height, width = (max(image.shape[axis] for image, _ in samples) for axis in (1, 2))
        padded, masks, labels = [], [], []
        for image, target in samples:
            pixels, mask, _ = self.processor.pad(image, (height, width))
            padded.append(pixels)
            masks.append(mask)
            labels.append(target)
        return torch.stack(padded), torch.stack(masks), labels


def loading(rounds: int, data: Path | None = None) -> list[Cost]:
    """CPU time an image of every competitor, in turn, in one process and through a loader of one worker."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _loading(rounds, data)
    finally:
        torch.set_num_threads(threads)


def _loading(rounds: int, data: Path | None) -> list[Cost]:
    with tempfile.TemporaryDirectory() as folder:
        files = find_split(data or generated(Path(folder)), "train")
        pipelines = _pipelines(files)
        alone: dict[str, list[float]] = {name: [] for name in pipelines}
        through: dict[str, list[tuple[float, float]]] = {name: [] for name in pipelines}
        for turn in range(rounds + 1):  # the first warms up
            for name, (images, in_process, loader) in pipelines.items():
                spent = _alone_ms(in_process, images), _through_ms(loader, images)
                if turn:
                    alone[name].append(spent[0])
                    through[name].append(spent[1])
    return [
        Cost(
            name,
            statistics.median(alone[name]),
            statistics.median(worker for worker, _ in through[name]),
            statistics.median(parent for _, parent in through[name]),
        )
        for name in pipelines
    ]


def loading_table(costs: Sequence[Cost]) -> str:
    """A Markdown table; ratios are to the faster of torchvision's two."""
    best = min(cost.alone_ms for cost in costs if cost.name.startswith("torchvision"))
    best_loader = min(cost.loader_ms for cost in costs if cost.name.startswith("torchvision"))
    lines = [
        "| CPU time an image | without a loader | times as fast | worker | + training process "
        "| images a second and core | times as fast |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {cost.name} | {cost.alone_ms:.2f} ms | {best / cost.alone_ms:.2f} | {cost.worker_ms:.2f} ms "
        f"| {cost.parent_ms:.2f} ms | {1000 / cost.loader_ms:.0f} | {best_loader / cost.loader_ms:.2f} |"
        for cost in costs
    ]
    return "\n".join(lines)


def generated(folder: Path, count: int = 48) -> Path:
    """A data set of COCO's image sizes, for where there is none."""
    (folder / "train2017").mkdir()
    (folder / "annotations").mkdir()
    images, annotations = [], []
    random = np.random.default_rng(0)
    for number in range(1, count + 1):
        height, width = ((480, 640), (640, 480), (427, 640))[number % 3]
        name = f"{number:012d}.jpg"
        natural_looking(height, width).save(folder / "train2017" / name, quality=90)
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        for _ in range(7):
            box = [*random.uniform(0, 300, 2).tolist(), *random.uniform(10, 120, 2).tolist()]
            entry = {"id": len(annotations) + 1, "image_id": number, "category_id": 1, "iscrowd": 0}
            annotations.append({**entry, "bbox": box, "area": box[2] * box[3]})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (folder / "annotations" / "instances_train2017.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


Pipeline = tuple[int, Callable[[], Iterator[Any]], Any]


def _pipelines(files: Any) -> dict[str, Pipeline]:
    """Images, batches made in this process, and a loader, by name."""
    found: dict[str, Pipeline] = {}
    for backend in ("PIL", "tensor"):
        theirs = reference_dataset(files.annotations, files.images, backend)
        found[f"torchvision, {backend} backend"] = _plain(theirs, _as_lists)
    processor = ProcessorDataset(files.annotations, files.images)
    found["transformers DetrImageProcessor"] = _plain(processor, processor.collate)
    index, _ = read_split_files(files)
    ours = CocoDataset(index, files.images, train_transform(CONFIG), seed=1)

    def make(workers: int) -> Any:
        return build_loader(ours, EpochBatchSampler(len(ours), BATCH, seed=0), DataConfig(workers=workers))

    found["detrkit"] = (len(ours), lambda: iter(make(0)), make(1))
    found["detrkit, with floats on the CPU"] = (len(ours), lambda: map(_floats, make(0)), _InFloats(make(1)))
    return found


def _plain(dataset: Any, collate: Callable[[Sequence[Any]], Any]) -> Pipeline:
    options: dict[str, Any] = {"batch_size": BATCH, "shuffle": True, "collate_fn": collate}
    loader = DataLoader(dataset, num_workers=1, persistent_workers=True, **options)
    return len(dataset), lambda: iter(DataLoader(dataset, **options)), loader


class _InFloats:
    """A loader whose batches the training process normalises itself, where there is no other device."""

    def __init__(self, loader: Any):
        self.loader = loader

    def __iter__(self) -> Iterator[Any]:
        return map(_floats, self.loader)


def _floats(batch: Any) -> torch.Tensor:
    return normalize_images(batch.images, CONFIG.mean, CONFIG.std, batch.padding_mask)


def _as_lists(samples: Sequence[Any]) -> Any:
    return tuple(zip(*samples, strict=True))


def _alone_ms(batches: Callable[[], Iterator[Any]], images: int) -> float:
    gc.collect()
    start_s = time.process_time()
    for _ in batches():
        pass
    return 1000 * (time.process_time() - start_s) / images


def _through_ms(loader: Any, images: int) -> tuple[float, float]:
    """Milliseconds of the worker and of this process."""
    gc.collect()
    before_s, start_s = _children_s(), time.process_time()
    for _ in loader:
        pass
    return 1000 * (_children_s() - before_s) / images, 1000 * (time.process_time() - start_s) / images


def _children_s() -> float:
    """CPU time of the worker that is at work; the others wait and use none."""
    total = 0.0
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            times = child.cpu_times()
            total += times.user + times.system
    return total


def _usable(dataset: Any, images: Path) -> list[int]:
    return [
        image_id
        for image_id in dataset.ids
        if dataset.coco.getAnnIds(image_id) and (images / dataset.coco.imgs[image_id]["file_name"]).exists()
    ]


def _between(least: int, greatest: int) -> int:
    return int(torch.randint(least, greatest + 1, ()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder in COCO layout; generated images if not given")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    print(loading_table(loading(arguments.rounds, arguments.data)))


if __name__ == "__main__":
    main()
