"""What an evaluation of 5,000 images with 100 detections each takes, step by step: seconds and memory.

Every step runs in a process of its own, ``python -m benchmarks.evaluation --step NAME``, on the same made-up set,
so that the greatest memory is the step's (with what comes before it: torch's import, the set, the matching). It is
the kernel's highest mark of the process (VmHWM), which, unlike ``ru_maxrss``, a parent does not hand down.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from detrkit.classes import ClassMap
from detrkit.evaluation.evaluator import CocoEvaluator
from detrkit.evaluation.truth import CocoTruth
from detrkit.types import ImageDetections

if TYPE_CHECKING:
    from detrkit.evaluation.analysis import Evaluation

SIDE = 640
CLASSES = 80
RESAMPLES = 1000
PEER = "pycocotools, AP alone"


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a step took.

    Args:
        seconds: Of the step alone.
        peak_gib: Of its process, start to end.
    """

    seconds: float
    peak_gib: float


def made_up_set(images: int = 5000, per_image: int = 100, seed: int = 0) -> CocoEvaluator:
    """Objects like COCO's in number and classes; each is found, more or less well, among much that is wrong."""
    random = np.random.default_rng(seed)
    counts = np.minimum(random.poisson(7.3, images), per_image)
    image_rows = np.repeat(np.arange(images), counts)
    class_ids = np.minimum(random.geometric(0.06, len(image_rows)) - 1, CLASSES - 1)
    sides = random.uniform(10, 200, (len(image_rows), 2))
    boxes = np.concatenate([random.uniform(0, 400, sides.shape), sides], axis=1)
    names = tuple(f"class {number}" for number in range(CLASSES))
    truth = CocoTruth(
        image_ids=np.arange(1, images + 1),
        sizes_hw=np.full((images, 2), SIDE),
        image_rows=image_rows,
        class_ids=class_ids,
        boxes_xywh=boxes,
        area=boxes[:, 2] * boxes[:, 3],
        iscrowd=random.random(len(image_rows)) < 0.01,
        class_map=ClassMap(names, tuple(range(1, CLASSES + 1))),
    )
    evaluator = CocoEvaluator(truth)
    ends = np.cumsum(counts)
    for row, (end, count) in enumerate(zip(ends.tolist(), counts.tolist(), strict=True)):
        own = slice(end - count, end)
        found = random.uniform(0, 400, (per_image, 4))
        found[:, 2:] = random.uniform(5, 200, (per_image, 2))
        found[:count] = boxes[own] + random.normal(0, 0.08, (count, 4)) * np.tile(sides[own], 2)
        found[:, 2:] = np.maximum(found[:, 2:], 1) + found[:, :2]
        labels = random.integers(0, CLASSES, per_image)
        labels[:count] = np.where(random.random(count) < 0.85, class_ids[own], labels[:count])
        scores = random.random(per_image) * 0.5
        scores[:count] = random.beta(4, 2, count)
        evaluator.add(row + 1, ImageDetections(found.astype(np.float32), scores.astype(np.float32), labels))
    return evaluator


def peer(evaluator: CocoEvaluator, results: Path) -> float:
    """pycocotools' AP of the same files."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = evaluator.truth
    columns = (truth.image_rows, truth.class_ids, truth.boxes_xywh, truth.area, truth.iscrowd)
    reference = COCO()
    reference.dataset = {
        "images": [{"id": image_id, "height": SIDE, "width": SIDE} for image_id in truth.image_ids.tolist()],
        "categories": [{"id": number + 1, "name": name} for number, name in enumerate(truth.class_map.names)],
        "annotations": [
            {"id": number + 1, "image_id": row + 1, "category_id": class_id + 1, "bbox": box, "area": area}
            | {"iscrowd": int(crowd)}
            for number, (row, class_id, box, area, crowd) in enumerate(
                zip(*(column.tolist() for column in columns), strict=True)
            )
        ],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        reference.createIndex()
        evaluation = COCOeval(reference, reference.loadRes(str(results)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])


def analyzed(evaluator: CocoEvaluator, resamples: int) -> Evaluation:
    """All of it, but latency and pictures."""
    from detrkit.evaluation.analysis import analyze

    return analyze(evaluator, resamples=resamples)


def step(name: str, evaluator: CocoEvaluator, resamples: int, folder: Path) -> Callable[[], object]:
    """What is timed; whatever it needs is made before."""
    if name == "12 numbers (hotcoco)":
        return evaluator.finish
    if name == "matching":
        return evaluator.matches
    if name.startswith("everything"):
        return functools.partial(analyzed, evaluator, 0 if name == "everything but the bootstrap" else resamples)
    if name == "files and report":
        from detrkit.evaluation.report import write_evaluation

        return functools.partial(write_evaluation, folder / "eval", analyzed(evaluator, LEAST), evaluator)
    if name == PEER:
        evaluator.write_results_json(folder / "results.json")
        return functools.partial(peer, evaluator, folder / "results.json")
    return functools.partial(_ANALYSES[name], evaluator.matches(), resamples)


def _bootstrap(matches: Any, resamples: int) -> object:
    from detrkit.evaluation.bootstrap import bootstrap

    return bootstrap(matches, resamples)


def _paired(matches: Any, resamples: int) -> object:
    from detrkit.evaluation.bootstrap import paired_bootstrap

    return paired_bootstrap(matches, matches, resamples)


def _errors(matches: Any, _resamples: int) -> object:
    from detrkit.evaluation.error_types import classify_errors

    return classify_errors(matches)


def _curves(matches: Any, _resamples: int) -> object:
    from detrkit.evaluation.score_curves import score_curves

    return score_curves(matches)


def _overlaps(matches: Any, _resamples: int) -> object:
    from detrkit.evaluation.overlaps import overlaps

    return overlaps(matches)


def _confusion(matches: Any, _resamples: int) -> object:
    from detrkit.evaluation.confusion import confusion

    return confusion(matches)


def _calibration(matches: Any, _resamples: int) -> object:
    from detrkit.evaluation.calibration import calibrate

    return calibrate(matches)


LEAST = 10  # resamples, where intervals are needed but not timed
_ANALYSES: dict[str, Callable[[Any, int], object]] = {
    "error types": _errors,
    "precision, recall and F1 by score": _curves,
    "overlaps": _overlaps,
    "confusion matrix": _confusion,
    "calibration": _calibration,
    f"bootstrap, {RESAMPLES:,} resamples": _bootstrap,
    f"paired bootstrap of two models, {RESAMPLES:,} resamples": _paired,
}
STEPS = (
    PEER,
    "12 numbers (hotcoco)",
    "matching",
    *_ANALYSES,
    "everything but the bootstrap",
    f"everything, {RESAMPLES:,} resamples",
    "files and report",
)


def measure(name: str, images: int, per_image: int, resamples: int) -> Cost:
    """Take one step in this process."""
    evaluator = made_up_set(images, per_image)
    with tempfile.TemporaryDirectory() as folder:
        work = step(name, evaluator, resamples, Path(folder))
        start = time.perf_counter()
        work()
        seconds = time.perf_counter() - start
    return Cost(seconds, peak_gib())


def peak_gib() -> float:
    """Most memory this process has held."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 2**20
    raise OSError("/proc/self/status names no VmHWM; memory is measured on Linux only")


def costs(images: int = 5000, per_image: int = 100, resamples: int = RESAMPLES) -> dict[str, Cost]:
    """Every step in a process of its own, one after the other."""
    measured = {}
    for name in STEPS:
        command = [sys.executable, "-m", "benchmarks.evaluation", "--step", name, "--images", str(images)]
        command += ["--per-image", str(per_image), "--resamples", str(resamples)]
        result = subprocess.run(command, check=True, capture_output=True, text=True)
        measured[name] = Cost(**json.loads(result.stdout.splitlines()[-1]))
        print(f"{name}: {measured[name].seconds:.2f} s", file=sys.stderr)
    return measured


def costs_table(measured: dict[str, Cost]) -> str:
    """A Markdown table."""
    lines = ["| | s | peak memory of the process |", "|---|---|---|"]
    lines += [f"| {name} | {cost.seconds:.2f} | {cost.peak_gib:.2f} GiB |" for name, cost in measured.items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--step", choices=STEPS, help="one step, in this process, as JSON")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--per-image", type=int, default=100)
    parser.add_argument("--resamples", type=int, default=RESAMPLES)
    arguments = parser.parse_args()
    size = (arguments.images, arguments.per_image, arguments.resamples)
    if arguments.step:
        print(json.dumps(dataclasses.asdict(measure(arguments.step, *size))))
    else:
        print(costs_table(costs(*size)))


if __name__ == "__main__":
    main()
