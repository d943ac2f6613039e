"""Accuracy and speed of a model's variants on this machine, each result written down as it comes."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import torch

from detrkit.comparison.detections import DetectionStore
from detrkit.config import update_config
from detrkit.data.coco import CocoDataset
from detrkit.data.split import Split
from detrkit.detectors.bundle import predictor_detector
from detrkit.detectors.detector import Detector
from detrkit.detectors.journal import Journal, Values
from detrkit.detectors.load import make_detector
from detrkit.detectors.on_split import collect
from detrkit.errors import BundleError, DetrkitError
from detrkit.evaluation.bootstrap import paired_bootstrap
from detrkit.evaluation.coco import known
from detrkit.evaluation.evaluator import CocoEvaluator
from detrkit.evaluation.matching import Matches
from detrkit.evaluation.truth import ground_truth_from_index
from detrkit.export.graph import GraphOptions, onnx_graph, trace_graph
from detrkit.export.quantize import calibration_batches, quantize_graph
from detrkit.export.variant import Variant
from detrkit.export.write import write_bundle
from detrkit.families.family import BuiltModel
from detrkit.runtimes.bundle import Bundle, read_bundle
from detrkit.runtimes.engines import ENGINES, EXACT, make_engine
from detrkit.runtimes.predictor import Predictor

REFERENCE = next(iter(ENGINES))
"""Runtime of the whole model that all times are compared with, float32."""
PICTURES = 8
"""Of the split, that are timed."""
LEAST_RUNS = 9
INT8 = "-int8"
"""Behind the name of a runtime: convolutions and linear layers in INT8."""
BATCH_SIZES = (1, 2, 4, 8)

_MOST_RUNS = 40
_ENOUGH_S = 10.0
"""Seconds of timing from which no more runs are made than the fewest."""
_RANKING_IMAGES = 200

Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class Point:
    """A variant in a runtime.

    Args:
        variant: The variant.
        runtime: Name of the runtime.
        accuracy: AP and AP50, and AP less the whole model's with the ends of its interval, 0 to 1.
        speed: Medians in milliseconds of an image, of this and of the whole model that took turns with it; None
            where it could not be timed.
    """

    variant: Variant
    runtime: str
    accuracy: Values
    speed: Values

    @property
    def name(self) -> str:
        """Name, such as ``d2-q50-s256@openvino``."""
        return f"{self.variant.name}@{self.runtime}"

    @property
    def ap(self) -> float:
        """AP, 0 to 1."""
        return self.accuracy["AP"] or 0.0

    @property
    def share(self) -> float:
        """Its time as a share of the whole model's; infinite where it could not be timed."""
        own, whole = self.speed["ms"], self.speed["whole_ms"]
        return own / whole if own is not None and whole else np.inf

    @property
    def loss(self) -> float:
        """AP points that it has less than the whole model; infinite where that is unknown."""
        difference = self.accuracy["difference"]
        return np.inf if difference is None else 0.0 - 100 * difference

    @property
    def worst_loss(self) -> float:
        """The worse end of the loss's interval; infinite where too few images have objects."""
        low = self.accuracy["low"]
        return np.inf if low is None else 0.0 - 100 * low

    @property
    def loss_text(self) -> str:
        """Both, for a sentence."""
        return f"AP loss {self.loss:.2f} points, at worst {self.worst_loss:.2f}"


class Bench:
    """Measures variants of a model.

    Args:
        built: The model, not yet prepared for inference.
        split: Images that it is measured on.
        journal: Gets each result; what it holds is not measured again.
        folder: Folder for the whole model's detections.
        scratch: Folder for what is needed only here.
        calibration: Images that INT8 takes its scales from; None leaves it out.
        say: Called with messages for people.
        progress: Called with what is being done, how much of it is done, and how much there is.
    """

    def __init__(
        self,
        built: BuiltModel,
        split: Split,
        journal: Journal,
        folder: Path,
        scratch: Path,
        calibration: Split | None,
        say: Callable[[str], None],
        progress: Progress,
    ):
        # processes that only decode cost more to start, each time, than a CPU's detections leave them to do
        config = update_config(built.config, {"data.workers": 0})
        self.built = dataclasses.replace(built, config=config)
        self.split, self.journal = split, journal
        self.whole = Variant.whole(built)
        self.say = say
        self._calibration = calibration
        self._progress = progress
        self._folder, self._scratch = folder, scratch
        self._truth = ground_truth_from_index(split.index)

    def measure(self, variant: Variant, runtime: str) -> Point:
        """Measure accuracy and speed of a variant in a runtime, and say them."""
        is_new = f"speed {_named(variant, runtime)}" not in self.journal.results
        point = Point(variant, runtime, self.accuracy(variant, runtime), self.speed(variant, runtime))
        if is_new:
            self.say(f"{point.name}: AP {100 * point.ap:.1f}, {1 / point.share:.2f} times as fast as the whole")
        return point

    def accuracy(self, variant: Variant, runtime: str = REFERENCE) -> Values:
        """Measure AP on the split; in torch for runtimes in float32, which find the same."""
        exact = runtime in EXACT
        key = f"accuracy {variant.name if exact else _named(variant, runtime)}"
        if key not in self.journal.results:
            if exact and variant == self.whole:
                evaluator = self._of_whole
            else:
                detector = (
                    self._detector(variant)
                    if exact
                    else predictor_detector(self._predictor(variant, runtime), f"{variant.name}@{runtime}")
                )
                tell = functools.partial(self._tell, key, len(self.split.index))
                evaluator = collect(detector, self.split, truth=self._truth, progress=tell)
            self.journal.add(key, self._against_whole(evaluator))
        return self.journal.results[key]

    def speed(self, variant: Variant, runtime: str) -> Values:
        """Time a variant in turns with the whole model, from pixels in memory to detections."""
        key = f"speed {_named(variant, runtime)}"
        if key not in self.journal.results:
            try:
                predictor = self._predictor(variant, runtime)
                measured = time_in_turns(self._reference, predictor, self._pictures)
                if variant == self.whole and runtime == REFERENCE:  # against itself there is only noise
                    measured = {**measured, "whole_ms": measured["ms"]}
            except BundleError as error:
                self.say(f"WARNING: {variant.name}@{runtime} is left out: {error}")
                measured = {"ms": None, "whole_ms": None, "p95_ms": None}
            self.journal.add(key, measured)
        return self.journal.results[key]

    def throughput(self, variant: Variant, runtime: str, batch_size: int) -> float:
        """Measure images a second of a variant that gets so many at once."""
        key = f"throughput {_named(variant, runtime)} {batch_size}"
        if key not in self.journal.results:
            predictor = self._predictor(variant, runtime)
            pictures = [self._pictures[i % len(self._pictures)] for i in range(max(BATCH_SIZES))]
            runs = [_run(predictor, pictures, batch_size) for _ in range(4)][1:]
            self.journal.add(key, {"images_per_s": 1000 * len(pictures) / float(np.median(runs))})
        return self.journal.results[key]["images_per_s"] or 0.0

    def runtimes(self) -> list[str]:
        """Return the runtimes that work here; why others do not is said."""
        found = []
        int8 = [f"{name}{INT8}" for name in EXACT] if self._calibration is not None else []
        for name in (*ENGINES, *int8):
            try:
                self._predictor(self.whole, name)
            except DetrkitError as error:
                self.say(f"{name} is left out: {error}")
                continue
            found.append(name)
        return found

    @functools.cached_property
    def query_order(self) -> tuple[int, ...]:
        """Queries, those first that give most detections on the split.

        Learned queries are counted: each by the sum of its scores, which are probabilities of an object. No
        annotation is looked at.
        """
        if not self.built.family.learned_queries:
            return self.whole.queries
        if "queries" not in self.journal.results:
            detector = self._detector(self.whole)
            sums = torch.zeros(len(self.whole.queries), dtype=torch.float64)
            images = self._images(_RANKING_IMAGES)
            index = list(self.built.class_map.logit_index)
            for done, image in enumerate(images, start=1):
                inputs = detector.stages.preprocess([detector.stages.resize(image)])
                logits = detector.stages.forward(inputs).logits[-1]
                scores = self.built.family.scoring.scores(logits)[0, :, index].amax(-1)
                sums += scores.cpu().double()
                self._tell("queries", len(images), done)
            self.journal.add("queries", {str(row): value for row, value in enumerate(sums.tolist())})
        found = self.journal.results["queries"]
        return tuple(sorted(self.whole.queries, key=lambda row: -(found[str(row)] or 0.0)))

    @functools.cached_property
    def _of_whole(self) -> CocoEvaluator:
        """The whole model's detections, kept so that a study that goes on need not make them again."""
        tell = functools.partial(self._tell, "accuracy of the whole model", len(self.split.index))
        store = DetectionStore(self._folder, self.split)
        return store.obtain(self._detector(self.whole), "whole", self._truth, None, tell)[0]

    @functools.cached_property
    def _matches_of_whole(self) -> Matches:
        return self._of_whole.matches()

    def _against_whole(self, evaluator: CocoEvaluator) -> Values:
        values = evaluator.finish().values
        found = paired_bootstrap(self._matches_of_whole, evaluator.matches()).values.get("AP")
        ends = (None,) * 3 if found is None else (found.value, found.low, found.high)
        numbers = {name: known(values[name]) for name in ("AP", "AP50")}
        # known() takes a value of COCO's, for which -1 means undefined; differences may be that
        finite = [None if end is None or not np.isfinite(end) else end for end in ends]
        return {**numbers, **dict(zip(("difference", "low", "high"), finite, strict=True))}

    def _detector(self, variant: Variant) -> Detector:
        built = variant.apply(self.built)
        built.family.prepare_inference(built.model)
        return make_detector(built, name=variant.name)

    @functools.cached_property
    def _bundle(self) -> Bundle:
        """The whole model's bundle, proved against torch."""
        out = self._scratch / "whole"
        write_bundle(self.built, out, name=self.whole.name, options=GraphOptions(), cold_start=False)
        return read_bundle(out)

    @functools.cached_property
    def _reference(self) -> Predictor:
        return Predictor(self._bundle, make_engine(self._bundle.read_graph(), REFERENCE))

    def _predictor(self, variant: Variant, runtime: str) -> Predictor:
        """Return a variant ready to run, in an engine of its own: engines compile for what they see first."""
        record = msgspec.structs.replace(
            self._bundle.manifest.preprocessing, eval_size=variant.eval_size, max_size=variant.max_size(self.built)
        )
        manifest = msgspec.structs.replace(self._bundle.manifest, preprocessing=record)
        bundle = dataclasses.replace(self._bundle, manifest=manifest)
        if not runtime.endswith(INT8):
            return Predictor(bundle, make_engine(self._graph(variant), runtime))
        path = self._scratch / f"{variant.name}{INT8}.onnx"
        if not path.exists():
            assert self._calibration is not None
            batches = list(calibration_batches(self._predictor(variant, REFERENCE), self._calibration))
            path.write_bytes(quantize_graph(self._graph(variant), batches))
        return Predictor(bundle, make_engine(path.read_bytes(), runtime.removesuffix(INT8)))

    def _graph(self, variant: Variant) -> bytes:
        """Return the graph of a variant, which those of other sizes share."""
        variant = dataclasses.replace(variant, eval_size=self.whole.eval_size)
        if variant == self.whole:
            return self._bundle.read_graph()
        path = self._scratch / f"{variant.name}.onnx"
        if not path.exists():
            built = variant.apply(self.built)
            built.family.prepare_inference(built.model)
            options = GraphOptions()
            path.write_bytes(onnx_graph(trace_graph(built, options), options))
        return path.read_bytes()

    @functools.cached_property
    def _pictures(self) -> list[np.ndarray]:
        return [np.ascontiguousarray(image.permute(1, 2, 0).numpy()) for image in self._images(PICTURES)]

    def _images(self, count: int) -> list[torch.Tensor]:
        """Return images taken evenly from the split, uint8 ``[3, H, W]``."""
        pixel_range = self.built.config.data.pixel_range
        files = self.split.files
        dataset = CocoDataset(self.split.index, files.images, None, on_bad_image="error", pixel_range=pixel_range)
        rows = np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int))
        return [dataset.read_image(int(row)) for row in rows]

    def _tell(self, what: str, total: int, done: int) -> None:
        self._progress(what, done, total)


def _named(variant: Variant, runtime: str) -> str:
    """Name a point in the journal: another version of a runtime is measured anew."""
    version = importlib.metadata.version(runtime.partition("-")[0])
    return f"{variant.name}@{runtime} {version}"


def time_in_turns(whole: Predictor, other: Predictor, pictures: Sequence[np.ndarray]) -> Values:
    """Time two predictors on the same pictures, each first as often, so that load on the machine hits both.

    Returns:
        Medians and the 95th percentile in milliseconds.
    """
    for picture in pictures:  # kernels are chosen by size
        whole.predict(picture)
        other.predict(picture)
    times: list[tuple[float, float]] = []
    start = time.perf_counter()
    while len(times) < LEAST_RUNS or (len(times) < _MOST_RUNS and time.perf_counter() - start < _ENOUGH_S):
        shown = [pictures[len(times) // 2 % len(pictures)]]
        first, second = (whole, other) if len(times) % 2 else (other, whole)
        pair = (_run(first, shown), _run(second, shown))
        times.append(pair if first is whole else pair[::-1])
    of_whole, own = np.array(times).T
    return {
        "ms": float(np.median(own)),
        "whole_ms": float(np.median(of_whole)),
        "p95_ms": float(np.percentile(own, 95)),
    }


def _run(predictor: Predictor, pictures: Sequence[np.ndarray], batch_size: int = 1) -> float:
    """Return the milliseconds that some pictures take."""
    start = time.perf_counter()
    predictor.predict(list(pictures), batch_size=batch_size)
    return 1000 * (time.perf_counter() - start)
