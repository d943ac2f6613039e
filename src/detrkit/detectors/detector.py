"""Detector: a trained model behind one ``predict`` call, whatever toolkit it comes from.

Shapes: B images, H x W height and width.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from detrkit.arguments import checked
from detrkit.classes import ClassMap, SizeHW
from detrkit.config import Config, MasksConfig, PixelRange
from detrkit.detections import ImageDetections, MaskedDetections
from detrkit.detectors.interop import sv, to_supervision
from detrkit.detectors.stages import Stages, merge_masks, prepare, runs_alone
from detrkit.errors import ImageError, UsageError
from detrkit.masks import PanopticSegments
from detrkit.ops.images import narrow_range_lines
from detrkit.ops.pixel_range import FULL
from detrkit.ops.sources import NamedSource, list_sources, read_windows, warn_of_passed_over
from detrkit.preprocess import WASTE_LIMIT, group_by_size, image_size_hw
from detrkit.threshold_file import Thresholds, take_detections

logger = logging.getLogger(__name__)

WINDOW_BATCHES = 4  # batches read at once, among which images of similar size are put together

DEFAULT_THRESHOLD = 0.5
GPU_BATCH_SIZE = 8
MAX_DETECTIONS = 100

ImageSource = str | os.PathLike[str] | np.ndarray | Image.Image | Tensor
ErrorReport = Callable[[str, ImageError], None]


class Prediction(NamedTuple):
    """One image of :meth:`Detector.stream`: name, pixels (uint8 ``[H, W, 3]`` RGB) if kept, detections.

    panoptic: The panoptic picture of a model with masks, if asked for.
    """

    source: str
    image: np.ndarray | None
    detections: sv.Detections
    panoptic: PanopticSegments | None = None


class _ReadImage(NamedTuple):
    original: Tensor | None
    resized: Tensor
    orig_size_hw: SizeHW


class Detector:
    """A model with all that it needs to be given plain images.

    Args:
        stages: The model in its three stages.
        class_map: Classes of its detections.
        name: Name that people call it by.
        kind: Toolkit that it comes from: detrkit, torchvision, transformers.
        config: Config of one of detrkit's own models; None for others.
        settings: All that its detections depend on besides its weights, as text.
        max_detections: Greatest number of detections of an image that count in evaluation.
        thresholds: Thresholds chosen for this model, used where no threshold is given.
    """

    def __init__(
        self,
        stages: Stages,
        class_map: ClassMap,
        *,
        name: str = "",
        kind: str = "detrkit",
        config: Config | None = None,
        settings: str = "",
        max_detections: int = MAX_DETECTIONS,
        thresholds: Thresholds | None = None,
    ):
        self.stages = stages
        self.class_map = class_map
        self.name = name
        self.kind = kind
        self.config = config
        self.settings = settings
        self.max_detections = max_detections
        self.thresholds = thresholds
        self.masks = MasksConfig() if config is None else config.masks
        self.pixel_range: PixelRange = FULL if config is None else config.data.pixel_range
        self.notes: tuple[str, ...] = ()  # how it detects, where that is not as usual

    @property
    def model(self) -> nn.Module:
        """The network."""
        return self.stages.network

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return self.stages.device

    @property
    def has_masks(self) -> bool:
        """True if its detections have masks."""
        own = self.config is not None and self.config.model.masks
        return bool(getattr(self.stages, "has_masks", own))

    @property
    def has_stuff(self) -> bool:
        """True if it makes panoptic pictures."""
        return self.has_masks and bool(self.class_map.stuff)

    @property
    def default_batch_size(self) -> int:
        """Images at once where nobody says: 1 on the CPU, where a batch gains nothing and padding costs."""
        return 1 if self.device.type == "cpu" else GPU_BATCH_SIZE

    @checked
    def predict(
        self,
        source: ImageSource | Sequence[ImageSource],
        threshold: float | Thresholds | None = None,
        batch_size: int | None = None,
        on_error: ErrorReport | None = None,
    ) -> sv.Detections | list[sv.Detections]:
        """Return detections with score >= ``threshold``, best first; with 0.0 exactly one per query.

        Args:
            source: A path, a folder, a uint8 NumPy array ``[H, W, 3]`` RGB (gray ``[H, W]`` and ``[H, W, 4]``
                too; OpenCV's BGR must be turned by ``[..., ::-1]``), a PIL image, a uint8 torch tensor
                ``[3, H, W]``, or a list or tuple mixing these.
            threshold: 0 to 1; or thresholds by class, whose calibration the scores then get too. None: this
                model's own ``thresholds`` if it has any, otherwise ``DEFAULT_THRESHOLD``.
            batch_size: Images the model sees at once; the detections do not depend on it. None: 1 on the CPU,
                where a batch gains nothing and padding costs, and ``GPU_BATCH_SIZE`` on a GPU.
            on_error: Called with name and error of each image that cannot be read, which is then left out.
                Without it, such an image is left out with a logged warning where a folder was listed, and
                raised otherwise.

        Returns:
            One ``supervision.Detections`` for one image; a list, in order, for a list or folder. See
            :func:`detrkit.detectors.interop.to_supervision` on what it holds.

        Raises:
            UsageError: An argument is of the wrong kind, dtype, shape or range.
            ImageError: An image cannot be read.
            DataError: A folder holds no images.
        """
        sources, single = list_sources(source)
        if single:
            on_error = None
        found = [item.detections for item in self._stream(sources, threshold, batch_size, on_error, False)]
        return found[0] if single else found

    @checked
    def stream(
        self,
        source: ImageSource | Sequence[ImageSource],
        threshold: float | Thresholds | None = None,
        batch_size: int | None = None,
        on_error: ErrorReport | None = None,
        keep_images: bool = False,
        panoptic: bool = False,
        masks: bool = True,
    ) -> Iterator[Prediction]:
        """Detect as :meth:`predict` does, one :class:`Prediction` after another, for folders larger than memory.

        ``keep_images`` hands each image along, for drawing; ``panoptic`` makes the panoptic picture of a model
        that has masks; without ``masks`` only its boxes are computed.
        """
        return self._stream(list_sources(source)[0], threshold, batch_size, on_error, keep_images, panoptic, masks)

    def predict_batch(self, images: Sequence[Tensor]) -> list[ImageDetections]:
        """Return all detections of every image, without threshold, in one forward.

        Args:
            images: uint8 ``[3, H, W]`` RGB of any sizes.
        """
        if not images:
            return []
        outputs = self.stages.forward(prepare(self.stages, images))
        return self.stages.postprocess(outputs, [image_size_hw(image) for image in images])

    def panoptic(self, detections: ImageDetections) -> PanopticSegments | None:
        """Merge all detections of an image into a panoptic picture; None without masks.

        As ``masks`` says, but for the score that ``thresholds`` may hold.
        """
        if not isinstance(detections, MaskedDetections):
            return None
        how, score = self.masks, None if self.thresholds is None else self.thresholds.panoptic_score
        how = how if score is None else how.model_copy(update={"panoptic_score": score})
        return merge_masks(detections, how, self.class_map.stuff)

    def detect_images(self, images: Sequence[Tensor], batch_size: int | None = None) -> list[ImageDetections]:
        """Return all detections of every image, without threshold, in batches of similar sizes.

        Args:
            images: uint8 ``[3, H, W]`` RGB of any sizes.
            batch_size: Images that the model sees at once; the detections do not depend on it.
        """
        resized = [self.stages.resize(image) for image in images]
        return self._detect(resized, [image_size_hw(image) for image in images], batch_size)

    def resolve_threshold(self, threshold: float | Thresholds | None) -> float | Thresholds:
        """Return the threshold to use: the one given, else the model's own, else ``DEFAULT_THRESHOLD``.

        Raises:
            UsageError: It is out of range, or of classes that the model does not have.
        """
        if threshold is None:
            threshold = DEFAULT_THRESHOLD if self.thresholds is None else self.thresholds
        if isinstance(threshold, Thresholds):
            return threshold.for_classes(self.class_map)
        if not 0 <= threshold <= 1:
            raise UsageError(f"threshold is {threshold}, expected 0 to 1")
        return threshold

    def window(self, batch_size: int, keep_images: bool = False) -> int:
        """Return the number of images to read at once; originals can be large, so that few of them are held."""
        return batch_size * (1 if keep_images or hasattr(self.stages, "tiles") else WINDOW_BATCHES)

    def _detect(
        self, resized: Sequence[Tensor], orig_sizes_hw: Sequence[SizeHW], batch_size: int | None
    ) -> list[ImageDetections]:
        found: dict[int, ImageDetections] = {}
        waste_limit = WASTE_LIMIT if self.stages.pads else 1.0
        sizes = [image_size_hw(image) for image in resized]
        if self.has_masks and runs_alone(self.device):
            batch_size = 1
        for group in group_by_size(sizes, batch_size or self.default_batch_size, waste_limit):
            outputs = self.stages.forward(self.stages.preprocess([resized[i] for i in group]))
            detections = self.stages.postprocess(outputs, [orig_sizes_hw[i] for i in group])
            found.update(zip(group, detections, strict=True))
        return [found[i] for i in range(len(resized))]

    def _stream(
        self,
        sources: Sequence[NamedSource],
        threshold: float | Thresholds | None,
        batch_size: int | None,
        on_error: ErrorReport | None,
        keep_images: bool,
        panoptic: bool = False,
        masks: bool = True,
    ) -> Iterator[Prediction]:
        if batch_size is None:
            batch_size = self.default_batch_size
        threshold = self.resolve_threshold(threshold)
        if batch_size < 1:
            raise UsageError(f"batch_size is {batch_size}, expected 1 or more")

        # what of a folder is not read, and pictures of which little would be left
        warn_of_passed_over(sources)
        pixel_range = self.pixel_range
        files = [source.content for source in sources if isinstance(source.content, Path)]
        for line in narrow_range_lines(files, pixel_range):
            logger.warning("%s", line)

        def read(source: NamedSource) -> _ReadImage:
            original = source.read(pixel_range)
            resized = self.stages.resize(original)
            return _ReadImage(original if keep_images else None, resized, image_size_hw(original))

        windows = read_windows(read, sources, self.window(batch_size, keep_images))
        return self._predict_windows(windows, threshold, batch_size, on_error, panoptic, masks)

    def _predict_windows(
        self,
        windows: Iterator[list[tuple[NamedSource, Future[_ReadImage]]]],
        threshold: float | Thresholds,
        batch_size: int,
        on_error: ErrorReport | None,
        panoptic: bool,
        masks: bool,
    ) -> Iterator[Prediction]:
        for window in windows:
            read = [
                (source, image)
                for source, future in window
                if (image := _result(source, future, on_error)) is not None
            ]
            images = [image for _, image in read]
            found = self._detect(
                [image.resized for image in images], [image.orig_size_hw for image in images], batch_size
            )
            for (source, image), detections in zip(read, found, strict=True):
                kept = take_detections(detections if masks else ImageDetections(*detections), threshold)
                taken = to_supervision(
                    kept,
                    self.class_map,
                    source=source.name,
                    size_hw=image.orig_size_hw,
                    mask_threshold=self.masks.threshold,
                )
                segments = self.panoptic(detections) if panoptic else None
                pixels = None if image.original is None else image.original.permute(1, 2, 0).numpy()
                yield Prediction(source.name, pixels, taken, segments)


def weights_digest(model: nn.Module) -> str:
    """Return the SHA-256 of all weights and buffers by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, Tensor):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _result(source: NamedSource, future: Future[_ReadImage], on_error: ErrorReport | None) -> _ReadImage | None:
    try:
        return future.result()
    except ImageError as error:
        if on_error is not None:
            on_error(source.name, error)
        elif source.skippable:
            logger.warning("skipped %s", error)
        else:
            raise
        return None
