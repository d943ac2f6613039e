"""Exported DETR-R50 in every runtime against the paper authors' recipe, as transformers' eager float32 runs it.

``python -m benchmarks.runtimes`` prints Markdown; ``--clock cpu --threads 1`` counts the processor's time, for a
machine that others use.
"""

from __future__ import annotations

import argparse
import collections
import functools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.detr_speed import SIZE_HW, make_pair
from benchmarks.timing import Row, machine, time_in_turn
from detrkit.detectors.cost import count_cost
from detrkit.detectors.load import make_detector
from detrkit.detectors.stages import Stages
from detrkit.errors import DetrkitError
from detrkit.export.graph import GraphOptions
from detrkit.export.write import write_bundle
from detrkit.families.detr.family import DETR
from detrkit.families.detr.weights import coco_class_map
from detrkit.families.family import BuiltModel
from detrkit.families.recipes import preset_config
from detrkit.machine import this_machine, usable_cpus
from detrkit.runtimes.bundle import read_bundle
from detrkit.runtimes.cold_start import measure_cold_start
from detrkit.runtimes.engines import openvino_core
from detrkit.runtimes.predictor import Predictor, load, make_inputs

THEIRS = "transformers, eager float32"
RUNTIMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "openvino-bf16": "OpenVINO"}
TARGETS = {"ONNX Runtime float32": 2.3, "OpenVINO float32": 2.8, "OpenVINO bf16": 6.0}
MATRIX = 2048
_PAUSE_S = 0.2  # threads of the runtime before go on spinning for a while
_STREAM_RUNS = 12
_SMALL_SIZES_HW = ((480, 640), (640, 480), (480, 480), (300, 640))

Clock = Callable[[], float]


def competitors(
    bundles: Mapping[str, Path], threads: int, pixels: torch.Tensor
) -> tuple[dict[str, Callable[[], object]], Stages]:
    """Return what runs, by name, theirs first, and the stages of detrkit's eager model."""
    ours, theirs = make_pair()
    config = preset_config("detr-r50")
    DETR.prepare_inference(ours.eval())
    built = BuiltModel(ours.to(memory_format=torch.channels_last), DETR, config, coco_class_map())
    found: dict[str, Callable[[], object]] = {THEIRS: _transformers(theirs.eval(), pixels)}
    eager = {name: make_detector(built, device="cpu", precision=name).stages for name in ("32", "bf16")}
    for name, stages in eager.items():
        found[f"detrkit eager {name.replace('32', 'float32')}"] = _in_stages(stages, pixels)
    image = pixels.permute(1, 2, 0).contiguous().numpy()
    for name, runtime, path in _runs(bundles):
        try:
            predictor = load(path, runtime, threads)
        except DetrkitError as error:
            print(f"{name} is left out: {error}\n", flush=True)
            continue
        found[name] = lambda predictor=predictor: predictor.detect_together([image], [(480, 640)])  # type: ignore[misc]
    return found, eager["32"]


def _runs(bundles: Mapping[str, Path]) -> list[tuple[str, str, Path]]:
    """Return names, runtimes and bundles: the float32 one in all, others in OpenVINO."""
    runs = []
    for label, path in bundles.items():
        for runtime, program in RUNTIMES.items():
            if label == "float32":
                runs.append((f"{program} {'bf16' if runtime.endswith('bf16') else label}", runtime, path))
            elif runtime == "openvino":
                runs.append((f"{program} {label}", runtime, path))
    return runs


def _transformers(model: Any, pixels: torch.Tensor) -> Callable[[], object]:
    from transformers import DetrImageProcessor

    processor = DetrImageProcessor()
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (processor.image_mean, processor.image_std))

    def work() -> None:
        with torch.inference_mode():
            outputs = model(((pixels.float() / 255 - mean) / std)[None])
            processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=[(480, 640)])

    return work


def _in_stages(stages: Stages, pixels: torch.Tensor) -> Callable[[], object]:
    return lambda: stages.postprocess(stages.forward(stages.preprocess([pixels])), [(480, 640)])


def matrix_peaks(threads: int, clock: Clock) -> dict[str, float]:
    """Measure floating-point operations a second of square matrix products, by the precision's name."""
    torch.set_num_threads(threads)
    peaks = {}
    for name, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16)):
        one, other = (torch.randn(MATRIX, MATRIX).to(dtype) for _ in range(2))
        times = []
        for _ in range(9):
            start = clock()
            one @ other
            times.append(clock() - start)
        peaks[name] = 2 * MATRIX**3 / min(times)
    return peaks


def main_table(rows: Sequence[Row], flops: int, peaks: Mapping[str, float]) -> str:
    """Return medians, ratios, and shares of the peaks."""
    lines = [
        "| | median | min to max | times as fast | target | GFLOP/s | of float32 peak | of bf16 peak |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        rate = flops / row.median_s
        share = [f"{100 * rate / peaks[name]:.0f} %" for name in ("float32", "bf16")]
        target = f"{TARGETS[row.name]:.1f}" if row.name in TARGETS else ""
        median, least, most = (round(1000 * time_s) for time_s in (row.median_s, row.least_s, row.greatest_s))
        lines.append(
            f"| {row.name} | {median} ms | {least} to {most} ms | {row.ratio:.2f} | {target} "
            f"| {rate / 1e9:.0f} | {' | '.join(share)} |"
        )
    told = ", ".join(f"{rate / 1e9:.0f} GFLOP/s in {name}" for name, rate in peaks.items())
    bound = rows[0].median_s * peaks["bf16"] / flops
    lines += [
        "",
        f"One forward is {flops / 1e9:.0f} GFLOP (a multiplication and an addition are two). Measured peak of "
        f"products of {MATRIX} x {MATRIX} matrices: {told}. A bf16 model of only products, at that peak, would "
        f"be {bound:.1f} times as fast as the first row.",
    ]
    return "\n".join(lines)


def operator_table(bundle: Path, threads: int, pixels: np.ndarray, precisions: Sequence[str]) -> str:
    """Return where OpenVINO's time goes, by kind of operation."""
    core = openvino_core()
    lines = ["| | operation | ms | share |", "|---|---|---|---|"]
    height, width = pixels.shape[:2]
    for name in precisions:
        model = core.read_model(read_bundle(bundle).read_graph(), b"")
        model.reshape({"images": [1, height, width, 3], "sizes": [1, 2], "original_sizes": [1, 2]})
        settings = {
            "INFERENCE_PRECISION_HINT": name.replace("float32", "f32"),
            "PERF_COUNT": True,
            "INFERENCE_NUM_THREADS": threads,
        }
        request = core.compile_model(model, "CPU", settings).create_infer_request()
        size = np.array([[height, width]])
        spent: collections.Counter[str] = collections.Counter()
        runs = 4
        for number in range(runs):
            request.infer({"images": pixels[None], "sizes": size, "original_sizes": size})
            if number:  # the first warms up
                for one in request.get_profiling_info():
                    spent[one.node_type] += one.real_time.total_seconds() / (runs - 1)
        whole = sum(spent.values())
        for kind, seconds in spent.most_common(8):
            lines.append(f"| {name} | {kind} | {1000 * seconds:.1f} | {100 * seconds / whole:.0f} % |")
    return "\n".join(lines)


def stream_table(bundles: Mapping[str, Path], threads: int, pixels: np.ndarray) -> str:
    """Return images a second with one run at a time, and with as many as threads."""
    lines = [f"| | 1 stream, images/s | {threads} streams, images/s | times |", "|---|---|---|---|"]
    for name, runtime, path in _runs(bundles):
        try:
            predictors = {streams: load(path, runtime, threads, streams) for streams in (1, threads)}
        except DetrkitError:
            continue
        rates: dict[int, list[float]] = {streams: [] for streams in predictors}
        for number in range(4):  # the first warms up
            for streams, predictor in predictors.items():
                seconds = _many(predictor, [pixels] * _STREAM_RUNS)
                if number:
                    rates[streams].append(_STREAM_RUNS / seconds)
        one, more = (statistics.median(rates[streams]) for streams in predictors)
        lines.append(f"| {name} | {one:.2f} | {more:.2f} | {more / one:.2f} |")
    return "\n".join(lines)


def _many(predictor: Predictor, images: list[np.ndarray]) -> float:
    start = time.perf_counter()
    predictor.predict(images, threshold=0.5)
    return time.perf_counter() - start


def cold_table(bundles: Mapping[str, Path], threads: int) -> str:
    """Return the time and memory of a fresh process up to its first detections."""
    lines = ["| | load and first picture | peak memory |", "|---|---|---|"]
    for name, runtime, path in _runs(bundles):
        try:
            load(path, runtime, threads)
        except DetrkitError:
            continue
        cold = measure_cold_start(path, runtime, threads)
        lines.append(f"| {name} | {cold.seconds:.2f} s | {cold.peak_mb:.0f} MB |" if cold else f"| {name} | | |")
    return "\n".join(lines)


def small_table(bundle: Path, threads: int, repeats: int) -> str:
    """Return a small model's time from pixels to detections against its graph's alone, one picture and padded."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*size_hw, 3), dtype=np.uint8) for size_hw in _SMALL_SIZES_HW]
    lines = ["| | | graph alone | pixels to detections | times |", "|---|---|---|---|---|"]
    for runtime in RUNTIMES:
        try:
            predictor = load(bundle, runtime, threads)
        except DetrkitError:
            continue
        for name, some in (("one picture", images[:1]), (f"{len(images)} sizes, padded", images)):
            resized = [predictor.resize(image) for image in some]
            sizes = [(image.shape[0], image.shape[1]) for image in some]
            inputs = make_inputs(resized, sizes, predictor.preprocessing)
            work: dict[str, Callable[[], object]] = {
                "graph": functools.partial(predictor.engine.run, inputs),
                "whole": lambda some=some, sizes=sizes, predictor=predictor: predictor.detect_together(  # type: ignore[misc]
                    [predictor.resize(image) for image in some], sizes
                ),
            }
            for one in work.values():
                one()
            graph, whole = time_in_turn(work, repeats * 3)
            times = whole.median_s / graph.median_s
            medians = " | ".join(f"{1000 * row.median_s:.1f} ms" for row in (graph, whole))
            lines.append(f"| {runtime} | {name} | {medians} | {times:.2f} |")
    return "\n".join(lines)


def export_r50(folder: Path) -> Path:
    """Export detr-r50 with the random weights of :func:`benchmarks.detr_speed.make_pair`."""
    ours, _ = make_pair()
    built = BuiltModel(ours, DETR, preset_config("detr-r50"), coco_class_map())
    return write_bundle(built, folder / "detr-r50", name="detr-r50", options=GraphOptions()).path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=usable_cpus())
    parser.add_argument("--bundle", type=Path, help="float32 bundle of detr-r50; exported if not given")
    parser.add_argument("--int8", type=Path, help="INT8 bundle of the same")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--only", choices=("speed", "operators", "streams", "small", "cold"))
    parser.add_argument("--small", type=Path, help="bundle of a small model, for pixels to detections")
    arguments = parser.parse_args()
    threads, only = arguments.threads, arguments.only
    if arguments.clock == "cpu" and threads > 1:
        # On a busy machine threads of OpenMP spin until the others come: far longer in torch than in OpenVINO.
        parser.error("processor time of several threads counts their waiting too; give --threads 1")
    clock = time.perf_counter if arguments.clock == "wall" else time.process_time
    torch.set_num_threads(threads)
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, *SIZE_HW)).astype(np.uint8))
    image = pixels.permute(1, 2, 0).contiguous().numpy()
    programs = ", ".join(f"{name} {version(name)}" for name in ("onnxruntime", "openvino"))
    print(f"{machine()}\n- {this_machine()}; {programs}; load {os.getloadavg()[0]:.1f}; {arguments.clock} time\n")
    with tempfile.TemporaryDirectory() as folder:
        bundles = {"float32": arguments.bundle or export_r50(Path(folder))} if only != "small" else {}
        if arguments.int8:
            bundles["INT8"] = arguments.int8
        if only in (None, "speed"):
            work, stages = competitors(bundles, threads, pixels)
            rows = time_in_turn(work, arguments.repeats, pause_s=_PAUSE_S, clock=clock)
            flops = count_cost(stages, pixels).flops
            size = " x ".join(map(str, SIZE_HW))
            print(f"### detr-r50, one image of {size}, uint8 to boxes, {threads} threads\n", flush=True)
            print(main_table(rows, flops, matrix_peaks(threads, clock)), flush=True)
        if only in (None, "operators"):
            precisions = ("float32", "bf16")
            print(
                "\n### Where OpenVINO's time goes\n\n"
                + operator_table(bundles["float32"], threads, image, precisions)
            )
        if only in (None, "streams"):
            print("\n### Throughput\n\n" + stream_table(bundles, threads, image), flush=True)
        if arguments.small and only in (None, "small"):
            table = small_table(arguments.small, threads, arguments.repeats)
            print(f"\n### Around the graph\n\n{table}", flush=True)
        if only in (None, "cold"):
            print("\n### A fresh process\n\n" + cold_table(bundles, threads), flush=True)


if __name__ == "__main__":
    main()
