"""Every preset, exported and compared with torch on real pictures: ``python -m benchmarks.export_parity``.

Random weights, spread so that scores cover 0 to 1 and a picture's detections are not its neighbour's: the column
"neighbour's" is the share of detections that would be found again were each picture exchanged for the next. A run
folder in place of a preset has its own weights. "Near ties" counts pictures in which a two-stage model's choice of
queries hangs on the last digits of float32; there a runtime may find what torch finds with either choice.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch

from detrkit.api.export import export_bundle
from detrkit.config import update_config
from detrkit.detectors.load import load_detector
from detrkit.families.detr.weights import coco_class_map
from detrkit.families.presets import PRESETS
from detrkit.families.recipes import preset_config
from detrkit.runtimes.compare import FLOOR, TOLERANCES, Difference, compare_detections
from detrkit.runtimes.engines import EXACT
from detrkit.runtimes.predictor import load
from tests.support.exporting import detect_alone, differences, near_ties, random_detector, real_pictures

COLUMNS = (
    *("preset", "short side", "export s", "MB", "peak GiB", "pictures"),
    *("scores 10, 50, 90 %", "neighbour's", "near ties"),
)


def row(preset: str, data: Path, side: int | None, count: int, batch: int, runtimes: list[str]) -> str:
    """Export a preset, compare it in every runtime, and return its row of the table."""
    if preset in PRESETS:
        config = preset_config(preset)
        changes = {"model.backbone_norm": "frozen"} if config.model.backbone_norm == "auto" else {}
        if side is not None:
            changes |= {"transforms.eval_size": side, "transforms.max_size": side * 1333 // 800}
        detector = random_detector(update_config(config, changes), coco_class_map())
    else:
        detector = load_detector(preset, device="cpu")
    pictures = real_pictures(data, count)
    expected = detect_alone(detector, pictures)
    ties = near_ties(detector, pictures)
    scores = np.concatenate([found.scores[found.scores >= FLOOR] for found in expected])
    neighbours = [
        compare_detections(one, other, TOLERANCES["openvino"])
        for one, other in zip(expected, [*expected[1:], expected[0]], strict=True)
    ]
    total = sum(neighbours, Difference())
    with tempfile.TemporaryDirectory() as folder:
        made = export_bundle(detector, Path(folder) / "bundle.zip")
        shape = (made.manifest.report.export_s, f"{made.path.stat().st_size / 1e6:.1f}")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        cells = [
            Path(preset).name,
            str(detector.config.transforms.eval_size) if detector.config else "",
            *map(str, shape),
            f"{peak:.1f}",
            str(len(pictures)),
            ", ".join(f"{part:.2f}" for part in np.quantile(scores, (0.1, 0.5, 0.9))),
            f"{1 - total.missing / total.detections:.1%}",
            str(len(ties)),
        ]
        for runtime in runtimes:
            predictor = load(made.path, runtime)
            found = differences(
                expected,
                predictor,
                pictures,
                TOLERANCES[runtime],
                ties=ties,
                batch=batch,
                say=lambda t: print(t, file=sys.stderr),
            )
            cells.append(f"{found.missing} of {found.detections}; {found.score:.1e}; {found.box:.1e} px")
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("presets", nargs="*", default=list(PRESETS), help="presets or run folders")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the real data sets")
    parser.add_argument("--side", type=int, help="short side in pixels; the preset's own if not given")
    parser.add_argument("--pictures", type=int, default=44, help="besides four odd ones")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--runtime", action="append", choices=list(TOLERANCES))
    asked = parser.parse_args()
    runtimes = asked.runtime or list(EXACT)
    heads = [*COLUMNS, *(f"{runtime}: not found, score, box" for runtime in runtimes)]
    print(
        f"torch {torch.__version__}",
        "| " + " | ".join(heads) + " |",
        "|---" * len(heads) + "|",
        sep="\n",
        flush=True,
    )
    # a process each, so that peak memory is its own
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as processes:
        for preset in asked.presets:
            job = processes.submit(row, preset, asked.data, asked.side, asked.pictures, asked.batch, runtimes)
            print(job.result(), flush=True)


if __name__ == "__main__":
    main()
