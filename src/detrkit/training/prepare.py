"""The training images as the loop gets them, and what a training from random weights is told."""

from __future__ import annotations

from detrkit.config import Config
from detrkit.data.augment import augments_on_device
from detrkit.data.cache import ImageCache
from detrkit.data.coco import CocoDataset
from detrkit.data.split import Split
from detrkit.data.transforms import needed_size, train_transform
from detrkit.families.presets import PRESETS


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
