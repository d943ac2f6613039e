"""Preprocessing of images for a model: size rule, resize, padding, normalisation. The one home of each.

Used by training, evaluation, prediction and export. The rules and numbers need no torch, which only the functions
on tensors import: a runtime without torch can read a :class:`Preprocessing` and follow it.

Shapes: B images, H x W height and width in pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from detrkit.classes import SizeHW

if TYPE_CHECKING:
    from torch import Tensor

    from detrkit.config import TransformConfig
    from detrkit.types import Batch


WASTE_LIMIT = 1.25
"""Padded pixels over real pixels, above which a batch is split."""


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Numbers of the preprocessing of evaluation and prediction, the same for every image.

    Args:
        eval_size: Short side in pixels.
        max_size: Greatest long side in pixels; None for no bound.
        mean: Subtracted, one value a channel, for pixels of 0 to 1.
        std: Divided by, one value a channel, for pixels of 0 to 1.
        keep_aspect: False: images become squares of ``eval_size``.
    """

    eval_size: int
    max_size: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    keep_aspect: bool = True

    @classmethod
    def from_config(cls, config: TransformConfig) -> Preprocessing:
        """Take the numbers out of a config."""
        return cls(config.eval_size, config.max_size, config.mean, config.std, config.keep_aspect)

    def resized_size_hw(self, size_hw: SizeHW) -> SizeHW:
        """Return the size that an image is resized to."""
        return resized_size_hw(size_hw, self.eval_size, self.max_size, self.keep_aspect)

    def resize(self, image: Tensor) -> Tensor:
        """Resize an image, uint8 ``[3, H, W]``."""
        own_hw = image_size_hw(image)
        size_hw = self.resized_size_hw(own_hw)
        return image if size_hw == own_hw else resize_image(image, size_hw)


def resized_size_hw(size_hw: SizeHW, short: int, longest: int | None = None, keep_aspect: bool = True) -> SizeHW:
    """Return a size with its short side at ``short``, unless the long side would then exceed ``longest``.

    The rounding is that of transformers' ``get_size_with_aspect_ratio``. The published code differs where
    ``longest`` decides: it computes the long side from the rounded short one, and so may exceed ``longest``.

    Args:
        size_hw: Pixels.
        short: Wanted short side in pixels.
        longest: Greatest long side in pixels; None for no bound.
        keep_aspect: False: a square of ``short``.
    """
    if not keep_aspect:
        return short, short
    height, width = size_hw
    exact_short: float = short
    if longest is not None:
        least, greatest = float(min(size_hw)), float(max(size_hw))
        if greatest / least * short > longest:
            exact_short = longest * least / greatest
            short = round(exact_short)
    if min(size_hw) == short:
        return height, width
    # A panorama of 1 x 5000 pixels would otherwise come out 0 pixels high.
    if width < height:
        return max(1, int(exact_short * height / width)), max(1, short)
    return max(1, short), max(1, int(exact_short * width / height))


def group_by_size(
    sizes_hw: Sequence[SizeHW], batch_size: int, waste_limit: float = WASTE_LIMIT
) -> list[list[int]]:
    """Group positions of similar sizes in batches of at most ``batch_size``, so that little is padded.

    Args:
        sizes_hw: Size of each image.
        batch_size: Images of a batch.
        waste_limit: Padded over real pixels of a batch, at most; 1 for images of one size only.
    """
    groups: list[list[int]] = []
    for position in sorted(range(len(sizes_hw)), key=lambda i: sizes_hw[i]):
        if groups and len(groups[-1]) < batch_size:
            sizes = [sizes_hw[i] for i in (*groups[-1], position)]
            padded = max(size[0] for size in sizes) * max(size[1] for size in sizes) * len(sizes)
            if padded <= waste_limit * sum(height * width for height, width in sizes):
                groups[-1].append(position)
                continue
        groups.append([position])
    return groups


def image_size_hw(image: Tensor) -> SizeHW:
    """Return height and width of an image ``[..., H, W]``."""
    return int(image.shape[-2]), int(image.shape[-1])


def resize_image(image: Tensor, size_hw: SizeHW) -> Tensor:
    """Resize uint8 ``[3, H, W]`` bilinearly with antialiasing; the memory of the result lies pixel by pixel.

    The values do not depend on how memory lies, but torch is four times faster from pixel by pixel.
    """
    from torchvision.transforms.v2 import functional as tv_functional

    if image.is_meta:  # only the size is asked for
        return image.new_empty((image.shape[0], *size_hw))
    by_pixel = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    resized: Tensor = tv_functional.resize(by_pixel, list(size_hw), antialias=True)
    return resized


def pad_images(images: Sequence[Tensor], out: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """Stack images of several sizes, padded with 0 at the bottom and on the right.

    Args:
        images: uint8 ``[3, h, w]`` each.
        out: Tensors to write into and return, of the shapes below; made if not given.

    Returns:
        uint8 ``[B, 3, H, W]`` in the ``channels_last`` memory format, and the padding mask ``[B, H, W]``, True =
        padding.
    """
    import torch

    height, width = (max(image.shape[axis] for image in images) for axis in (-2, -1))
    if out is None:
        # The images' own memory order makes this copy 20 times faster than to the other one.
        stacked = torch.empty((len(images), height, width, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
        out = stacked, torch.empty((len(images), height, width), dtype=torch.bool)
    stacked, padding_mask = out
    for row, image in enumerate(images):
        rows, columns = image.shape[-2:]
        stacked[row, :, :rows, :columns] = image.as_subclass(torch.Tensor)
        padding_mask[row, :rows, :columns] = False
        for bottom_or_right in ((slice(rows, None), slice(None)), (slice(rows), slice(columns, None))):
            stacked[(row, slice(None), *bottom_or_right)] = 0
            padding_mask[(row, *bottom_or_right)] = True
    return stacked, padding_mask


def model_inputs(batch: Batch, config: TransformConfig | Preprocessing) -> tuple[Tensor, Tensor | None]:
    """Return what a model is given of a batch: normalised images, channels last, and the padding mask.

    Args:
        batch: On the model's device.
        config: Mean and deviation of the pixels.

    Returns:
        float32 ``[B, 3, H, W]``; bool ``[B, H, W]``, or None where nothing is padded, which is faster.
    """
    import torch

    padding_mask = batch.padding_mask if batch.is_padded else None
    images = normalize_images(batch.images, config.mean, config.std, padding_mask)
    return images.contiguous(memory_format=torch.channels_last), padding_mask


def normalize_images(
    images: Tensor, mean: Sequence[float], std: Sequence[float], padding_mask: Tensor | None = None
) -> Tensor:
    """Scale to 0 to 1, subtract ``mean``, divide by ``std``; exactly 0 where padded.

    Args:
        images: uint8 ``[B, 3, H, W]`` on any device; never changed.
        mean: One value a channel, for pixels of 0 to 1.
        std: One value a channel, for pixels of 0 to 1.
        padding_mask: bool ``[B, H, W]``, True = padding; None when nothing is padded.

    Returns:
        float32 ``[B, 3, H, W]`` in the memory format of ``images``.
    """
    import torch

    # Pageable and non-blocking: a plain copy to a GPU would wait for all its queued work.
    factor = (1 / (255 * torch.tensor(std))).to(images.device, non_blocking=True)
    shift = (-torch.tensor(mean) / torch.tensor(std)).to(images.device, non_blocking=True)
    batch, channels, height, width = images.shape
    rows = images.permute(0, 2, 3, 1)
    if rows.is_contiguous():  # whole rows of pixels at once: a loop over three channels would not vectorise
        flat = rows.view(batch * height, width * channels).to(torch.float32, copy=True)
        flat.mul_(factor.repeat(width)).add_(shift.repeat(width))
        normalized = flat.view(batch, height, width, channels).permute(0, 3, 1, 2)
    else:
        normalized = images.to(torch.float32, copy=True)
        normalized.mul_(factor.view(-1, 1, 1)).add_(shift.view(-1, 1, 1))
    if padding_mask is not None:
        normalized.masked_fill_(padding_mask[:, None], 0.0)
    return normalized
