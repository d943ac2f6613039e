"""A bundle at work: from pictures to detections, without torch.

Shapes: B images, H x W padded height and width.
"""

from __future__ import annotations

import collections
import functools
import importlib.util
import itertools
import logging
import math
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from detrkit.classes import ClassMap, SizeHW
from detrkit.detections import Detections, ImageDetections, MaskedDetections, name_detections
from detrkit.errors import BundleError, ImageError, MissingExtraError, UsageError, listed
from detrkit.masks import ImageMasks, PanopticSegments
from detrkit.ops.sources import NamedSource, list_sources, threads_of_generator, warn_of_passed_over
from detrkit.preprocess import WASTE_LIMIT, group_by_size
from detrkit.runtimes.bundle import Bundle, PreprocessingRecord, read_bundle
from detrkit.runtimes.engines import AUTO, EXACT, INPUTS, Engine, make_engine
from detrkit.runtimes.resize import resize_pixels
from detrkit.threshold_file import Thresholds, take_detections

if TYPE_CHECKING:
    import supervision as sv

logger = logging.getLogger(__name__)

DEFAULT_THRESHOLD = 0.5
_AUTO_RUNS = 4  # the first warms up
_WINDOW = 4  # batches read at once, among which images of similar size are put together
_MASKS_AT_ONCE = 8  # a processor's cache holds their maps
_READERS = 2  # threads that decode and resize

_Read = tuple[str, np.ndarray, SizeHW]  # name, resized image, and the size of its file
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Predictor:
    """A model of a bundle in one runtime.

    Args:
        bundle: The bundle.
        engine: Its graph, ready to run.
        mask_engine: Its graph of masks, of a model that has them.
    """

    def __init__(self, bundle: Bundle, engine: Engine, mask_engine: Engine | None = None):
        self.bundle = bundle
        self.engine = engine
        self.mask_engine = mask_engine
        self.preprocessing: PreprocessingRecord = bundle.manifest.preprocessing

    @property
    def class_map(self) -> ClassMap:
        """Classes of the detections."""
        return self.bundle.class_map

    def predict(
        self, source: Any, threshold: float | Thresholds | None = None, batch_size: int = 1
    ) -> sv.Detections | Detections | list[sv.Detections | Detections]:
        """Return detections with score >= ``threshold``, best first.

        Args:
            source: A path, a folder, a uint8 NumPy array ``[H, W, 3]`` RGB, a PIL image, or a list of these.
            threshold: 0 to 1, or thresholds by class. None: the bundle's own if it has any, otherwise 0.5.
            batch_size: Images at once; the detections do not depend on it.

        Returns:
            ``supervision.Detections`` where supervision is installed, otherwise
            :class:`detrkit.detections.Detections` of the same fields; a list of them for a list or folder.

        Raises:
            UsageError: An argument is of the wrong kind or range.
            ImageError: An image cannot be read; one of a folder is left out with a warning.
            DataError: A folder holds no images.
        """
        if threshold is None:
            threshold = self.bundle.thresholds or DEFAULT_THRESHOLD
        if isinstance(threshold, Thresholds):
            threshold = threshold.for_classes(self.class_map)
        elif not 0 <= threshold <= 1:
            raise UsageError(f"threshold is {threshold}, expected 0 to 1")
        if batch_size < 1:
            raise UsageError(f"batch_size is {batch_size}, expected 1 or more")
        masks = self.bundle.manifest.masks
        mask_threshold = masks.threshold if masks else 0.5
        sources, single = list_sources(source)
        warn_of_passed_over(sources)
        finish = _finisher()
        found = [
            finish(
                name_detections(
                    take_detections(detections, threshold), self.class_map, name, size_hw, mask_threshold
                )
            )
            for name, size_hw, detections in self._detect_files(sources, batch_size)
        ]
        return found[0] if single else found

    def panoptic(self, detections: ImageDetections) -> PanopticSegments | None:
        """Merge all detections of an image into a panoptic picture; None of a model without masks."""
        how = self.bundle.manifest.masks
        if not how or not isinstance(detections, MaskedDetections):
            return None
        return detections.panoptic(
            self.class_map.stuff, score=how.panoptic_score, min_pixels=how.min_pixels, union=how.stuff == "union"
        )

    def detect(self, images: Sequence[np.ndarray], batch_size: int = 1) -> list[ImageDetections]:
        """Return all detections of images, uint8 ``[H, W, 3]`` RGB of any sizes, without threshold."""
        sizes = [(image.shape[0], image.shape[1]) for image in images]
        return self.detect_resized([self.resize(image) for image in images], sizes, batch_size)

    def resize(self, image: np.ndarray) -> np.ndarray:
        """Resize an image, uint8 ``[H, W, 3]``, by the model's rule."""
        return resize_pixels(image, self.preprocessing.rule.resized_size_hw((image.shape[0], image.shape[1])))

    def detect_resized(
        self, images: Sequence[np.ndarray], sizes_hw: Sequence[SizeHW], batch_size: int = 1
    ) -> list[ImageDetections]:
        """Return all detections of images that :meth:`resize` gave, in pixels of the files.

        Args:
            images: uint8 ``[h, w, 3]``.
            sizes_hw: Size of each file.
            batch_size: Images at once.
        """
        found: dict[int, ImageDetections] = {}
        own = [(image.shape[0], image.shape[1]) for image in images]
        waste = WASTE_LIMIT if self.preprocessing.padding == "exact" else 1.0
        if self.preprocessing.fixed_hw is not None:
            waste = math.inf  # all are padded to it
        for group in group_by_size(own, batch_size, waste):
            detections = self.detect_together([images[i] for i in group], [sizes_hw[i] for i in group])
            found.update(zip(group, detections, strict=True))
        return [found[i] for i in range(len(images))]

    def detect_together(self, images: Sequence[np.ndarray], sizes_hw: Sequence[SizeHW]) -> list[ImageDetections]:
        """Return all detections of resized images in one batch; see :meth:`detect_resized`."""
        return self.read(self.run(make_inputs(images, sizes_hw, self.preprocessing)), sizes_hw)

    def read(self, outputs: Sequence[np.ndarray], sizes_hw: Sequence[SizeHW]) -> list[ImageDetections]:
        """Return the detections of each image, with their masks if there are any.

        Args:
            outputs: Of :meth:`run`, boxes in pixels of the files.
            sizes_hw: Size of each file.
        """
        found = split_outputs(outputs[:3])[: len(sizes_hw)]
        if self.mask_engine is None:
            return found
        return [
            MaskedDetections.join(one, self._image_masks([output[row] for output in outputs[3:]], size_hw))
            for row, (one, size_hw) in enumerate(zip(found, sizes_hw, strict=True))
        ]

    def _image_masks(self, parts: Sequence[np.ndarray], size_hw: SizeHW) -> ImageMasks:
        """Return the masks of an image, of the graph's outputs behind its boxes."""
        numbers, cells, queries, *maps = parts
        *cells_hw, seen_hw = [(int(height), int(width)) for height, width in cells]

        def compute(wanted: np.ndarray) -> np.ndarray:
            assert self.mask_engine is not None
            own = [one[None, :, :height, :width] for one, (height, width) in zip(maps, cells_hw, strict=True)]
            inputs = {f"map_{number}": np.ascontiguousarray(one) for number, one in enumerate(own)}
            found = [np.empty((0, *cells_hw[-1]), dtype=np.float32)]
            for start in range(0, len(wanted), _MASKS_AT_ONCE):
                some = queries[wanted[start : start + _MASKS_AT_ONCE]]
                [logits] = self.mask_engine.run({"queries": some, **inputs})
                if logits.shape != (len(some), *cells_hw[-1]) or not np.isfinite(logits).all():
                    raise self._fault(f"gives masks {logits.shape} that are no finite numbers of their size")
                found.append(logits)
            return np.concatenate(found)

        return ImageMasks(compute, numbers, cells_hw[-1], seen_hw, seen_hw, size_hw)

    def run(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Return the outputs of the graph for what :func:`make_inputs` gave.

        Raises:
            BundleError: They are no detections, or not numbers, as of a graph that overflows in half precision.
        """
        count = len(inputs[INPUTS[0]])
        size = self.preprocessing.fixed_batch or count
        parts = [
            self.engine.run({name: rows[start : start + size] for name, rows in inputs.items()})
            for start in range(0, count, size)
        ]
        for outputs in parts:
            self._check_outputs(outputs, size)
        return parts[0] if len(parts) == 1 else [np.concatenate(output) for output in zip(*parts, strict=True)]

    def _check_outputs(self, outputs: Sequence[np.ndarray], count: int) -> None:
        """Check that a graph gave detections of so many images."""
        shapes = [output.shape for output in outputs[: 3 if self.mask_engine else None]]
        queries = shapes[0][1] if shapes and len(shapes[0]) == 2 else 0
        problem = ""
        if shapes != [(count, queries), (count, queries), (count, queries, 4)]:
            expected = f"[{count}, Q], [{count}, Q], [{count}, Q, 4]"
            problem = f"gives shapes {listed(shapes)}, expected {expected} of scores, labels and boxes"
        elif outputs[1].dtype.kind != "i" or not np.isin(outputs[1], np.arange(len(self.class_map))).all():
            problem = f"gives labels that are no class ids, expected 0 to {len(self.class_map) - 1}"
        elif any(output.dtype.kind != "f" or not np.isfinite(output).all() for output in (outputs[0], outputs[2])):
            problem = "gives scores or boxes that are not finite numbers"
        elif self.mask_engine is not None:
            problem = _mask_problem(outputs[3:], queries)
        if problem:
            raise self._fault(problem)

    def _fault(self, problem: str) -> BundleError:
        where = f"{self.bundle.contents.path}: {self.engine.name} {self.engine.version}"
        return BundleError(f"{where} {problem}; export the model again")

    def _detect_files(
        self, sources: Sequence[NamedSource], batch_size: int
    ) -> Iterator[tuple[str, SizeHW, ImageDetections]]:
        """Yield name, size and detections of each file, in order.

        Files are decoded and resized while the graph runs on others, in as many threads as it has streams; so many
        are on their way that memory holds them.
        """
        # one at a time there is nothing to group, and streams share single pictures out more evenly
        window = batch_size * _WINDOW if batch_size > 1 else 1
        detect = functools.partial(self._detect_window, batch_size=batch_size)
        if len(sources) == 1:  # nothing to do meanwhile
            yield from detect([self._read(sources[0])])
            return
        threads = threads_of_generator
        with threads(_READERS) as readers, threads(self.engine.streams) as runners:
            read = _ahead(readers, self._read, sources, window)
            windows = iter(lambda: list(itertools.islice(read, window)), [])
            for found in _ahead(runners, detect, windows, self.engine.streams):
                yield from found

    def _read(self, source: NamedSource) -> _Read | None:
        """Decode and resize a file; None for one of a folder that cannot be read, with a warning."""
        try:
            image = source.pixels(self.preprocessing.pixel_range)
        except ImageError as error:
            if not source.skippable:
                raise
            logger.warning("skipped %s", error)
            return None
        return source.name, self.resize(image), (image.shape[0], image.shape[1])

    def _detect_window(
        self, window: Sequence[_Read | None], batch_size: int
    ) -> list[tuple[str, SizeHW, ImageDetections]]:
        read = [one for one in window if one is not None]
        sizes = [size_hw for _, _, size_hw in read]
        found = self.detect_resized([image for _, image, _ in read], sizes, batch_size)
        return [(name, size_hw, one) for (name, _, size_hw), one in zip(read, found, strict=True)]


def _ahead(
    pool: ThreadPoolExecutor, work: Callable[[_Item], _Result], items: Iterable[_Item], most: int
) -> Iterator[_Result]:
    """Yield the results of items in order, with ``most`` more on their way."""
    waiting: collections.deque[Future[_Result]] = collections.deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) > most:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def load(
    path: str | os.PathLike[str], runtime: str = "", threads: int | None = None, streams: int = 1
) -> Predictor:
    """Load a bundle; public as ``detrkit.runtime.load``.

    Args:
        path: Folder or zip file that ``detrkit export`` wrote.
        runtime: ``onnxruntime``, ``openvino``, ``openvino-bf16``, or ``auto``: each of the first two that is
            installed is timed on a golden picture, and the faster taken. If empty, ONNX Runtime, or what runs
            the bundle's format alone.
        threads: Threads of all runs; as many as this process may use if not given, containers' limits counted.
        streams: Runs at once, which share the threads: more images a second, and a longer wait for each.

    Raises:
        BundleError: The bundle is damaged, changed, of a newer version, or not to be trusted.
        UsageError: There is no such runtime, it is not installed, or this CPU cannot compute in its precision.
    """
    bundle = read_bundle(path)
    if bundle.manifest.graphs[0].outputs != "detections":
        raise UsageError(f"{path} gives raw logits and boxes, for programs of your own; export it without --raw")
    try:
        if runtime == AUTO and not bundle.manifest.graphs[0].weights_file:
            return _fastest(bundle, threads, streams)
        return make_predictor(bundle, "" if runtime == AUTO else runtime, threads, streams)
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from error


def make_predictor(bundle: Bundle, runtime: str = "", threads: int | None = None, streams: int = 1) -> Predictor:
    """Make a bundle that was read ready to run; see :func:`load`."""
    engines = [
        make_engine(bundle.read_graph(number), runtime, threads, bundle.read_weights(number), streams)
        for number in range(2 if bundle.manifest.masks else 1)
    ]
    return Predictor(bundle, *engines)


def _mask_problem(parts: Sequence[np.ndarray], queries: int) -> str:
    """Return what is wrong with what masks are made of; empty if nothing is."""
    if len(parts) > 3 and [part.ndim for part in parts] == [2, 3, 3, *[4] * (len(parts) - 3)]:
        numbers, cells, vectors, *maps = parts
        whole = np.array([one.shape[2:] for one in maps])
        shapes = (numbers.shape[1], cells.shape[1:], vectors.shape[1]) == (queries, (len(maps) + 1, 2), queries)
        numbered = np.isin(numbers, np.arange(queries)).all() and (cells > 0).all()
        if shapes and numbered and (cells[:, :-1] <= whole).all():
            return ""
    return "gives no queries and maps that masks could be made of"


def _fastest(bundle: Bundle, threads: int | None, streams: int) -> Predictor:
    """Return the fastest of the float32 runtimes that are installed, on the first golden picture."""
    picture = bundle.picture(bundle.manifest.golden[0].file)
    times: dict[str, float] = {}
    predictors = {}
    for name in EXACT:
        try:
            predictors[name] = make_predictor(bundle, name, threads, streams)
        except MissingExtraError:
            continue
        runs = []
        for _ in range(_AUTO_RUNS):
            start = time.perf_counter()
            predictors[name].detect([picture])
            runs.append(1000 * (time.perf_counter() - start))
        times[name] = min(runs)
    if not times:
        raise MissingExtraError("onnxruntime", "runtime")
    best = min(times, key=times.__getitem__)
    logger.info("%s is taken: %s", best, ", ".join(f"{name} {times[name]:.1f} ms" for name in times))
    return predictors[best]


def make_inputs(
    images: Sequence[np.ndarray], original_sizes_hw: Sequence[SizeHW], preprocessing: PreprocessingRecord
) -> dict[str, np.ndarray]:
    """Return the inputs of a graph: images padded with 0 at the bottom and on the right, and both their sizes.

    Where the graph's batch is fixed, whole black images fill up the last one.

    Raises:
        UsageError: An image is larger than the graph's fixed size.
    """
    sizes = np.array([image.shape[:2] for image in images], dtype=np.int64)
    least = preprocessing.least_side if preprocessing.padding == "exact" else 1
    height, width = (max(least, int(side)) for side in sizes.max(axis=0))
    if preprocessing.fixed_hw is not None:
        check_fits((int(sizes[:, 0].max()), int(sizes[:, 1].max())), preprocessing.fixed_hw)
        height, width = preprocessing.fixed_hw
    if lacking := -len(images) % (preprocessing.fixed_batch or 1):
        images = [*images, *[np.zeros((height, width, 3), dtype=np.uint8)] * lacking]
        original_sizes_hw = [*original_sizes_hw, *[(height, width)] * lacking]
        sizes = np.array([image.shape[:2] for image in images], dtype=np.int64)
    if all(image.shape[:2] == (height, width) for image in images):
        pixels = images[0][None] if len(images) == 1 else np.stack(images)
    else:
        pixels = np.zeros((len(images), height, width, 3), dtype=np.uint8)
        for row, image in enumerate(images):
            pixels[row, : image.shape[0], : image.shape[1]] = image
    if preprocessing.layout == "nchw":
        pixels = pixels.transpose(0, 3, 1, 2)
    originals = np.array(original_sizes_hw, dtype=np.int64).reshape(-1, 2)
    return dict(zip(INPUTS, (np.ascontiguousarray(pixels), sizes, originals), strict=True))


def check_fits(size_hw: SizeHW, fixed_hw: SizeHW) -> None:
    """Refuse an image that is larger, after resizing, than a graph's fixed shape.

    It is not made smaller: that would be another size rule than the model was trained and measured with.

    Raises:
        UsageError: It is larger.
    """
    height, width = (max(sides) for sides in zip(size_hw, fixed_hw, strict=True))
    if (height, width) != fixed_hw:
        raise UsageError(
            f"an image resized to {size_hw[0]} x {size_hw[1]} pixels does not fit the graph's fixed shape of "
            f"{fixed_hw[0]} x {fixed_hw[1]}; export with --shape {height}x{width}, or without"
        )


def split_outputs(outputs: Sequence[np.ndarray]) -> list[ImageDetections]:
    """Return the detections of each image from scores, labels and boxes of a batch."""
    scores, labels, boxes = outputs
    return [ImageDetections(*image) for image in zip(boxes, scores, labels, strict=True)]


def _finisher() -> Callable[[Detections], Any]:
    """Return what turns detections into supervision's, or leaves them as they are where it is not installed."""
    if importlib.util.find_spec("supervision") is None:
        return lambda named: named
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="OpenCV", category=UserWarning)
        import supervision
    return lambda named: supervision.Detections(**vars(named))
