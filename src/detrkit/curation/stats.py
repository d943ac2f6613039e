"""Numbers of a data set: classes, box sizes and shapes, objects per image, where they lie.

Shapes: I images, N objects of all of them, C classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from detrkit.classes import SIZE_LIMITS
from detrkit.curation.input_sizes import InputStats
from detrkit.data.index import CocoIndex
from detrkit.errors import listed
from detrkit.visual.text import printable

HEAT_CELLS = 24
MOST_IMAGE_SIZES = 8
FEW_OBJECTS = 20
"""Classes with fewer training objects are named as hard to learn."""


@dataclasses.dataclass(frozen=True)
class Measures:
    """The objects of some images as columns; crowd regions are counted, but not among the objects.

    Args:
        names: Class names, C of them.
        category_ids: The data set's ids of the classes.
        sizes_hw: Pixels, int64 ``[I, 2]``.
        image_rows: Image of each object, int64 ``[N]``, ascending.
        labels: int64 ``[N]``.
        boxes_xyxy: Pixels, float64 ``[N, 4]``.
        area: As annotated (of the mask, where there is one), pixels, float64 ``[N]``.
        crowd_labels: Class of each crowd region, int64.
    """

    names: tuple[str, ...]
    category_ids: tuple[int, ...]
    sizes_hw: np.ndarray
    image_rows: np.ndarray
    labels: np.ndarray
    boxes_xyxy: np.ndarray
    area: np.ndarray
    crowd_labels: np.ndarray

    @property
    def objects_per_image(self) -> np.ndarray:
        """Objects of each image, int64 ``[I]``."""
        return np.bincount(self.image_rows, minlength=len(self.sizes_hw)).astype(np.int64)

    @property
    def sides(self) -> np.ndarray:
        """Width and height of each box in pixels, float64 ``[N, 2]``."""
        return np.asarray(self.boxes_xyxy[:, 2:] - self.boxes_xyxy[:, :2])

    @property
    def relative_sizes(self) -> np.ndarray:
        """Square root of a box's share of its image, float64 ``[N]``, 0 to 1."""
        return np.asarray(np.sqrt(self.sides.prod(axis=1) / self.sizes_hw[self.image_rows].prod(axis=1)))

    @property
    def aspects(self) -> np.ndarray:
        """Width over height of each box, float64 ``[N]``."""
        return np.asarray(self.sides[:, 0] / self.sides[:, 1])

    @property
    def centers(self) -> np.ndarray:
        """Centre of each box (x, y), 0 to 1 of the image, float64 ``[N, 2]``."""
        middles = (self.boxes_xyxy[:, :2] + self.boxes_xyxy[:, 2:]) / 2
        return np.asarray(middles / self.sizes_hw[self.image_rows][:, ::-1])


@dataclasses.dataclass(frozen=True)
class Distribution:
    """Spread of values; all 0 where there are none."""

    mean: float
    least: float
    p5: float
    p25: float
    median: float
    p75: float
    p95: float
    greatest: float

    @classmethod
    def of(cls, values: np.ndarray) -> Distribution:
        """Return the distribution of some numbers."""
        if not len(values):
            return cls(*[0.0] * 8)
        points = np.percentile(values, (0, 5, 25, 50, 75, 95, 100))
        return cls(float(np.mean(values)), *(float(point) for point in points))


@dataclasses.dataclass(frozen=True)
class ClassStats:
    """One class.

    Args:
        name: Name of the class.
        category_id: The data set's id.
        objects: Number of objects without crowd regions.
        images: Number of images with at least one object.
        crowds: Number of crowd regions.
        median_side: Square root of the median box area, in pixels; 0 without objects.
    """

    name: str
    category_id: int
    objects: int
    images: int
    crowds: int
    median_side: float


@dataclasses.dataclass(frozen=True)
class StuffStats:
    """One class of stuff: its name, the images that show it, and its share of the pixels of all images, 0 to 1."""

    name: str
    images: int
    share: float


@dataclasses.dataclass(frozen=True)
class MaskStats:
    """The masks of one split, by their pixels; crowd regions are not among the objects.

    Args:
        masks: Number of objects with a mask.
        without: Number of objects without one.
        box_share: Pixels of a mask over those of its box.
        area_share: Annotated area over the pixels of the mask.
        stuff: Classes of stuff, the largest first.
        void_share: Share of the pixels of all images that belong to no segment; None where there is no stuff, and
            masks may lie over each other.
    """

    masks: int
    without: int
    box_share: Distribution
    area_share: Distribution
    stuff: tuple[StuffStats, ...]
    void_share: float | None


@dataclasses.dataclass(frozen=True)
class SplitStats:
    """One split, or all of them together.

    Args:
        images: Number of images.
        empty_images: Number of images without any object; crowd regions are no objects.
        objects: Number of objects without crowd regions.
        crowds: Number of crowd regions.
        classes: Classes in the order of the class map.
        imbalance: Objects of the most frequent class over those of the rarest that has any; 0 without objects.
        small: Number of objects that cover less than 32 x 32 pixels, by annotated area as COCO counts.
        medium: Number of those up to 96 x 96 pixels.
        large: Number of the rest.
        relative_size: Square root of a box's share of its image, 0 to 1.
        aspect: Width over height of boxes.
        objects_per_image: Objects of every image.
        image_width: Width in pixels.
        image_height: Height in pixels.
        image_aspect: Width over height of images.
        image_sizes: The most frequent sizes (height, width) and how many images have them.
        center_heat: Objects whose centre lies in each cell of a grid over the image, int64
            ``[HEAT_CELLS, HEAT_CELLS]``, row 0 on top.
    """

    images: int
    empty_images: int
    objects: int
    crowds: int
    classes: tuple[ClassStats, ...]
    imbalance: float
    small: int
    medium: int
    large: int
    relative_size: Distribution
    aspect: Distribution
    objects_per_image: Distribution
    image_width: Distribution
    image_height: Distribution
    image_aspect: Distribution
    image_sizes: tuple[tuple[int, int, int], ...]
    center_heat: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        values = dataclasses.asdict(self)
        values["image_sizes"] = [
            {"height": height, "width": width, "images": count} for height, width, count in self.image_sizes
        ]
        values["center_heat"] = self.center_heat.tolist()
        return values


@dataclasses.dataclass(frozen=True)
class DatasetStats:
    """A data set.

    Args:
        splits: Numbers of each split by name; with more than one, ``all`` holds them together.
        inputs: Objects that reach the model in training and evaluation, by ``train`` and ``eval``; may be empty.
        advice: Sentences on what deserves attention.
        masks: Numbers of the masks of each split that has some, where they were asked for.
    """

    splits: Mapping[str, SplitStats]
    inputs: Mapping[str, InputStats]
    advice: tuple[str, ...]
    masks: Mapping[str, MaskStats] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        masks = {name: dataclasses.asdict(own) for name, own in self.masks.items()}
        return {
            "splits": {name: stats.to_dict() for name, stats in self.splits.items()},
            "inputs": {name: stats.to_dict() for name, stats in self.inputs.items()},
            "advice": list(self.advice),
            **({"masks": masks} if masks else {}),
        }


def mask_stats(index: CocoIndex) -> MaskStats | None:
    """Count the pixels of all masks of a split; None if it has none.

    Raises:
        ImageError: A panoptic PNG file cannot be read.
    """
    if index.masks is None:
        return None
    sizes_hw = list(map(tuple, index.sizes_hw.tolist()))
    rows = map(index.annotation_rows, range(len(index)))
    pixels = np.concatenate([index.masks.lazy(*of_image).areas() for of_image in zip(rows, sizes_hw, strict=True)])
    image_rows = np.repeat(np.arange(len(index)), np.diff(index.offsets))
    is_stuff = np.isin(index.labels, index.class_map.stuff)
    # objects, by pixels of the mask, the box, and as annotated
    one = ~is_stuff & ~index.iscrowd
    given = one & index.masks.is_given & (pixels > 0)
    boxes = (index.boxes_xyxy[:, 2:] - index.boxes_xyxy[:, :2]).prod(axis=1)
    total = int(np.prod(sizes_hw, axis=1).sum())
    stuff = [
        StuffStats(
            index.class_map.names[label],
            len(np.unique(image_rows[index.labels == label])),
            float(pixels[index.labels == label].sum() / total),
        )
        for label in index.class_map.stuff
    ]
    return MaskStats(
        masks=int(given.sum()),
        without=int((one & ~given).sum()),
        box_share=Distribution.of(pixels[given] / boxes[given]),
        area_share=Distribution.of(index.area[given] / pixels[given]),
        stuff=tuple(sorted(stuff, key=lambda own: -own.share)),
        void_share=float(1 - pixels.sum() / total) if stuff else None,
    )


def measure(indexes: Sequence[CocoIndex]) -> Measures:
    """Collect the objects of one or more splits as columns; classes of several are joined by name."""
    maps = [index.class_map for index in indexes]
    # classes of all splits, and the position among them of those of each
    if len(indexes) == 1:  # a name may repeat within one class map, whose classes stay apart
        classes = list(zip(maps[0].names, maps[0].category_ids, strict=True))
        new_labels = [np.arange(len(classes))]
    else:
        id_of: dict[str, int] = {}
        for class_map in maps:
            id_of = dict(zip(class_map.names, class_map.category_ids, strict=True)) | id_of
        classes = [(name, id_of[name]) for name in dict.fromkeys(name for one in maps for name in one.names)]
        position = {name: number for number, (name, _) in enumerate(classes)}
        new_labels = [np.array([position[name] for name in one.names], dtype=np.int64) for one in maps]
    # columns of each split, images numbered on
    columns: list[tuple[np.ndarray, ...]] = []
    first_image = 0
    for index, new_label in zip(indexes, new_labels, strict=True):
        rows = np.repeat(np.arange(len(index)), np.diff(index.offsets)) + first_image
        labels, one = new_label[index.labels], ~index.iscrowd
        columns.append((rows[one], labels[one], index.boxes_xyxy[one], index.area[one], labels[~one]))
        first_image += len(index)
    names, category_ids = tuple(name for name, _ in classes), tuple(number for _, number in classes)
    sizes_hw = np.concatenate([index.sizes_hw for index in indexes]).astype(np.int64)
    joined = (np.concatenate(parts) for parts in zip(*columns, strict=True))
    return Measures(names, category_ids, sizes_hw, *joined)


def split_stats(measures: Measures) -> SplitStats:
    """Compute the numbers of some images."""
    # sizes of images, places and sizes of objects
    counts = measures.objects_per_image
    height, width = measures.sizes_hw.T
    classes = _class_stats(measures)
    present = [entry.objects for entry in classes if entry.objects]
    sizes, how_many = np.unique(measures.sizes_hw, axis=0, return_counts=True)
    frequent = np.argsort(-how_many, kind="stable")[:MOST_IMAGE_SIZES]
    cells = np.clip((measures.centers * HEAT_CELLS).astype(np.int64), 0, HEAT_CELLS - 1)
    heat = np.bincount(cells[:, 1] * HEAT_CELLS + cells[:, 0], minlength=HEAT_CELLS**2)
    by_size = {
        name: int(((measures.area >= least) & (measures.area < limit)).sum())
        for name, (least, limit) in SIZE_LIMITS.items()
    }
    return SplitStats(
        images=len(counts),
        empty_images=int((counts == 0).sum()),
        objects=len(measures.labels),
        crowds=len(measures.crowd_labels),
        classes=classes,
        imbalance=max(present) / min(present) if present else 0.0,
        **by_size,
        relative_size=Distribution.of(measures.relative_sizes),
        aspect=Distribution.of(measures.aspects),
        objects_per_image=Distribution.of(counts),
        image_width=Distribution.of(width),
        image_height=Distribution.of(height),
        image_aspect=Distribution.of(width / height),
        image_sizes=tuple((int(sizes[row, 0]), int(sizes[row, 1]), int(how_many[row])) for row in frequent),
        center_heat=heat.reshape(HEAT_CELLS, HEAT_CELLS).astype(np.int64),
    )


def dataset_stats(
    splits: Mapping[str, CocoIndex],
    inputs: Mapping[str, InputStats] | None = None,
    num_queries: int | None = None,
    masks: Mapping[str, MaskStats] | None = None,
) -> DatasetStats:
    """Compute the numbers of every split and of all together, and what deserves attention in them.

    Args:
        splits: Annotations by name of the split; at least one.
        inputs: Objects that reach the model, from :mod:`detrkit.curation.input_sizes`.
        num_queries: Number of queries of the model, the most objects it can find in an image.
        masks: Numbers of masks, from :func:`mask_stats`.
    """
    found = {name: split_stats(measure([index])) for name, index in splits.items()}
    if len(found) > 1:
        found["all"] = split_stats(measure(list(splits.values())))
    inputs = dict(inputs or {})
    return DatasetStats(found, inputs, tuple(_advice(found, inputs, num_queries)), dict(masks or {}))


def _class_stats(measures: Measures) -> tuple[ClassStats, ...]:
    count = len(measures.names)
    objects = np.bincount(measures.labels, minlength=count)
    crowds = np.bincount(measures.crowd_labels, minlength=count)
    pairs = np.unique(measures.labels * len(measures.sizes_hw) + measures.image_rows)
    images = np.bincount(pairs // max(len(measures.sizes_hw), 1), minlength=count)
    sides = np.sqrt(measures.sides.prod(axis=1))
    by_class = np.split(sides[np.argsort(measures.labels, kind="stable")], np.cumsum(objects)[:-1])
    medians = [Distribution.of(own).median for own in by_class[:count]]
    counts = objects.tolist(), images.tolist(), crowds.tolist()
    columns = zip(measures.names, map(int, measures.category_ids), *counts, medians, strict=True)
    return tuple(ClassStats(*column) for column in columns)


def _advice(
    splits: Mapping[str, SplitStats], inputs: Mapping[str, InputStats], num_queries: int | None
) -> list[str]:
    advice = []
    # classes that cannot be learned or measured
    train = splits.get("train")
    if train is not None:
        rare = [printable(entry.name) for entry in train.classes if 0 < entry.objects < FEW_OBJECTS]
        if rare:
            advice.append(f"fewer than {FEW_OBJECTS} objects in train, hard to learn: {listed(rare)}")
    for name in ("train", "val", "test"):
        classes = splits[name].classes if name in splits else ()
        absent = [printable(entry.name) for entry in classes if not entry.objects]
        if absent:
            loss = "never learned" if name == "train" else "not measured there"
            advice.append(f"without any object in {name}, and so {loss}: {listed(absent)}")
    # more objects than the model can find
    for name, stats in splits.items():
        most = int(stats.objects_per_image.greatest)
        if num_queries is not None and name != "all" and most > num_queries:
            advice.append(
                f"an image of {name} holds {most} objects, more than the {num_queries} queries of the model can "
                "find; raise model.num_queries, or cut such images into tiles"
            )
    # objects that do not reach the model, or hardly
    seen, trained = inputs.get("eval"), inputs.get("train")
    if seen is not None and seen.share_below(8) > 0.1:
        advice.append(
            f"{100 * seen.share_below(8):.0f} % of the objects have a short side under 8 pixels at the model's "
            "input in evaluation, and are hard to find; raise transforms.eval_size, or cut the images into tiles"
        )
    if trained is not None and trained.lost > 0.25 * max(trained.objects, 1):
        advice.append(
            f"training cuts {100 * trained.lost / trained.objects:.0f} % of the objects off its images; "
            "a lower transforms.crop keeps more"
        )
    return advice
