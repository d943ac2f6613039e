"""Common corruptions of images at five severities (arXiv:1903.12261), as for detectors in arXiv:1907.07484.

Parameters are those of the papers' code. Left out: frost, which takes photographs of frost, and spatter, which
takes a library for edges; so a mean over all of them is not the papers' mPC, which has frost in it.

The code of the papers (``imagecorruptions`` 1.1.2) does not work with NumPy 2 and today's scikit-image.

Shapes: H x W pixels. Functions take and return float32 ``[3, H, W]``, 0 to 1, and may leave that range.
"""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import correlate1d, gaussian_filter, map_coordinates  # type: ignore[attr-defined]
from torch import Tensor
from torch.nn import functional

from detrkit.errors import UsageError, nearest

SEVERITIES = (1, 2, 3, 4, 5)

Pixels = Any  # np.ndarray; NumPy's own types lose themselves in arithmetic
_Corrupt = Callable[[Pixels, int, np.random.Generator], Pixels]

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


@dataclasses.dataclass(frozen=True)
class Corruption:
    """A corruption at one severity: gives a spoilt image from one, always the same from the same.

    Objects stay where they are; elastic moves pixels by little against their size, and boxes are kept, as in the
    papers.

    Args:
        name: One of :data:`CORRUPTIONS`.
        severity: 1 to 5.
        seed: Other randomness.

    Raises:
        UsageError: Name or severity are unknown.
    """

    name: str
    severity: int
    seed: int = 0

    def __post_init__(self) -> None:
        check_corruption(self.name)
        if self.severity not in SEVERITIES:
            raise UsageError(f"severity is {self.severity}, expected 1 (slight) to 5 (strong)")

    def __call__(self, image: Tensor, image_id: int) -> Tensor:
        """Corrupt an image; its size and dtype stay.

        Args:
            image: uint8 ``[3, H, W]``, or ``[1, H, W]`` for gray.
            image_id: Of the data set; two images are spoilt differently, in any order and any process.
        """
        number = list(_ALL).index(self.name)
        random = np.random.default_rng([self.seed, number, self.severity, image_id % 2**64])
        pixels = image.numpy().astype(np.float32) / 255
        colored = np.repeat(pixels, 3, axis=0) if len(pixels) == 1 else pixels
        spoilt = np.clip(_ALL[self.name](colored, self.severity - 1, random), 0, 1)
        if len(pixels) == 1:
            spoilt = np.tensordot(_LUMA, spoilt, axes=1)[None]
        # cut off rather than rounded, as the papers' code does
        return torch.from_numpy((spoilt * 255).astype(np.uint8))


def check_corruption(name: str) -> None:
    """Check that there is a corruption of this name.

    Raises:
        UsageError: There is none; the nearest name is suggested.
    """
    if name not in _ALL:
        known = f"Known: {', '.join(_ALL)}; and groups: {', '.join(GROUPS)}"
        raise UsageError(f"no corruption is called {name!r}; {nearest(name, [*_ALL, *GROUPS])} {known}")


def find_corruptions(names: Sequence[str]) -> tuple[str, ...]:
    """Return names of corruptions from names of corruptions and of groups, each once, in the usual order.

    Raises:
        UsageError: A name is unknown, or there is none.
    """
    found: set[str] = set()
    for name in names:
        if name in GROUPS:
            found.update(GROUPS[name])
        else:
            check_corruption(name)
            found.add(name)
    if not found:
        raise UsageError(f"no corruption is named; expected some of {', '.join((*GROUPS, *_ALL))}")
    return tuple(name for name in _ALL if name in found)


def _gaussian_noise(x: Pixels, severity: int, random: np.random.Generator) -> Pixels:
    scale = (0.08, 0.12, 0.18, 0.26, 0.38)[severity]
    return x + scale * random.standard_normal(x.shape, dtype=np.float32)


def _shot_noise(x: Pixels, severity: int, random: np.random.Generator) -> Pixels:
    photons = (60, 25, 12, 5, 3)[severity]
    return random.poisson(x * photons).astype(np.float32) / photons


def _impulse_noise(x: Pixels, severity: int, random: np.random.Generator) -> Pixels:
    share = (0.03, 0.06, 0.09, 0.17, 0.27)[severity]
    draw = random.random(x.shape, dtype=np.float32)
    return np.where(draw < share / 2, np.float32(0), np.where(draw < share, np.float32(1), x))


def _speckle_noise(x: Pixels, severity: int, random: np.random.Generator) -> Pixels:
    scale = (0.15, 0.2, 0.35, 0.45, 0.6)[severity]
    return x + x * scale * random.standard_normal(x.shape, dtype=np.float32)


def _gaussian_blur(x: Pixels, severity: int, _random: np.random.Generator) -> Pixels:
    return _blurred(x, (1, 2, 3, 4, 6)[severity])


def _defocus_blur(x: Pixels, severity: int, _random: np.random.Generator) -> Pixels:
    radius, alias = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))[severity]
    reach = max(radius, 8)
    line = np.arange(-reach, reach + 1)
    disk = (line[:, None] ** 2 + line[None, :] ** 2 <= radius**2).astype(np.float32)
    smooth = 3 if radius <= 8 else 5
    taps = np.exp(-((np.arange(smooth) - smooth // 2) ** 2) / (2 * alias**2))
    disk /= disk.sum()
    for axis in (0, 1):
        disk = correlate1d(disk, taps / taps.sum(), axis=axis, mode="mirror")
    # smoothing at the edge of the largest disk makes it add up to 1.013; so it does in the papers' code
    padded = np.pad(x, ((0, 0), (reach, reach), (reach, reach)), mode="reflect")
    kernel = torch.from_numpy(disk)[None, None]
    return functional.conv2d(torch.from_numpy(padded)[:, None], kernel)[:, 0].numpy()


def _glass_blur(x: Pixels, severity: int, random: np.random.Generator) -> Pixels:
    # The papers' code goes from pixel to pixel, each taking the colour of a neighbour, which takes seconds an
    # image in Python. Here all pixels of a round do so at once, so that no colour travels on within the round.
    sigma, reach, rounds = ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))[severity]
    x = np.floor(_blurred(x, sigma) * 255) / 255
    height, width = x.shape[1:]
    rows, columns = np.mgrid[:height, :width]
    inside = (rows > reach) & (rows <= height - reach) & (columns > reach) & (columns <= width - reach)
    for _ in range(rounds):
        down, right = random.integers(-reach, reach, size=(2, height, width))
        from_row = np.clip(np.where(inside, rows + down, rows), 0, height - 1)
        from_column = np.clip(np.where(inside, columns + right, columns), 0, width - 1)
        x = x[:, from_row, from_column]
    return _blurred(x.astype(np.float32), sigma)


def _motion_blur(x: Pixels, severity: int, random: np.random.Generator) -> Pixels:
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[severity]
    return _smeared(x, radius, sigma, random.uniform(-45, 45))


def _zoom_blur(x: Pixels, severity: int, _random: np.random.Generator) -> Pixels:
    end, step = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))[severity]
    factors = np.arange(1, end, step)
    total = x.copy()
    for factor in factors:
        total += _zoomed(x, float(factor))
    return total / (len(factors) + 1)


def _snow(x: Pixels, severity: int, random: np.random.Generator) -> Pixels:
    mean, scale, zoom, least, radius, sigma, keep = (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    )[severity]
    flakes = random.normal(mean, scale, size=(1, *x.shape[1:])).astype(np.float32)
    flakes = _zoomed(flakes, zoom)
    flakes = np.clip(np.where(flakes < least, 0, flakes), 0, 1).astype(np.float32)
    flakes = _smeared(flakes, radius, sigma, random.uniform(-135, -45))
    gray = np.tensordot(_LUMA, x, axes=1)[None]
    whitened = keep * x + (1 - keep) * np.maximum(x, gray * 1.5 + 0.5)
    return whitened + flakes + flakes[:, ::-1, ::-1]


def _fog(x: Pixels, severity: int, random: np.random.Generator) -> Pixels:
    amount, decay = ((1.5, 2), (2.0, 2), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))[severity]
    height, width = x.shape[1:]
    brightest = float(x.max())
    haze = _plasma(1 << max(max(height, width) - 1, 1).bit_length(), decay, random)
    return (x + amount * haze[:height, :width]) * brightest / (brightest + amount)


def _brightness(x: Pixels, severity: int, _random: np.random.Generator) -> Pixels:
    # The value of HSV is the greatest channel; hue and saturation stay if all channels grow by the same factor.
    value = x.max(axis=0, keepdims=True)
    brighter = np.minimum(value + (0.1, 0.2, 0.3, 0.4, 0.5)[severity], 1)
    return np.where(value > 0, x / np.maximum(value, 1e-6), 1) * brighter


def _saturate(x: Pixels, severity: int, _random: np.random.Generator) -> Pixels:
    # In HSV a channel is value x (1 - saturation x something of the hue); gray has hue 0, which is red.
    factor, more = ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2))[severity]
    value = x.max(axis=0, keepdims=True)
    spread = value - x.min(axis=0, keepdims=True)
    saturation = np.where(value > 0, spread / np.maximum(value, 1e-6), 0)
    wanted = np.clip(saturation * factor + more, 0, 1)
    red = np.array([0, 1, 1], dtype=np.float32)[:, None, None]
    below = np.where(spread > 0, (value - x) / np.maximum(spread, 1e-6), red)
    return value * (1 - wanted * below)


def _contrast(x: Pixels, severity: int, _random: np.random.Generator) -> Pixels:
    means = x.mean(axis=(1, 2), keepdims=True)
    return (x - means) * (0.4, 0.3, 0.2, 0.1, 0.05)[severity] + means


def _elastic(x: Pixels, severity: int, random: np.random.Generator) -> Pixels:
    height, width = x.shape[1:]
    strength = 250 * (0.05, 0.065, 0.085, 0.1, 0.12)[severity]
    most, sigmas = 0.005 * height, (0.01 * height, 0.01 * width)
    moves = [
        strength * gaussian_filter(random.uniform(-most, most, (height, width)), sigmas, truncate=3)
        for _ in range(2)
    ]
    places = np.mgrid[:height, :width] + np.stack(moves)
    return np.stack([map_coordinates(channel, places, order=1, mode="reflect") for channel in x])


def _pixelate(x: Pixels, severity: int, _random: np.random.Generator) -> Pixels:
    share = (0.6, 0.5, 0.4, 0.3, 0.25)[severity]
    image = _picture(x)
    small = (max(int(image.width * share), 1), max(int(image.height * share), 1))
    return _pixels(image.resize(small, Image.Resampling.BOX).resize(image.size, Image.Resampling.NEAREST))


def _jpeg(x: Pixels, severity: int, _random: np.random.Generator) -> Pixels:
    content = io.BytesIO()
    _picture(x).save(content, "JPEG", quality=(25, 18, 15, 10, 7)[severity])
    return _pixels(Image.open(content))


_BY_KIND: Mapping[str, tuple[_Corrupt, ...]] = {
    "noise": (_gaussian_noise, _shot_noise, _impulse_noise),
    "blur": (_defocus_blur, _glass_blur, _motion_blur, _zoom_blur),
    "weather": (_snow, _fog, _brightness),
    "digital": (_contrast, _elastic, _pixelate, _jpeg),
    "extra": (_speckle_noise, _gaussian_blur, _saturate),
}

_ALL = {corrupt.__name__[1:]: corrupt for group in _BY_KIND.values() for corrupt in group}

CORRUPTIONS = {kind: tuple(corrupt.__name__[1:] for corrupt in group) for kind, group in _BY_KIND.items()}
"""Names by kind. Those of ``extra`` were kept aside by the papers, to be looked at while a method is made."""

COMMON = tuple(name for kind, names in CORRUPTIONS.items() if kind != "extra" for name in names)
"""Those of the benchmark, all but frost."""

GROUPS: Mapping[str, tuple[str, ...]] = {**CORRUPTIONS, "common": COMMON, "all": tuple(_ALL)}
"""Names that stand for several."""


def _blurred(x: Pixels, sigma: float) -> Pixels:
    return np.asarray(gaussian_filter(x, (0, sigma, sigma), mode="nearest", truncate=4))


def _smeared(x: Pixels, radius: int, sigma: float, angle: float) -> Pixels:
    """Average copies that lie along a line from each pixel, the nearest counting most."""
    count = 2 * radius + 1
    weights = np.exp(-(np.arange(count) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    down, right = math.sin(math.radians(angle)), math.cos(math.radians(angle))
    moves = [(-math.ceil(i * down - 0.5), -math.ceil(i * right - 0.5)) for i in range(count)]
    height, width = x.shape[1:]
    padded = np.pad(x, ((0, 0), (count, count), (count, count)), mode="edge")
    total = np.zeros_like(x)
    for (dy, dx), weight in zip(moves, weights, strict=True):
        total += np.float32(weight) * padded[:, count - dy : count - dy + height, count - dx : count - dx + width]
    return total


def _zoomed(x: Pixels, factor: float) -> Pixels:
    """Return the middle of an image, made so much larger, at the image's size."""
    height, width = x.shape[1:]
    inner = (math.ceil(height / factor), math.ceil(width / factor))
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    part = torch.from_numpy(np.ascontiguousarray(x[:, top : top + inner[0], left : left + inner[1]]))
    size = (max(round(inner[0] * factor), height), max(round(inner[1] * factor), width))
    large = functional.interpolate(part[None], size=size, mode="bilinear", align_corners=True)
    return large[0, :, :height, :width].numpy()


def _plasma(side: int, decay: float, random: np.random.Generator) -> np.ndarray:
    """Return clouds by the diamond-square method: float32 ``[side, side]``, 0 to 1; ``side`` is a power of two."""
    heights = np.zeros((side, side), dtype=np.float32)
    step, wobble = side, 100.0

    def near(total: np.ndarray) -> np.ndarray:
        return total / 4 + np.float32(wobble) * random.uniform(-wobble, wobble, total.shape).astype(np.float32)

    while step >= 2:
        half = step // 2
        corners = heights[::step, ::step]
        below = corners + np.roll(corners, -1, axis=0)
        heights[half::step, half::step] = near(below + np.roll(below, -1, axis=1))
        middles, corners = heights[half::step, half::step], heights[::step, ::step]
        for axis, part in ((0, (0, half)), (1, (half, 0))):
            around = middles + np.roll(middles, 1, axis=axis) + corners + np.roll(corners, -1, axis=1 - axis)
            heights[part[0] :: step, part[1] :: step] = near(around)
        step, wobble = half, wobble / decay
    heights -= heights.min()
    highest = heights.max()
    return heights / highest if highest > 0 else heights


def _picture(x: Pixels) -> Image.Image:
    return Image.fromarray(np.rint(x * 255).astype(np.uint8).transpose(1, 2, 0))


def _pixels(image: Image.Image) -> Pixels:
    # the cast at the end cuts off, so that 8-bit values must not come out a hair too small
    return (np.asarray(image).transpose(2, 0, 1).astype(np.float32) + 0.25) / 255
