"""INT8 with proof: convolutions and linear layers in 8 bits, written only where it costs no AP and saves time.

ONNX Runtime's own quantisation is used. NNCF 3.4 was measured beside it, on a trained ``detr-nano-two-stage``
(BCCD test): it leaves the layers' outputs in float32, and ONNX Runtime has no such convolution, so that there it
took 107 % of float32's time, this one 50 %; in OpenVINO 45 % and 51 %. AP changed by -0.21 points (fast bias
correction, mixed preset, ``ModelType.TRANSFORMER``) and by +0.16. It is also another large package, and one that
reports its use to its makers.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
import time
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from detrkit.data.coco import CocoDataset
from detrkit.data.split import Split
from detrkit.detectors.accuracy import AccuracyData, measure_accuracy, read_accuracy_split
from detrkit.detectors.bundle import predictor_detector
from detrkit.errors import BundleError, DataError, MissingExtraError, UsageError
from detrkit.export.formats import GRAPH
from detrkit.export.write import ExportResult, NewBundle, golden_picture
from detrkit.runtimes.bundle import Bundle, read_bundle
from detrkit.runtimes.compare import tolerance_of
from detrkit.runtimes.engines import ENGINES, Engine, make_engine
from detrkit.runtimes.predictor import Predictor, make_inputs
from detrkit.runtimes.report import INT8, Accuracy, speed_lines
from detrkit.runtimes.verify import compare_golden, golden_failures, measure

if TYPE_CHECKING:
    import os

GATE = 0.5
"""AP points that INT8 may cost, less than."""
CALIBRATION_IMAGES = 100

_LAYERS = ("Conv", "MatMul", "Gemm")
_LEAST_FEATURES = 16  # a layer of fewer takes positions or gives them, and is no work
_BETWEEN = ("Add", "Relu")  # what stands between two layers that belong together
_LEAST_AP = 0.01  # of float32; what finds nothing can lose nothing
_PADDED = 4  # every so many calibration images, two are padded together
_TIMED_IMAGES = 5
_LEAST_ROUNDS, _MOST_ROUNDS, _TIME_S = 5, 40, 15.0
_FOLD = 1 << 28  # numbers in a constant that is computed beforehand

Batch = Mapping[str, np.ndarray]
Times = dict[str, float]
"""Milliseconds of the graph alone by runtime, with :data:`INT8` behind it where that is the INT8 one."""


@dataclasses.dataclass(frozen=True)
class Int8Options:
    """How INT8 is made.

    Args:
        calibration: Split to take scales from; that which is measured on shares its images out.
        gate: AP points that may be lost, less than.

    Raises:
        UsageError: Nothing may be lost.
    """

    calibration: str = "train"
    gate: float = GATE

    def __post_init__(self) -> None:
        if not self.gate > 0:
            raise UsageError(f"gate is {self.gate}, expected AP points above 0")


def quantize_graph(graph: bytes, batches: Sequence[Batch]) -> bytes:
    """Return an ONNX graph whose convolutions and linear layers compute in INT8, in QuantizeLinear form.

    Weights have a scale for each output, inputs and outputs of a layer one for all, the same in every batch.
    Heads, attention scores, positions, normalisation, preprocessing and postprocessing stay in float32.

    Args:
        graph: ONNX file in float32.
        batches: Inputs to take the scales from, as :func:`detrkit.runtimes.predictor.make_inputs` gives them.

    Raises:
        UsageError: onnx, onnxscript or onnxruntime is not installed.
        BundleError: The graph has no such layer.
    """
    try:
        import onnx
        import onnx_ir
        from onnxruntime import quantization
        from onnxscript import optimizer
    except ImportError as error:
        raise MissingExtraError(str(error.name), "export") from error
    # weights that are cut out of larger ones become constants of their own
    model = onnx_ir.from_proto(onnx.load_model_from_string(graph))
    optimizer.fold_constants(model, input_size_limit=_FOLD, output_size_limit=_FOLD)
    optimizer.remove_unused_nodes(model)
    names = _quantizable(model.graph)
    if not names:
        raise BundleError("the graph has no convolution or linear layer that INT8 is for; nothing was written")
    proto = onnx_ir.to_proto(model)
    proto.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")  # else it warns of itself
    waiting = iter(batches)
    reader: Any = types.SimpleNamespace(get_next=lambda: next(waiting, None))
    # activations without sign: VNNI multiplies those with signed weights
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / GRAPH
        quantization.quantize_static(
            proto,
            path,
            reader,
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=list(_LAYERS),
            nodes_to_quantize=names,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod.MinMax,
        )
        quantized: Any = onnx.load(path)
    del quantized.metadata_props[:]
    content: bytes = quantized.SerializeToString()
    return content


def _quantizable(graph: Any) -> list[str]:
    """Return the names of the convolutions and linear layers but for heads and positions.

    Heads are what lies between the last normalisation and the outputs, and what queries are chosen by. Products of
    two activations, such as attention scores, have no weights and are no layers.
    """
    # backwards from the outputs
    heads = set()
    waiting = [value.producer() for value in graph.outputs]
    while waiting:
        node = waiting.pop()
        if node is None or node in heads or node.op_type == "LayerNormalization":
            continue
        heads.add(node)
        waiting += [value.producer() for value in node.inputs if value is not None]
    # forwards: what follows on a layer of few features belongs to it
    found, narrow = [], set()
    for node in graph:
        if node.op_type not in _LAYERS or node in heads or node.inputs[1].const_value is None:
            continue
        before = node.inputs[0].producer()
        while before is not None and before.op_type in _BETWEEN:
            before = next((value.producer() for value in before.inputs if value.const_value is None), None)
        weights = node.inputs[1].const_value
        if node.op_type != "Conv" and (min(weights.shape) < _LEAST_FEATURES or before in narrow):
            narrow.add(node)
        else:
            found.append(node.name)
    return found


@dataclasses.dataclass(frozen=True)
class Int8Proof:
    """What INT8 costs and what it saves.

    Args:
        accuracy: AP of the INT8 graph, of the float32 one as ``torch_ap``, and their difference with its interval.
        times: Milliseconds of both graphs in each runtime.
        megabytes: Size of the float32 graph, and of the other.
        gate: AP points that may be lost, less than.
    """

    accuracy: Accuracy
    times: Times
    megabytes: tuple[float, float]
    gate: float

    @property
    def refusals(self) -> list[str]:
        """What speaks against it, in words; empty if nothing does."""
        found = []
        before, change = self.accuracy.torch_ap or 0.0, self.accuracy.change
        if before < _LEAST_AP:
            found.append(f"the model itself has AP {before:.4f}, so that nothing can be lost: it proves nothing")
        if change is None:
            found.append("too few images hold objects to say how sure the difference of AP is; give more of them")
        elif not -100 * change.value < self.gate:  # NaN is no proof either
            found.append(f"it costs {-100 * change.value:.2f} AP points, expected less than {self.gate:g}")
        best, other = (self.fastest(int8) for int8 in (True, False))
        if self.times[best] >= self.times[other]:
            found.append(f"it is not faster: {best} {self.times[best]:.1f} ms, {other} {self.times[other]:.1f} ms")
        return found

    def fastest(self, int8: bool) -> str:
        """Return the fastest way to run the INT8 graph, or to do without it."""
        return min((way for way in self.times if way.endswith(INT8) == int8), key=self.times.__getitem__)

    def lines(self) -> list[str]:
        """Return the figures for people."""
        sizes = "graph: {:.1f} MB, {:.1f} in INT8".format(*self.megabytes)
        lines = [self.accuracy.line(), *speed_lines(self.times), sizes]
        change = self.accuracy.change
        if change is not None and -100 * change.value < self.gate <= -100 * change.low:
            lines.append(
                f"not sure: the loss may be up to {-100 * change.low:.2f} AP points by the choice of images; "
                "measure on more of them"
            )
        return lines


def quantize_bundle(
    source: str | os.PathLike[str], out: Path, on: AccuracyData, options: Int8Options
) -> ExportResult:
    """Write the INT8 bundle of a float32 one, if it costs less AP than the gate and is faster than all else here.

    Args:
        source: Bundle in float32.
        out: A place for the other; see :func:`detrkit.export.write.prepared_place`.
        on: Data to measure AP on, without the images of the calibration.
        options: Where scales come from, and what may be lost.

    Raises:
        UsageError: The bundle cannot be quantised.
        DataError: The data cannot be read, or a split is too small to be shared out.
        BundleError: INT8 does not pay; the figures are in the message, and nothing was written.
    """
    # the bundle and its data
    bundle = read_bundle(source)
    record = bundle.manifest.graphs[0]
    if bundle.manifest.masks:
        raise UsageError(
            f"{bundle.manifest.name} has masks, of which INT8 is not measured: AP of boxes alone "
            "would say nothing of them; run it in float32, or in bf16 (@openvino-bf16)"
        )
    if record.outputs != "detections" or record.precision != "32" or record.weights_file:
        raise UsageError(f"{source} is not in float32 with detections as ONNX, which INT8 is made from")
    graph = bundle.read_graph()
    whole = Predictor(bundle, make_engine(graph))
    measured, calibrated = read_apart(whole, on, options.calibration)
    # the graph
    batches = list(calibration_batches(whole, calibrated))
    quantized = quantize_graph(graph, batches)
    pictures = {picture.file: bundle.read(picture.file) for picture in bundle.manifest.golden}
    scales = {"data": Path(on.data).name, "split": options.calibration, "images": len(calibrated.index)}
    manifest = msgspec.structs.replace(
        bundle.manifest,
        graphs=(msgspec.structs.replace(record, precision="int8", weights="32"),),
        provenance=msgspec.structs.replace(bundle.manifest.provenance, calibration=scales),
    )
    new = NewBundle.of(manifest, {record.file: quantized, **pictures})
    small = new.predictor(bundle.class_map, bundle.thresholds)
    # what it costs and saves
    accuracy = measure_accuracy(
        predictor_detector(small, "INT8"),
        measured,
        on,
        torch_detector=predictor_detector(whole, "float32"),
        paired=True,
    )
    times = time_graphs({"": graph, INT8: quantized}, _timed_batches(whole, measured))
    proof = Int8Proof(accuracy, times, (len(graph) / 1e6, len(quantized) / 1e6), options.gate)
    if refusals := proof.refusals:
        raise BundleError(
            "\n".join(["INT8 does not pay here, and nothing was written:", *refusals, *proof.lines()])
        )
    # what it finds, which other machines are held to
    golden = [bundle.picture(name) for name in pictures]
    manifest = msgspec.structs.replace(
        new.manifest, golden=tuple(map(golden_picture, pictures, small.detect(golden)))
    )
    new = dataclasses.replace(new, manifest=manifest)
    small = Predictor(dataclasses.replace(small.bundle, manifest=manifest), small.engine)
    _check_padding(small.bundle, quantized, [way.removesuffix(INT8) for way in times if way.endswith(INT8)])
    _, report = measure(small)
    report = msgspec.structs.replace(report, accuracy=accuracy, graph_ms=times)
    return ExportResult(out, new.write(out, report), None)


def _check_padding(bundle: Bundle, quantized: bytes, runtimes: Sequence[str]) -> None:
    """Check that the golden pictures' detections are found in padded batches too, in every runtime.

    Raises:
        BundleError: They are not, or a runtime cannot run the graph.
    """
    for name in runtimes:
        found = compare_golden(Predictor(bundle, make_engine(quantized, name)))
        if failures := golden_failures(found, tolerance_of(name, "int8")):
            raise BundleError(
                f"INT8 does not find in {name}, in padded batches, what it finds alone, and nothing was written: "
                + "; ".join(failures)
            )


def read_apart(predictor: Predictor, on: AccuracyData, calibration: str) -> tuple[Split, Split]:
    """Read the images to measure on and those to calibrate with, none of which is in both; the same every time."""
    detector = predictor_detector(predictor, "float32")
    measured = read_accuracy_split(detector, on)
    other = dataclasses.replace(on, split=calibration)
    calibrated = measured if calibration == on.split else read_accuracy_split(detector, other)
    # some that lie evenly in their split; of one that is shared out, at most every other
    own = {path: row for row, path in enumerate(_files(measured))}
    files = _files(calibrated)
    shared = sum(path in own for path in files)
    count = min(CALIBRATION_IMAGES, len(files) - (shared + 1) // 2)
    rows = np.unique(np.linspace(0, len(files) - 1, max(count, 1)).round().astype(int))
    taken = {own[files[row]] for row in rows if files[row] in own}
    rest = np.array([row for row in own.values() if row not in taken], dtype=np.int64)
    if not len(rest):
        raise DataError(
            f"{on.data}: {on.split} has no image besides those that INT8 is calibrated with; give another split"
        )
    return (
        dataclasses.replace(measured, index=measured.index.select(rest)) if taken else measured,
        dataclasses.replace(calibrated, index=calibrated.index.select(rows)),
    )


def _files(split: Split) -> list[Path]:
    folder = Path(split.files.images)
    return [(folder / split.index.file_name(row)).resolve() for row in range(len(split.index))]


def calibration_batches(predictor: Predictor, split: Split) -> Iterator[Batch]:
    """Yield inputs as in evaluation: images alone, and some two in a padded batch where the graph takes such."""
    waiting: list[tuple[np.ndarray, tuple[int, int]]] = []
    preprocessing = predictor.preprocessing
    pads = preprocessing.padding == "exact" and preprocessing.fixed_batch is None
    for number, image in enumerate(_images(predictor, split)):
        waiting.append((predictor.resize(image), image.shape[:2]))
        if not pads or number % _PADDED:
            resized, sizes = zip(*waiting, strict=True)
            yield make_inputs(resized, sizes, preprocessing)
            waiting = []
    if waiting:
        resized, sizes = zip(*waiting, strict=True)
        yield make_inputs(resized, sizes, preprocessing)


def _images(predictor: Predictor, split: Split) -> Iterator[np.ndarray]:
    """Yield the images of a split, uint8 ``[H, W, 3]``."""
    pixel_range = predictor.preprocessing.pixel_range
    dataset = CocoDataset(split.index, split.files.images, None, on_bad_image="error", pixel_range=pixel_range)
    for row in range(len(dataset)):
        yield dataset.read_image(row).permute(1, 2, 0).numpy()


def _timed_batches(predictor: Predictor, split: Split) -> list[Batch]:
    """Return some images of a split, each as a batch of its own."""
    rows = np.unique(np.linspace(0, len(split.index) - 1, _TIMED_IMAGES).round().astype(int))
    some = dataclasses.replace(split, index=split.index.select(rows))
    return [
        make_inputs([predictor.resize(image)], [image.shape[:2]], predictor.preprocessing)
        for image in _images(predictor, some)
    ]


def time_graphs(graphs: Mapping[str, bytes], batches: Sequence[Batch], threads: int | None = None) -> Times:
    """Time graphs in every runtime that is installed, and that this CPU can do.

    They take turns, so that what slows the machine for a while slows all alike, and the fastest run of each batch
    counts, which others on the machine slowed least.

    Args:
        graphs: Graphs by what is written behind the name of a runtime.
        batches: Inputs.
        threads: Threads of one run, as for :func:`make_engine`.
    """
    engines: dict[str, Engine] = {}
    for runtime in ENGINES:
        for suffix, graph in graphs.items():
            try:
                engines[runtime + suffix] = make_engine(graph, runtime, threads)
            except UsageError:  # not installed, or not on this CPU
                continue
    least = {way: [math.inf] * len(batches) for way in engines}
    start = time.perf_counter()
    for rounds in range(_MOST_ROUNDS):
        if rounds >= _LEAST_ROUNDS and time.perf_counter() - start > _TIME_S:
            break
        for number, batch in enumerate(batches):
            for way, engine in engines.items():
                before = time.perf_counter()
                engine.run(batch)
                least[way][number] = min(least[way][number], 1000 * (time.perf_counter() - before))
    return {way: round(float(np.mean(times)), 3) for way, times in least.items()}
