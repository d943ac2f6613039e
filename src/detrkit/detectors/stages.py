"""Stages of a detector, the one interface behind which every model runs, and those of detrkit's own models.

Shapes: B images, H x W padded height and width.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from detrkit.classes import ClassMap, SizeHW
from detrkit.config import MasksConfig, Precision
from detrkit.detections import MaskedDetections
from detrkit.errors import UsageError
from detrkit.families.family import BuiltModel
from detrkit.masks import PanopticSegments
from detrkit.preprocess import Preprocessing, image_size_hw, model_inputs, normalize_images, pad_images
from detrkit.types import Batch, ImageDetections, Outputs

_AUTOCAST = {"bf16": torch.bfloat16, "16": torch.float16}

Inputs = tuple[Tensor, Tensor | None]
"""Normalised images ``[B, 3, H, W]`` and the padding mask ``[B, H, W]``, None where nothing is padded."""


class Stages(Protocol):
    """A detector in its three stages, so that each can be timed, on any images.

    ``network`` is the module that ``forward`` runs, for its parameters and its arithmetic. ``pads`` is True if
    images of several sizes may share a batch; False where the padding of a batch changes what is found.
    """

    @property
    def network(self) -> nn.Module:
        """The module that ``forward`` runs."""

    @property
    def device(self) -> torch.device:
        """Device of the network."""

    @property
    def pads(self) -> bool:
        """True if images of several sizes may share a batch."""

    def resize(self, image: Tensor) -> Tensor:
        """Do the part of preprocessing that is done image by image, uint8 ``[3, H, W]`` RGB; in any thread."""

    def preprocess(self, images: Sequence[Tensor]) -> Any:
        """Make the input of ``forward``, on the device, of images that :meth:`resize` gave."""

    def forward(self, inputs: Any) -> Any:
        """Run the network, without gradients."""

    def postprocess(self, outputs: Any, orig_sizes_hw: Sequence[SizeHW]) -> list[ImageDetections]:
        """Return detections of each image in pixels of its file, best first, without a score threshold."""


Postprocess = Callable[[Outputs, Sequence[SizeHW], ClassMap], list[ImageDetections]]
"""Postprocessing of a model family: from outputs to detections of each image, best first, in its own pixels."""


@dataclasses.dataclass(frozen=True)
class ModelStages:
    """Stages of detrkit's own models.

    Args:
        network: ``network(images, padding_mask) -> Outputs``, on ``device``; in evaluation mode at work only.
        class_map: Classes that it was trained on.
        preprocessing: Sizes, mean and deviation.
        family_postprocess: Postprocessing of the model's family.
        device: Device of the network.
        precision: ``bf16`` and ``16`` run under autocast; weights and outputs stay float32.
    """

    network: nn.Module
    class_map: ClassMap
    preprocessing: Preprocessing
    family_postprocess: Postprocess
    device: torch.device
    precision: Precision = "32"
    pads: bool = True

    def resize(self, image: Tensor) -> Tensor:
        """Resize an image by the size rule."""
        return self.preprocessing.resize(image)

    def preprocess(self, images: Sequence[Tensor]) -> Inputs:
        """Pad and normalise images."""
        stacked, padding_mask = pad_images(images)
        is_padded = len({image_size_hw(image) for image in images}) > 1
        mask = padding_mask.to(self.device, non_blocking=True) if is_padded else None
        stacked = stacked.to(self.device, non_blocking=True)
        return normalize_images(stacked, self.preprocessing.mean, self.preprocessing.std, mask), mask

    def preprocess_batch(self, batch: Batch) -> Inputs:
        """Normalise a batch of the loader, whose images are resized and padded."""
        return model_inputs(batch.to(self.device, non_blocking=True), self.preprocessing)

    def forward(self, inputs: Inputs) -> Outputs:
        """Run the network; its modules get their own mode back. The outputs are float32."""
        with evaluation_mode(self.network), torch.inference_mode(), autocast(self.device, self.precision):
            outputs = self.network(*inputs)
            return Outputs(outputs.logits.float(), outputs.boxes_cxcywh.float(), masks=outputs.masks)

    def postprocess(self, outputs: Outputs, orig_sizes_hw: Sequence[SizeHW]) -> list[ImageDetections]:
        """Return detections as the family reads them out of the outputs."""
        return self.family_postprocess(outputs, orig_sizes_hw, self.class_map)


def model_stages(built: BuiltModel, device: torch.device, precision: Precision = "32") -> ModelStages:
    """Return the stages of a built model, whose network is moved to ``device``."""
    return ModelStages(
        built.model.to(device),
        built.class_map,
        Preprocessing.from_config(built.config.transforms),
        built.family.postprocess,
        device,
        precision,
    )


def merge_masks(found: MaskedDetections, how: MasksConfig, stuff: Collection[int]) -> PanopticSegments:
    """Merge all detections of an image into a panoptic picture."""
    return found.panoptic(stuff, score=how.panoptic_score, min_pixels=how.min_pixels, union=how.stuff == "union")


def runs_alone(device: torch.device) -> bool:
    """Return True where images of a model with masks run one by one, so that their pictures are always the same.

    The order of sums goes with the shape of a batch, and a last bit decides to whom a pixel at the edge of two
    masks belongs. On a CPU nothing is lost, since a batch gains nothing there.
    """
    return device.type == "cpu"


def prepare(stages: Stages, images: Sequence[Tensor]) -> Any:
    """Make the input of ``forward`` of uint8 images ``[3, H, W]`` RGB of any sizes."""
    return stages.preprocess([stages.resize(image) for image in images])


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Set evaluation mode inside; after it every module has the mode it had, frozen ones too."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def autocast(device: torch.device, precision: Precision) -> contextlib.AbstractContextManager[object]:
    """Return the autocast context of a precision; none for ``32``.

    Raises:
        UsageError: The precision is unknown.
    """
    if precision == "32":
        return contextlib.nullcontext()
    if precision not in _AUTOCAST:
        raise UsageError(f"precision is {precision!r}, expected one of 32, {', '.join(_AUTOCAST)}")
    return torch.autocast(device.type, dtype=_AUTOCAST[precision])
