from __future__ import annotations

import pytest
import torch

from detrkit.config import TransformConfig
from detrkit.data.compose import load_composed, mixup, mosaic
from detrkit.errors import ImageError

from .scenes import Scenes, color_of, make_target, painted_scene, random_scene

MOSAIC = TransformConfig(mosaic=1.0)
MIXUP = TransformConfig(mixup=1.0)


def test_a_mosaic_shows_all_four_images_each_in_any_quarter() -> None:
    flat = [torch.full((100, 150, 3), level, dtype=torch.uint8).permute(2, 0, 1) for level in (1, 2, 3, 4)]
    samples = [(image, make_target(torch.zeros(0, 4), (100, 150))) for image in flat]
    places, centers = set(), set()
    for seed in range(60):
        torch.manual_seed(seed)
        image, _ = mosaic(samples)
        assert image.shape == (3, 100, 150)
        corners = image[0, [0, 0, -1, -1], [0, -1, 0, -1]].tolist()
        assert sorted(corners) == [1, 2, 3, 4]
        places |= set(enumerate(corners))
        row, column = (int((image[0].select(axis, 0) == corners[0]).sum()) for axis in (1, 0))
        assert (image[0, :row, :column] == corners[0]).all()
        assert (image[0, row:, column:] == corners[3]).all()
        centers.add((row, column))
    assert len(places) == 16
    assert {30 <= row <= 70 and 45 <= column <= 105 for row, column in centers} == {True}
    assert len(centers) > 40


def test_mixup_keeps_the_objects_of_both_and_blends_their_pixels() -> None:
    first, second = painted_scene(3), painted_scene(1)
    torch.manual_seed(0)
    image, target = mixup(first, second)
    assert target["labels"].tolist() == [*first[1]["labels"].tolist(), *second[1]["labels"].tolist()]
    assert target["image_id"] == first[1]["image_id"]
    label, (x1, y1, x2, y2) = int(first[1]["labels"][0]), first[1]["boxes"][0].int().tolist()
    shown = image[:, y1:y2, x1:x2].float().flatten(1).amin(1)  # where the second image is black
    assert (shown >= color_of(label) * 0.39).all()
    assert (shown <= color_of(label) * 0.61 + 1).all()


@pytest.mark.parametrize("config", [MOSAIC, MIXUP])
def test_an_unreadable_partner_is_replaced_by_the_next_draw(config: TransformConfig) -> None:
    samples = [painted_scene(seed) for seed in range(4)]
    for seed in range(10):
        scenes = Scenes(samples, broken={1, 2})
        torch.manual_seed(seed)
        image, target = load_composed(scenes, 0, samples[0], config)
        assert {label // 4 for label in target["labels"].tolist()} <= {0, 3}
        assert not torch.equal(image, samples[0][0])
        assert scenes.read[-1] == 3


def test_an_unreadable_partner_stops_training_that_is_to_stop() -> None:
    samples = [painted_scene(seed) for seed in range(2)]
    with pytest.raises(ImageError, match="is broken"):
        load_composed(Scenes(samples, broken={0, 1}, on_bad_image="error"), 0, samples[0], MIXUP)


def test_an_image_too_small_to_share_is_left_alone() -> None:
    both = TransformConfig(mosaic=1.0, mixup=1.0)
    for alone in (random_scene(5, (31, 200)), painted_scene(1)):
        scenes = Scenes([alone])
        assert load_composed(scenes, 0, alone, both) == alone
    assert load_composed(Scenes([alone] * 4), 0, random_scene(5, (31, 200)), both)[0].shape == (3, 31, 200)
