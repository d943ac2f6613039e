"""What holds of every recipe and every option of augmentation."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import tv_tensors

from detrkit.config import RECIPES, TransformConfig
from detrkit.curation.synthetic import write_synthetic
from detrkit.data.coco import CocoDataset, Sample, SampleKey
from detrkit.data.compose import ComposedTransform
from detrkit.data.read import read_coco
from detrkit.data.transforms import train_transform
from detrkit.masks import LazyMasks
from detrkit.types import Target

from .scenes import (
    OPTION_CONFIGS,
    RECIPE_CONFIGS,
    SIZES,
    SMALL,
    Scenes,
    assert_painted,
    assert_sound,
    painted_scene,
    random_scene,
)

CONFIGS = {**{f"recipe {name}": config for name, config in RECIPE_CONFIGS.items()}, **OPTION_CONFIGS}
COLOURLESS = {
    name: config.model_copy(update={"photometric": 0.0, "channel_shuffle": 0.0, "mixup": 0.0})
    for name, config in CONFIGS.items()
    if name not in ("photometric", "mixup")
}


def augment(config: TransformConfig, scenes: Scenes, row: int, seed: int) -> Sample:
    """What the data set does with a row."""
    transform = train_transform(config)
    torch.default_generator.manual_seed(seed)  # without looking for GPUs
    if isinstance(transform, ComposedTransform):
        return transform.compose(scenes, SampleKey(0, row), scenes.read_sample(row))
    return transform(*scenes.read_sample(row))  # type: ignore[arg-type]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_targets_stay_sound_whatever_the_image(config: TransformConfig) -> None:
    for masks in (False, True):
        scenes = Scenes([random_scene(seed, size, masks=masks) for seed, size in enumerate(SIZES)])
        everything = [target for _, target in scenes.samples]
        for seed in range(6):
            for row in range(len(scenes)):
                image, target = augment(config, scenes, row, seed)
                assert_sound(image, target, [everything[row], *everything])
                assert ("masks" in target) == masks


@pytest.mark.parametrize("config", COLOURLESS.values(), ids=COLOURLESS)
def test_every_object_is_still_under_its_box(config: TransformConfig) -> None:
    looked = 0
    # what is cut out small and enlarged, or resized twice, has blurred borders
    reach = 4.5 if config.crop or config.iou_crop or config.mosaic or config.scale_jitter[1] > 1 else 2.6
    for masks in (False, True):
        scenes = Scenes([painted_scene(seed, size, masks=masks) for seed, size in enumerate(SIZES[:4])])
        for seed in range(40):
            image, target = augment(config, scenes, seed % 4, seed)
            looked += assert_painted(image, target, reach)
    assert looked > 60


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_samples_are_a_function_of_the_seed_and_change_nothing_given(config: TransformConfig) -> None:
    scenes = Scenes([random_scene(seed, size, masks=True) for seed, size in enumerate(SIZES[:4])])
    before = copy.deepcopy(scenes.samples)
    first = [augment(config, scenes, row, 7) for row in range(4)]
    again = [augment(config, scenes, row, 7) for row in range(4)]
    other = [augment(config, scenes, row, 8) for row in range(4)]
    assert all(_same(one, two) for one, two in zip(first, again, strict=True))
    if config.multi_scale or config.photometric:
        assert not all(_same(one, two) for one, two in zip(first, other, strict=True))
    assert all(_same(one, old) for one, old in zip(scenes.samples, before, strict=True))


def _equal(one: object, two: object) -> bool:
    if isinstance(one, LazyMasks) and isinstance(two, LazyMasks):
        return np.array_equal(one.pixels(), two.pixels())
    return torch.equal(one, two) if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor) else one == two


def _same(one: Sample, two: Sample) -> bool:
    return (
        torch.equal(one[0], two[0])
        and one[1].keys() == two[1].keys()
        and all(
            _equal(one[1][key], two[1][key])  # type: ignore[literal-required]
            for key in one[1]
        )
    )


SAME_SIZE = {
    name: config for name, config in CONFIGS.items() if not (config.iou_crop and (config.mosaic or config.mixup))
}


@pytest.mark.parametrize("config", SAME_SIZE.values(), ids=SAME_SIZE)
def test_the_size_of_a_sample_can_be_known_without_its_pixels(config: TransformConfig) -> None:
    """Batches of like shapes are made from that, on an image of torch's meta device."""
    scenes = Scenes([random_scene(seed, size) for seed, size in enumerate(SIZES)])
    transform = train_transform(config)
    for row, (image, target) in enumerate(scenes.samples):
        for seed in range(5):
            torch.default_generator.manual_seed(seed)
            blank = torch.empty(image.shape, dtype=torch.uint8, device="meta")
            guessed, _ = transform(tv_tensors.Image(blank), target)
            assert guessed.shape == augment(config, scenes, row, seed)[0].shape


def test_the_default_draws_and_gives_what_the_plain_composition_of_torchvision_does() -> None:
    """The published recipe, written down with torchvision's own pieces; its samples must never change."""
    from torchvision.transforms import v2

    config = TransformConfig(**SMALL)
    for seed in range(30):
        image, target = painted_scene(seed % 5, SIZES[seed % 4])
        torch.manual_seed(seed)
        found_image, found = train_transform(config)(tv_tensors.Image(image), target)
        after = torch.rand(())
        torch.manual_seed(seed)
        flipped = v2.RandomHorizontalFlip(0.5)(image, target)
        branch = int(torch.multinomial(torch.tensor([0.5, 0.5]), 1))
        (expected_image, expected) = flipped
        if branch:
            expected_image, expected = _resize(expected_image, expected, (110, 160), None)
            height, width = expected_image.shape[-2:]
            sides = [int(torch.randint(min(70, side), min(110, side) + 1, ())) for side in (height, width)]
            top = int(torch.randint(height - sides[0] + 1, ()))
            left = int(torch.randint(width - sides[1] + 1, ()))
            whole = expected["boxes"]
            expected_image = v2.functional.crop(expected_image, top, left, *sides)
            boxes = v2.functional.crop(whole, top, left, *sides)
            keep = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)
            share = (boxes[:, 2:] - boxes[:, :2]).prod(1) / (whole[:, 2:] - whole[:, :2]).prod(1)
            expected = {
                **expected,
                "boxes": tv_tensors.wrap(boxes[keep], like=boxes),
                "labels": expected["labels"][keep],
                "area": (expected["area"] * share)[keep],
            }
        expected_image, expected = _resize(expected_image, expected, (96, 128), 220)
        assert torch.equal(after, torch.rand(()))
        assert torch.equal(found_image, expected_image)
        assert torch.equal(found["boxes"], expected["boxes"])
        assert found["boxes"].canvas_size == expected["boxes"].canvas_size
        assert torch.equal(found["labels"], expected["labels"])
        assert torch.allclose(found["area"], expected["area"])


def _resize(
    image: torch.Tensor, target: Target, lengths: tuple[int, ...], longest: int | None
) -> tuple[torch.Tensor, Target]:
    from torchvision.transforms.v2 import functional

    from detrkit.preprocess import resized_size_hw

    short = lengths[int(torch.randint(len(lengths), ()))]
    size = resized_size_hw((image.shape[-2], image.shape[-1]), short, longest)
    resized = {**target, "boxes": functional.resize(target["boxes"], list(size))}
    return functional.resize(image, list(size), antialias=True), resized  # type: ignore[return-value]


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("synthetic"), 10, 0, size=64)


def data_set(root: Path, config: TransformConfig, epochs: int | None = None) -> CocoDataset:
    folder = root / "train2017"
    index, _ = read_coco(root / "annotations" / "instances_train2017.json", folder)
    return CocoDataset(index, folder, train_transform(config, epochs), seed=5)


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_a_key_gives_the_same_sample_in_any_random_state_and_another_in_another_epoch(
    synthetic: Path, recipe: str
) -> None:
    dataset = data_set(synthetic, RECIPE_CONFIGS[recipe])
    samples: dict[int, list[Sample]] = {0: [], 1: []}
    for attempt in range(2):
        torch.manual_seed(attempt)
        np.random.seed(attempt)
        state = torch.get_rng_state()
        for epoch, found in samples.items():
            for row in range(5):
                sample = dataset[SampleKey(epoch, row)]
                assert sample is not None
                found.append(sample)
        assert torch.equal(torch.get_rng_state(), state)  # and the state is left as it was
    for found in samples.values():
        assert all(_same(one, two) for one, two in zip(found[:5], found[5:], strict=True))
    assert not all(_same(one, two) for one, two in zip(samples[0], samples[1], strict=True))


def test_composition_and_zoom_out_end_when_told(synthetic: Path) -> None:
    composing = {"mosaic": 1.0, "mixup": 1.0, "zoom_out": 1.0, "flip": 0.0, "multi_scale": False, **SMALL}
    dataset = data_set(synthetic, TransformConfig(**composing, close_after=0.75), epochs=4)
    plain = data_set(synthetic, TransformConfig(recipe="resize", flip=0.0, **SMALL))
    for epoch in range(4):
        composed, alone = dataset[SampleKey(epoch, 1)], plain[SampleKey(epoch, 1)]
        assert composed is not None
        assert alone is not None
        assert _same(composed, alone) == (epoch >= 3)
