"""Detector: a trained model behind one ``predict`` call.

Shapes: B images, H x W padded height and width.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from detrkit.classes import ClassMap, SizeHW
from detrkit.config import Config, Precision
from detrkit.detectors.batches import Postprocess, evaluation_mode, resolve_device, run_model
from detrkit.detectors.interop import sv, to_supervision
from detrkit.detectors.sources import ImageSource, NamedSource, list_sources
from detrkit.errors import ImageError, UsageError
from detrkit.preprocess import pad_images, resize_image, resized_size_hw
from detrkit.threshold_file import Thresholds
from detrkit.types import ImageDetections

logger = logging.getLogger(__name__)

WASTE_LIMIT = 1.25  # padded pixels over real pixels, above which a batch is split
WINDOW_BATCHES = 4  # batches read at once, among which images of similar size are put together

MOST_READERS = 8
DEFAULT_THRESHOLD = 0.5
GPU_BATCH_SIZE = 8

ErrorReport = Callable[[str, ImageError], None]


class Prediction(NamedTuple):
    """One image of :meth:`Detector.stream`: name, pixels (uint8 ``[H, W, 3]`` RGB) if kept, detections."""

    source: str
    image: np.ndarray | None
    detections: sv.Detections


class _ReadImage(NamedTuple):
    source: NamedSource
    original: Tensor | None
    resized: Tensor
    orig_size_hw: SizeHW


class Detector:
    """A model with all that it needs to be given plain images.

    Args:
        model: ``model(images, padding_mask) -> Outputs``; moved to ``device``, in evaluation mode at work.
        class_map: The classes the model was trained on.
        config: Its ``transforms`` say how images are resized and normalised.
        postprocess: The model family's.
        device: ``auto``, ``cpu``, ``cuda`` or a torch device.
        precision: ``32``, or ``bf16`` or ``16`` for autocast.
        channels_last: NHWC layout, faster convolutions, equal up to rounding.
        thresholds: Chosen for this model, used where no threshold is given.
    """

    def __init__(
        self,
        model: nn.Module,
        class_map: ClassMap,
        config: Config,
        postprocess: Postprocess,
        device: str | torch.device = "auto",
        precision: Precision = "32",
        channels_last: bool = False,
        thresholds: Thresholds | None = None,
    ):
        self.device = resolve_device(device)
        self.model = model.to(self.device)
        self.class_map = class_map
        self.config = config
        self.postprocess = postprocess
        self.precision: Precision = precision
        self.channels_last = channels_last
        self.thresholds = thresholds

    def predict(
        self,
        source: ImageSource | Sequence[ImageSource],
        threshold: float | Thresholds | None = None,
        batch_size: int | None = None,
        on_error: ErrorReport | None = None,
    ) -> sv.Detections | list[sv.Detections]:
        """Detections with score >= ``threshold``, best first; with 0.0 exactly one per query.

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

    def stream(
        self,
        source: ImageSource | Sequence[ImageSource],
        threshold: float | Thresholds | None = None,
        batch_size: int | None = None,
        on_error: ErrorReport | None = None,
        keep_images: bool = False,
    ) -> Iterator[Prediction]:
        """Like :meth:`predict`, one :class:`Prediction` after another, for folders larger than memory.

        ``keep_images`` hands each image along, for drawing.
        """
        return self._stream(list_sources(source)[0], threshold, batch_size, on_error, keep_images)

    def predict_batch(self, images: Sequence[Tensor]) -> list[ImageDetections]:
        """Every query of every image, without threshold, in one forward.

        Args:
            images: uint8 ``[3, H, W]`` RGB of any sizes; resized here to the config's evaluation size.
        """
        resized = [self._resize(image) for image in images]
        return self._detect(resized, [_size_hw(image) for image in images])

    def _detect(self, resized: Sequence[Tensor], orig_sizes_hw: Sequence[SizeHW]) -> list[ImageDetections]:
        if not resized:
            return []
        stacked, padding_mask = pad_images(resized)
        padded = len({_size_hw(image) for image in resized}) > 1
        with evaluation_mode(self.model):
            outputs = run_model(
                self.model,
                stacked,
                padding_mask if padded else None,
                self.config,
                self.device,
                self.precision,
                self.channels_last,
            )
        return self.postprocess(outputs, orig_sizes_hw, self.class_map)

    def _stream(
        self,
        sources: Sequence[NamedSource],
        threshold: float | Thresholds | None,
        batch_size: int | None,
        on_error: ErrorReport | None,
        keep_images: bool,
    ) -> Iterator[Prediction]:
        if batch_size is None:
            batch_size = 1 if self.device.type == "cpu" else GPU_BATCH_SIZE
        if threshold is None:
            threshold = DEFAULT_THRESHOLD if self.thresholds is None else self.thresholds
        if isinstance(threshold, Thresholds):
            threshold = threshold.for_classes(self.class_map)
        elif not 0 <= threshold <= 1:
            raise UsageError(f"threshold is {threshold}, expected 0 to 1")
        if batch_size < 1:
            raise UsageError(f"batch_size is {batch_size}, expected 1 or more")
        # Originals can be large, so that few are held at once.
        window = batch_size if keep_images else batch_size * WINDOW_BATCHES
        windows = self._read_windows(sources, window, on_error, keep_images)
        return (
            prediction for images in windows for prediction in self._predict_window(images, threshold, batch_size)
        )

    def _read_windows(
        self, sources: Sequence[NamedSource], window: int, on_error: ErrorReport | None, keep_images: bool
    ) -> Iterator[list[_ReadImage]]:
        """Threads read the next window of images while the model works on this one."""
        pool = ThreadPoolExecutor(max(1, min(len(sources), os.cpu_count() or 1, MOST_READERS)))

        def submit(start: int) -> list[tuple[NamedSource, Future[_ReadImage]]]:
            part = sources[start : start + window]
            return [(source, pool.submit(self._read, source, keep_images)) for source in part]

        try:
            ahead = submit(0)
            for start in range(0, len(sources), window):
                current, ahead = ahead, submit(start + window)
                yield [read for source, future in current if (read := _result(source, future, on_error))]
        finally:  # also when the caller stops early
            pool.shutdown(cancel_futures=True)

    def _predict_window(
        self, images: Sequence[_ReadImage], threshold: float | Thresholds, batch_size: int
    ) -> Iterator[Prediction]:
        found: dict[int, ImageDetections] = {}
        for group in group_by_size([_size_hw(image.resized) for image in images], batch_size):
            detections = self._detect([images[i].resized for i in group], [images[i].orig_size_hw for i in group])
            found.update(zip(group, detections, strict=True))
        for i, image in enumerate(images):
            yield Prediction(
                source=image.source.name,
                image=None if image.original is None else image.original.permute(1, 2, 0).numpy(),
                detections=to_supervision(
                    _taken(found[i], threshold),
                    self.class_map,
                    source=image.source.name,
                    size_hw=image.orig_size_hw,
                ),
            )

    def _read(self, source: NamedSource, keep_image: bool) -> _ReadImage:
        original = source.read()
        return _ReadImage(source, original if keep_image else None, self._resize(original), _size_hw(original))

    def _resize(self, image: Tensor) -> Tensor:
        transforms = self.config.transforms
        size_hw = resized_size_hw(_size_hw(image), transforms.eval_size, transforms.max_size)
        return image if size_hw == _size_hw(image) else resize_image(image, size_hw)


def group_by_size(sizes_hw: Sequence[SizeHW], batch_size: int) -> list[list[int]]:
    """Positions of similar sizes in batches of at most ``batch_size``, so that little is padded."""
    groups: list[list[int]] = []
    for position in sorted(range(len(sizes_hw)), key=lambda i: sizes_hw[i]):
        if groups and len(groups[-1]) < batch_size:
            sizes = [sizes_hw[i] for i in (*groups[-1], position)]
            padded = max(size[0] for size in sizes) * max(size[1] for size in sizes) * len(sizes)
            if padded <= WASTE_LIMIT * sum(height * width for height, width in sizes):
                groups[-1].append(position)
                continue
        groups.append([position])
    return groups


def _taken(found: ImageDetections, threshold: float | Thresholds) -> ImageDetections:
    """Detections from the threshold on, with the scores to be shown."""
    scores = found.scores
    if isinstance(threshold, Thresholds):
        keep = threshold.apply(scores, found.class_ids)
        scores = threshold.calibrated(scores).astype(np.float32)
    else:
        keep = scores >= threshold
    return ImageDetections(found.boxes_xyxy[keep], scores[keep], found.class_ids[keep])


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


def _size_hw(image: Tensor) -> SizeHW:
    return int(image.shape[-2]), int(image.shape[-1])
