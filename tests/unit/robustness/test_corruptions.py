from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torch import Tensor

from detrkit.errors import UsageError
from detrkit.robustness.corruptions import COMMON, GROUPS, SEVERITIES, Corruption, find_corruptions

ALL = GROUPS["all"]


def picture(height: int = 48, width: int = 64) -> Tensor:
    """Smooth colours with an edge, from 30 to 220."""
    rows, columns = np.mgrid[:height, :width]
    channels = [125 + 60 * np.sin(rows / 9 + i) + 35 * (columns > width / 2) for i in range(3)]
    return torch.from_numpy(np.clip(channels, 0, 255).astype(np.uint8))


def change(name: str, severity: int, image: Tensor) -> float:
    return float((Corruption(name, severity)(image, 1).float() - image.float()).abs().mean())


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("size_hw", [(1, 1), (1, 7), (5, 3), (48, 64)])
def test_size_and_dtype_stay_down_to_one_pixel(name: str, size_hw: tuple[int, int]):
    for severity, channels in ((1, 3), (5, 3), (3, 1)):
        image = picture(*size_hw)[:channels]
        spoilt = Corruption(name, severity)(image, 3)
        assert spoilt.dtype == torch.uint8
        assert spoilt.shape == image.shape


@pytest.mark.parametrize("name", ALL)
def test_the_same_image_id_and_seed_give_the_same_and_pickling_changes_nothing(name: str):
    corruption, image = Corruption(name, 4, seed=2), picture()
    before = image.clone()
    first = corruption(image, 17)
    assert torch.equal(image, before)
    assert torch.equal(pickle.loads(pickle.dumps(corruption))(image, 17), first)
    assert not torch.equal(first, image)


RANDOM = ("gaussian_noise", "shot_noise", "impulse_noise", "glass_blur", "motion_blur", "snow", "fog", "elastic")


@pytest.mark.parametrize("name", RANDOM)
def test_another_image_id_or_seed_gives_another(name: str):
    image = picture()
    first = Corruption(name, 4, seed=2)(image, 17)
    assert not torch.equal(Corruption(name, 4, seed=2)(image, 18), first)
    assert not torch.equal(Corruption(name, 4, seed=3)(image, 17), first)
    Corruption(name, 4)(image, -(2**63))


@pytest.mark.parametrize("name", [name for name in ALL if name not in ("saturate", "glass_blur", "fog")])
def test_severity_five_changes_more_than_one(name: str):
    image = picture(96, 128)
    assert change(name, 5, image) > change(name, 1, image) > 0


# The published formulas, on images where they can be worked out by hand.


def flat(*colour: int, side: int = 40) -> Tensor:
    return torch.tensor(colour, dtype=torch.uint8)[:, None, None].expand(3, side, side).contiguous()


@pytest.mark.parametrize("severity", SEVERITIES)
def test_noise_has_the_published_spread(severity: int):
    image = flat(128, 128, 128, side=128)
    scale = (0.08, 0.12, 0.18, 0.26, 0.38)[severity - 1]
    noisy = Corruption("gaussian_noise", severity)(image, 5).double() / 255
    expected = np.clip(128 / 255 + scale * np.random.default_rng(0).standard_normal(10**6), 0, 1).std()
    assert float(noisy.std()) == pytest.approx(expected, rel=0.03)
    share = (0.03, 0.06, 0.09, 0.17, 0.27)[severity - 1]
    spoilt = Corruption("impulse_noise", severity)(image, 5)
    assert float((spoilt != 128).double().mean()) == pytest.approx(share, rel=0.1)
    assert set(spoilt.unique().tolist()) == {0, 128, 255}
    photons = (60, 25, 12, 5, 3)[severity - 1]
    shots = Corruption("shot_noise", severity)(flat(51, 51, 51, side=128), 5).double() / 255
    assert float(shots.mean()) == pytest.approx(0.2, rel=0.05)
    assert float(shots.var()) == pytest.approx(0.2 / photons, rel=0.12)


def test_brightness_adds_to_the_greatest_channel_and_keeps_the_colour():
    bright = Corruption("brightness", 2)(flat(100, 50, 0), 1)[:, 0, 0].tolist()
    assert bright == pytest.approx([151, 75, 0], abs=1)
    assert Corruption("brightness", 2)(flat(0, 0, 0), 1)[:, 0, 0].tolist() == pytest.approx([51, 51, 51], abs=1)


def test_contrast_pulls_every_channel_to_its_mean():
    image = flat(0, 100, 100)
    image[0, :20] = 200
    spoilt = Corruption("contrast", 3)(image, 1)
    assert spoilt[0, 0, 0] == pytest.approx(120, abs=1)
    assert spoilt[0, 39, 0] == pytest.approx(80, abs=1)
    assert spoilt[1, 0, 0] == pytest.approx(100, abs=1)


@pytest.mark.parametrize("name", ["gaussian_blur", "defocus_blur", "motion_blur", "glass_blur", "zoom_blur"])
def test_a_blur_leaves_a_flat_image_alone(name: str):
    # the papers' disk of radius 10 adds up to a little more than 1
    most = 3 if name == "defocus_blur" else 1
    for severity in SEVERITIES:
        spoilt = Corruption(name, severity)(flat(10, 120, 240), 1)
        assert int((spoilt.int() - flat(10, 120, 240).int()).abs().max()) <= most


def test_defocus_is_the_mean_over_a_disk():
    image = flat(0, 0, 0, side=41)
    image[:, 20, 20] = 255
    spread = Corruption("defocus_blur", 1)(image, 1)[0]
    assert int((spread > 0).sum()) == 29  # pixels of a disk of radius 3
    assert spread.max() == 255 // 29


def test_names_groups_and_their_mistakes():
    assert len(ALL) == 17
    assert len(COMMON) == 14
    assert find_corruptions(["blur", "fog", "blur"]) == (*GROUPS["blur"], "fog")
    assert find_corruptions(["all"]) == ALL
    with pytest.raises(UsageError, match="no corruption is called 'frog'; did you mean fog"):
        find_corruptions(["frog"])
    with pytest.raises(UsageError, match="no corruption is named"):
        find_corruptions([])
    with pytest.raises(UsageError, match="severity is 6"):
        Corruption("fog", 6)
