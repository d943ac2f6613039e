"""What a training begins with: the model with its starting weights, and the training images."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from detrkit.classes import ClassMap
from detrkit.config import Config
from detrkit.data.augment import augments_on_device
from detrkit.data.cache import ImageCache, needed_size
from detrkit.data.coco import CocoDataset
from detrkit.data.split import Split
from detrkit.data.transforms import train_transform
from detrkit.families.build import build_model, initialize, starting_weights
from detrkit.families.presets import PRESETS
from detrkit.families.registry import get_family
from detrkit.families.weights import LoadReport


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A model at the start of its training.

    Args:
        config: With everything resolved that depends on the weights.
        model: With its starting weights.
        class_map: Of its head.
        report: What became of the weights; None if it starts from random ones.
    """

    config: Config
    model: nn.Module
    class_map: ClassMap
    report: LoadReport | None


def prepare_model(config: Config, train: Split) -> Prepared:
    """The model that a training on a split starts from.

    Raises:
        WeightsError: The starting weights cannot be had.
    """
    config, weights = starting_weights(config)
    class_map = train.index.class_map
    if weights is not None:
        class_map = get_family(config.model.family).match_slots(class_map, weights.class_map)
    torch.manual_seed(config.train.seed)
    model = build_model(config, class_map)
    report = initialize(model, config, weights, class_map)
    return Prepared(config, model, class_map, report)


def training_dataset(config: Config, train: Split, cache: ImageCache | None, device: str) -> CocoDataset:
    """The training images as the loop gets them, for a device such as ``cpu`` or ``cuda``."""
    on_device = augments_on_device(config.transforms, device)
    return CocoDataset(
        train.index,
        train.files.images,
        train_transform(config.transforms, config.train.epochs, on_device=on_device),
        seed=config.train.seed,
        on_bad_image=config.data.on_bad_image,
        decode_target=needed_size(config.transforms),
        fast_decode=config.data.fast_decode,
        cache=cache,
    )


def scratch_warning(config: Config, images: int) -> list[str]:
    """What a person must know who trains without pretrained weights."""
    preset = PRESETS.get(config.model.preset)
    if preset is not None and preset.published is None and preset.backbone_file is None:
        return [f"{config.model.preset} starts from random weights, as it is meant to"]
    passes = config.train.epochs * images
    return [
        "WARNING: the model starts from RANDOM weights, backbone included.",
        "  DETR learns slowly from nothing: the authors trained 300 to 500 epochs on COCO's 118,000 images with "
        "an ImageNet backbone.",
        f"  This run sees {passes:,} images in all; below some millions expect an AP near 0.",
        "  To fine-tune instead: --init published (COCO weights), --init backbone (ImageNet) or --init PATH.",
    ]
