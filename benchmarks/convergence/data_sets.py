"""The data sets: where they lie, which splits are used, and at what size every competitor sees them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from detrkit.curation.synthetic import write_synthetic
from detrkit.errors import UsageError
from detrkit.files import atomic_file

QUICK_IMAGES = 8
# of 64 pixels FCOS would make maps of 1 x 1, and torch 2.15 wrong bf16 gradients from them on CPUs
QUICK_SIZE = (96, 128)
DEMO_IMAGES = (3000, 300)
DEMO = "demo"


class Part(NamedTuple):
    """A split: its COCO JSON file and its image folder, below the folder of the data set."""

    annotations: str
    images: str


@dataclasses.dataclass(frozen=True)
class DataSet:
    """Images to train on and others to measure on.

    Args:
        summary: One line for ``--list``.
        folder: Its name in the folder of data sets; empty where it is made on the spot.
        train: Images to train on.
        val: Images to measure on.
        size: Short side and greatest long side in pixels, for recipes and peers alike.
        augment: Further config values of augmentation, for recipes and peers alike.
    """

    summary: str
    folder: str
    train: Part
    val: Part
    size: tuple[int, int]
    augment: Mapping[str, Any] = dataclasses.field(default_factory=dict)


_FEW_IMAGES = {"transforms.scale_jitter": [0.8, 1.25]}

DATA_SETS: dict[str, DataSet] = {
    DEMO: DataSet(
        "detrkit's drawn shapes, 3000 images of 128 pixels, made on the spot",
        "",
        Part("annotations/instances_train2017.json", "train2017"),
        Part("annotations/instances_val2017.json", "val2017"),
        (128, 192),
    ),
    "bccd": DataSet(
        "blood cells: 205 images of train, 72 of test",
        "bccd_voc",
        Part("coco/instances_train.json", "JPEGImages"),
        Part("coco/instances_test.json", "JPEGImages"),
        (240, 320),
        {**_FEW_IMAGES, "transforms.vertical_flip": 0.5},
    ),
    "chess": DataSet(
        "chess pieces, 12 classes: train and valid",
        "chess_roboflow_coco",
        Part("train/_annotations.coco.json", "train"),
        Part("valid/_annotations.coco.json", "valid"),
        (240, 320),
        _FEW_IMAGES,
    ),
    "cones": DataSet(
        "cones and cubes, of videos: train and valid",
        "cones_yolo",
        Part("coco/instances_train.json", "train/images"),
        Part("coco/instances_valid.json", "valid/images"),
        (240, 320),
        _FEW_IMAGES,
    ),
    "coco": DataSet(
        "a sample of COCO 2017, 80 classes: train and val",
        "coco_mini",
        Part("annotations/instances_train2017.json", "train2017"),
        Part("annotations/instances_val2017.json", "val2017"),
        (480, 640),
    ),
}


@dataclasses.dataclass(frozen=True)
class Files:
    """A data set on the disk.

    Args:
        name: As in :data:`DATA_SETS`.
        train_annotations: COCO JSON to train on.
        train_images: Its images.
        val_annotations: COCO JSON to measure on.
        val_images: Its images.
        size: Short side and greatest long side in pixels.
    """

    name: str
    train_annotations: Path
    train_images: Path
    val_annotations: Path
    val_images: Path
    size: tuple[int, int]

    def changes(self, *, square: bool = False) -> dict[str, Any]:
        """Config values that name the data and its size; squares are as large as the longest side."""
        short, longest = (self.size[1], self.size[1]) if square else self.size
        return {
            **self.paths(),
            "data.cache": "none",
            "transforms.eval_size": short,
            "transforms.max_size": longest,
            "transforms.scales": [short],
            **DATA_SETS[self.name].augment,
        }

    def paths(self) -> dict[str, Any]:
        """Config values that name the data."""
        names = ("train_annotations", "train_images", "val_annotations", "val_images")
        return {f"data.{name}": str(getattr(self, name).resolve()) for name in names}

    def train_count(self) -> int:
        """Images to train on."""
        return len(json.loads(self.train_annotations.read_text(encoding="utf-8"))["images"])


def find_data(
    name: str, data: Path | None, out: Path, *, size: tuple[int, int] | None = None, quick: bool = False
) -> Files:
    """The files of a data set; the demo set is drawn first, others are looked for.

    Args:
        name: As in :data:`DATA_SETS`.
        data: Folder of the data sets.
        out: Where what is made may be kept.
        size: Short side and greatest long side, in place of the data set's own.
        quick: Only a few images.

    Raises:
        UsageError: It is not known, or not there.
    """
    if name not in DATA_SETS:
        raise UsageError(f"no data set is called {name!r}; known: {', '.join(DATA_SETS)}")
    known = DATA_SETS[name]
    root = _draw_demo(out, quick) if name == DEMO else _folder_of(name, data)
    parts = [root / path for path in (*known.train, *known.val)]
    for path in parts:
        if not path.exists():
            raise UsageError(f"data set {name}: {path} is not there; expected as {known.folder}'s README says")
    files = Files(name, *parts, size=size or known.size)
    if not quick:
        return files
    small = {
        key: write_subset(getattr(files, key), out / "data" / f"{name}-{key}.json", QUICK_IMAGES)
        for key in ("train_annotations", "val_annotations")
    }
    return dataclasses.replace(files, **small, size=size or QUICK_SIZE)


def _folder_of(name: str, data: Path | None) -> Path:
    folder = DATA_SETS[name].folder
    if data is None:
        raise UsageError(f"data set {name} lies in a folder {folder}; name the folder that holds it with --data")
    if not (data / folder).is_dir():
        raise UsageError(f"data set {name}: there is no folder {data / folder}; give --data its parent")
    return data / folder


def _draw_demo(out: Path, quick: bool) -> Path:
    """The demo set, as ``detrkit demo`` draws it; one that is there is used again."""
    counts = (QUICK_IMAGES, QUICK_IMAGES) if quick else DEMO_IMAGES
    root = out / "data" / f"demo-{counts[0]}"
    if not (root / DATA_SETS[DEMO].val.annotations).exists():  # written last
        write_synthetic(root, *counts, seed=0)
    return root


def write_subset(source: Path, path: Path, count: int, seed: int = 0) -> Path:
    """A COCO file of some of another's images, chosen at random; all classes stay.

    Args:
        source: The other.
        path: Where to.
        count: Images; all if there are fewer.
        seed: Of the choice.
    """
    content = json.loads(source.read_text(encoding="utf-8"))
    order = np.random.default_rng(seed).permutation(len(content["images"]))
    chosen = [content["images"][place] for place in sorted(order[:count].tolist())]
    ids = {image["id"] for image in chosen}
    annotations = [item for item in content["annotations"] if item["image_id"] in ids]
    with atomic_file(path) as file:
        json.dump({"images": chosen, "annotations": annotations, "categories": content["categories"]}, file)
    return path
