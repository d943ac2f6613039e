"""The contracts between the rooms of the house: what passes from data to model to evaluation.

Shapes: B images, H x W padded height and width in pixels, N objects of a whole batch, L decoder layers,
Q queries, S label slots of the head (without no-object), K detections of one image.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NotRequired, TypedDict

import numpy as np
import torch
from torch import Tensor
from torchvision.tv_tensors import BoundingBoxes, Mask

from detrkit.errors import DataError

SizeHW = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class ClassMap:
    """The classes of a data set: contiguous ids inside, the data set's own ids and names at the edges.

    ``class_id`` is the position in ``names`` (0 to C-1). ``category_ids[class_id]`` is the id that the
    data set's annotation file uses. ``slots[class_id]`` is the row of the class head that scores the class:
    the same as ``class_id``, except for heads like the published DETR's, whose 91 rows are raw COCO ids.

    Args:
        names: One name per class, as the data set spells it.
        category_ids: One id per class; any distinct integers, gaps and zero allowed.
        slots: One row of the head per class; ``range(C)`` when not given.
        num_slots: Rows of the head without no-object; ``C`` when not given.

    Raises:
        DataError: The lengths differ, or ids or slots repeat.
    """

    names: tuple[str, ...]
    category_ids: tuple[int, ...]
    slots: tuple[int, ...] = ()
    num_slots: int = 0

    def __post_init__(self) -> None:
        count = len(self.names)
        if len(self.category_ids) != count:
            raise DataError(f"a class map has {count} names but {len(self.category_ids)} category ids")
        if len(set(self.category_ids)) != count:
            raise DataError(f"category ids repeat: {sorted(self.category_ids)}; every class needs its own")
        if not self.slots:
            object.__setattr__(self, "slots", tuple(range(count)))
        if not self.num_slots:
            object.__setattr__(self, "num_slots", max(self.slots, default=-1) + 1)
        if len(self.slots) != count or len(set(self.slots)) != count:
            raise DataError(f"a class map of {count} classes needs {count} distinct slots, got {self.slots}")
        if any(not 0 <= slot < self.num_slots for slot in self.slots):
            raise DataError(f"slots must lie in 0 to {self.num_slots - 1}, got {self.slots}")

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def from_categories(cls, categories: Sequence[Mapping[str, Any]]) -> ClassMap:
        """Class map of a COCO ``categories`` list, ordered by category id."""
        ordered = sorted(categories, key=lambda category: int(category["id"]))
        return cls(
            names=tuple(str(category["name"]) for category in ordered),
            category_ids=tuple(int(category["id"]) for category in ordered),
        )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ClassMap:
        """The inverse of :meth:`to_dict`."""
        return cls(
            names=tuple(data["names"]),
            category_ids=tuple(data["category_ids"]),
            slots=tuple(data["slots"]),
            num_slots=int(data["num_slots"]),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, ready for JSON."""
        return {
            "names": list(self.names),
            "category_ids": list(self.category_ids),
            "slots": list(self.slots),
            "num_slots": self.num_slots,
        }

    def class_id_by_category(self) -> dict[int, int]:
        """Map from the data set's category id to the contiguous class id."""
        return {category_id: class_id for class_id, category_id in enumerate(self.category_ids)}

    def class_id_by_name(self) -> dict[str, int]:
        """Map from class name to contiguous class id (the first, where a name repeats)."""
        return {name: class_id for class_id, name in reversed(list(enumerate(self.names)))}


class Target(TypedDict):
    """The objects of one image, as torchvision's v2 transforms expect them.

    boxes: ``BoundingBoxes`` XYXY in pixels of the image it comes with, float32 ``[n, 4]``.
    labels: contiguous class ids, int64 ``[n]``. area: pixels of the original image, float32 ``[n]``.
    iscrowd: bool ``[n]``. image_id: the data set's own id. orig_size_hw: the file's size, EXIF applied.
    masks: bool ``[n, H, W]``, pixels of the image that belong to each object; where the data set has any.
    """

    boxes: BoundingBoxes
    labels: Tensor
    area: Tensor
    iscrowd: Tensor
    image_id: int
    orig_size_hw: SizeHW
    masks: NotRequired[Mask]


@dataclasses.dataclass(frozen=True)
class GroundTruth:
    """Every object of a batch, image after image, as the matcher and the losses want them.

    Args:
        labels: Contiguous class ids, int64 ``[N]``; crowd regions are left out.
        boxes_cxcywh: ``[N, 4]`` float32, 0 to 1 relative to each image without its padding.
        counts: Objects of each image, on the host; sums to N.
    """

    labels: Tensor
    boxes_cxcywh: Tensor
    counts: tuple[int, ...]

    def to(self, device: torch.device, non_blocking: bool = False) -> GroundTruth:
        """The same objects on another device."""
        return GroundTruth(
            self.labels.to(device, non_blocking=non_blocking),
            self.boxes_cxcywh.to(device, non_blocking=non_blocking),
            self.counts,
        )


@dataclasses.dataclass(frozen=True)
class Batch:
    """Images of several sizes in one tensor, padded at the bottom and on the right.

    Args:
        images: uint8 ``[B, 3, H, W]`` RGB, 0 where padded; normalised on the device, not here.
        padding_mask: bool ``[B, H, W]``, True = padding.
        truth: All objects of the batch, packed.
        targets: The same objects image by image; these stay on the host.
        sizes_hw: Each image's size before padding, on the host.
    """

    images: Tensor
    padding_mask: Tensor
    truth: GroundTruth
    targets: tuple[Target, ...]
    sizes_hw: tuple[SizeHW, ...]

    @property
    def is_padded(self) -> bool:
        """Whether any image is smaller than the tensor; known on the host, so it costs no synchronisation."""
        height, width = self.images.shape[-2:]
        return any(size != (height, width) for size in self.sizes_hw)

    @property
    def image_ids(self) -> tuple[int, ...]:
        """The data set's id of each image."""
        return tuple(target["image_id"] for target in self.targets)

    @property
    def orig_sizes_hw(self) -> tuple[SizeHW, ...]:
        """Each image file's own size, in which detections are reported."""
        return tuple(target["orig_size_hw"] for target in self.targets)

    def to(self, device: torch.device, non_blocking: bool = False) -> Batch:
        """The same batch with images, mask and packed truth on another device."""
        return dataclasses.replace(
            self,
            images=self.images.to(device, non_blocking=non_blocking),
            padding_mask=self.padding_mask.to(device, non_blocking=non_blocking),
            truth=self.truth.to(device, non_blocking=non_blocking),
        )

    def split(self, size: int) -> tuple[Batch, ...]:
        """The same images in batches of at most ``size``, each padded no further than it needs; all are views."""
        count = len(self.sizes_hw)
        if size >= count:
            return (self,)
        ends = list(itertools.accumulate(self.truth.counts, initial=0))
        parts = []
        for start in range(0, count, size):
            images = slice(start, min(start + size, count))
            objects = slice(ends[images.start], ends[images.stop])
            sizes = self.sizes_hw[images]
            height, width = (max(side) for side in zip(*sizes, strict=True))
            truth = GroundTruth(
                self.truth.labels[objects], self.truth.boxes_cxcywh[objects], self.truth.counts[images]
            )
            pixels, mask = self.images[images, :, :height, :width], self.padding_mask[images, :height, :width]
            parts.append(Batch(pixels, mask, truth, self.targets[images], sizes))
        return tuple(parts)

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory, called by torch's loader when pinning is on."""
        truth = GroundTruth(
            self.truth.labels.pin_memory(), self.truth.boxes_cxcywh.pin_memory(), self.truth.counts
        )
        return dataclasses.replace(
            self,
            images=self.images.pin_memory(),
            padding_mask=self.padding_mask.pin_memory(),
            truth=truth,
        )


class DenseOutputs(NamedTuple):
    """What the heads say of every image token of the encoder; in training only. M tokens.

    logits: ``[B, M, S + 1]``. boxes_cxcywh: ``[B, M, 4]``, 0 to 1. points: centres of the tokens (x, y), 0 to 1
    of the image without padding, ``[B or 1, M, 2]``. valid: False on padding, bool ``[B or 1, M]``.
    """

    logits: Tensor
    boxes_cxcywh: Tensor
    points: Tensor
    valid: Tensor


class GroupOutputs(NamedTuple):
    """What further sets of queries say, each to be matched by itself; in training only. G sets.

    logits: ``[L, B, G, Q, S + 1]``. boxes_cxcywh: ``[L, B, G, Q, 4]``, 0 to 1.
    """

    logits: Tensor
    boxes_cxcywh: Tensor


class DenoisedOutputs(NamedTuple):
    """What queries say that were made from noised objects; in training only. K queries.

    logits: ``[L, B, K, S + 1]``. boxes_cxcywh: ``[L, B, K, 4]``, 0 to 1. objects: int64 ``[B, K]``, the place in
    the packed ground truth of the object to give back; NO_OBJECT where nothing is to be found, NO_QUERY where an
    image has fewer objects than another. copies: how often each object was noised.
    """

    logits: Tensor
    boxes_cxcywh: Tensor
    objects: Tensor
    copies: int


NO_OBJECT, NO_QUERY = -1, -2


class Outputs(NamedTuple):
    """What a detector's forward returns, stacked over decoder layers (last = final).

    logits: ``[L, B, Q, S + 1]``, the last column is no-object. boxes_cxcywh: ``[L, B, Q, 4]``, 0 to 1.
    dense, groups, denoised: of training aids, in training only. proposes: the first layer is that of tokens which
    became queries (two-stage, in training only).
    """

    logits: Tensor
    boxes_cxcywh: Tensor
    dense: DenseOutputs | None = None
    groups: GroupOutputs | None = None
    denoised: DenoisedOutputs | None = None
    proposes: bool = False


Objects = tuple[Tensor, Tensor, tuple[int, ...]]
"""What a model that trains with noised objects is told of a batch: logit columns, boxes and counts."""


class ImageDetections(NamedTuple):
    """Detections of one image, best first, in pixels of the original file.

    boxes_xyxy: float32 ``[K, 4]``. scores: float32 ``[K]``. class_ids: int64 ``[K]``, contiguous.
    """

    boxes_xyxy: np.ndarray
    scores: np.ndarray
    class_ids: np.ndarray


@dataclasses.dataclass(frozen=True)
class Percentiles:
    """How long something takes, in milliseconds: half of the runs take at most ``p50``, and so on."""

    p50: float
    p90: float
    p95: float
    p99: float
    min: float
    mean: float

    @classmethod
    def of(cls, milliseconds: Sequence[float] | np.ndarray) -> Percentiles:
        """Those of some runs; between two runs they are interpolated.

        Raises:
            DataError: There is no run.
        """
        values = np.asarray(milliseconds, dtype=np.float64)
        if values.size == 0:
            raise DataError("there are no times to take percentiles of; measure at least one run")
        p50, p90, p95, p99 = np.percentile(values, (50, 90, 95, 99)).tolist()
        return cls(p50, p90, p95, p99, float(values.min()), float(values.mean()))


@dataclasses.dataclass(frozen=True)
class Latency:
    """How long a detector takes from pixels in memory to detections, by stage.

    Times are of a whole batch, which is what each of its images waits for. The percentiles of the stages do not
    add up to those of the total, since not all stages are slow in the same run.

    Args:
        preprocess: From uint8 images to the network's input, on the device.
        model: The network.
        postprocess: From its outputs to detections in pixels, on the host.
        total: All three.
        batch_size: Images at once.
        images: Different images that were used.
        runs: Timed, after the warm-up.
        warm_up: Runs before, which do not count.
        device: As people call it.
        threads: That torch may use on the CPU for one operation.
        decode: Reading and decoding an image file, each; not in ``total``. None where no files were read.
    """

    preprocess: Percentiles
    model: Percentiles
    postprocess: Percentiles
    total: Percentiles
    batch_size: int
    images: int
    runs: int
    warm_up: int
    device: str
    threads: int
    decode: Percentiles | None = None

    @property
    def images_per_s(self) -> float:
        """Images a second, one batch after the other."""
        return 1000 * self.batch_size / self.total.mean

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON; times in milliseconds."""
        stages = ("preprocess", "model", "postprocess", "total")
        facts = ("batch_size", "images", "runs", "warm_up", "device", "threads")
        return {
            **{f"{name}_ms": dataclasses.asdict(getattr(self, name)) for name in stages},
            "decode_ms": None if self.decode is None else dataclasses.asdict(self.decode),
            "images_per_s": self.images_per_s,
            **{name: getattr(self, name) for name in facts},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Latency:
        """The inverse of :meth:`to_dict`."""
        stages = ("preprocess", "model", "postprocess", "total")
        decode = data["decode_ms"]
        fields: dict[str, Any] = {name: Percentiles(**data[f"{name}_ms"]) for name in stages}
        fields |= {name: data[name] for name in ("batch_size", "images", "runs", "warm_up", "device", "threads")}
        return cls(**fields, decode=None if decode is None else Percentiles(**decode))
