"""The one way from a batch of images to detections, shared by prediction, evaluation and validation.

Shapes: B images, H x W padded height and width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from detrkit.classes import ClassMap, SizeHW
from detrkit.config import Config, Precision
from detrkit.errors import UsageError
from detrkit.preprocess import normalize_images
from detrkit.types import Batch, ImageDetections, Outputs

_AUTOCAST = {"bf16": torch.bfloat16, "16": torch.float16}


class Postprocess(Protocol):
    """How a model family turns outputs into detections in pixels of the original images."""

    def __call__(
        self, outputs: Outputs, orig_sizes_hw: Sequence[SizeHW], class_map: ClassMap, /
    ) -> list[ImageDetections]:
        """Detections of each image, best first."""


def detect_batches(
    model: nn.Module,
    postprocess: Postprocess,
    batches: Iterable[Batch],
    class_map: ClassMap,
    config: Config,
    device: torch.device,
    precision: Precision = "32",
    channels_last: bool = False,
) -> Iterator[tuple[int, ImageDetections]]:
    """Image id and detections of every image, batch by batch.

    The model works in evaluation mode and each of its modules gets its own mode back at the end.
    """
    with evaluation_mode(model):
        for batch in batches:
            padding_mask = batch.padding_mask if batch.is_padded else None
            outputs = run_model(model, batch.images, padding_mask, config, device, precision, channels_last)
            detections = postprocess(outputs, batch.orig_sizes_hw, class_map)
            yield from zip(batch.image_ids, detections, strict=True)


def run_model(
    model: nn.Module,
    images: Tensor,
    padding_mask: Tensor | None,
    config: Config,
    device: torch.device,
    precision: Precision = "32",
    channels_last: bool = False,
) -> Outputs:
    """Forward without gradients; the outputs are float32 on ``device``.

    Args:
        model: In evaluation mode, on ``device``.
        images: uint8 ``[B, 3, H, W]`` RGB; moved to ``device`` and normalised there.
        padding_mask: bool ``[B, H, W]``, True = padding; None where no image is padded, which is faster.
        config: Its ``transforms`` hold the mean and standard deviation.
        device: Where the model is.
        precision: ``bf16`` and ``16`` run under autocast; weights stay float32.
        channels_last: Give the images NHWC memory layout; equal up to rounding, faster convolutions.
    """
    with torch.inference_mode(), autocast(device, precision):
        images = images.to(device, non_blocking=True)
        padding_mask = None if padding_mask is None else padding_mask.to(device, non_blocking=True)
        transforms = config.transforms
        normalized = normalize_images(images, transforms.mean, transforms.std, padding_mask)
        if channels_last:
            normalized = normalized.contiguous(memory_format=torch.channels_last)
        outputs = model(normalized, padding_mask)
        return Outputs(outputs.logits.float(), outputs.boxes_cxcywh.float())


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; after it every module has the mode it had, frozen ones too."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def autocast(device: torch.device, precision: Precision) -> contextlib.AbstractContextManager[object]:
    """The autocast context of a precision; none for ``32``.

    Raises:
        UsageError: The precision is unknown.
    """
    if precision == "32":
        return contextlib.nullcontext()
    if precision not in _AUTOCAST:
        raise UsageError(f"precision is {precision!r}, expected one of 32, {', '.join(_AUTOCAST)}")
    return torch.autocast(device.type, dtype=_AUTOCAST[precision])


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """The device by name; ``auto`` is CUDA where there is one, else the CPU.

    Raises:
        UsageError: The name is unknown, or CUDA is asked for and not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise UsageError(f'device is {device!r}, expected "auto", "cpu", "cuda" or "cuda:1"') from error
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device {resolved} was asked for, but torch finds no CUDA device; use cpu or auto")
    return resolved
