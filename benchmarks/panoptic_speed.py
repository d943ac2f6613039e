"""What the panoptic quality of many pictures costs, against panopticapi's loop in one process.

``python -m benchmarks.panoptic_speed --images 5000`` makes pictures of COCO's size and number of segments, PNG and
JSON files, and measures them as users do: from files for PQ alone, from files with AP of boxes and masks, and from
masks in memory, as of a model that has just run, where the annotated files are read in the first epoch alone.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from detrkit.api.evaluate import evaluate, panoptic_quality
from detrkit.config import Config
from detrkit.data.split import read_split
from detrkit.detectors.on_split import collect
from detrkit.detectors.results import ResultsFile
from detrkit.evaluation.coco import BoxEvaluator
from detrkit.evaluation.truth import ground_truth_from_index

CLASSES, STUFF = 133, 53
SIZE_HW = (480, 640)
DISTINCT = 200
"""Pictures that are drawn; more are copies of these, in files of their own."""


def write_side(root: Path, side: str, images: int, shift: int) -> Path:
    """Pictures of some 11 segments with soft edges; those of another shift are moved a little."""
    folder = root / side
    folder.mkdir(parents=True)
    rows, columns = np.mgrid[: SIZE_HW[0], : SIZE_HW[1]]
    annotations: list[dict[str, Any]] = []
    entries = []
    for number in range(1, images + 1):
        name = f"{number:06}"
        entries.append({"id": number, "file_name": f"{name}.jpg", "height": SIZE_HW[0], "width": SIZE_HW[1]})
        if number > DISTINCT:
            first = annotations[(number - 1) % DISTINCT]
            shutil.copyfile(folder / first["file_name"], folder / f"{name}.png")
            annotations.append({**first, "image_id": number, "file_name": f"{name}.png"})
            continue
        random = np.random.default_rng(number)
        ids = np.zeros(SIZE_HW, dtype=np.int32)
        kinds = {}
        for segment in range(1, 12):
            y, x, reach = random.uniform(0, 480), random.uniform(0, 640), random.uniform(30, 220)
            waves = reach * (
                1 + 0.15 * np.sin(columns / random.uniform(5, 30)) * np.cos(rows / random.uniform(5, 30))
            )
            inside = (rows - y - shift) ** 2 + (columns - x - shift) ** 2 < waves**2
            ids[inside] = segment * 1013
            kinds[segment * 1013] = int(random.integers(1, CLASSES + 1))
        Image.fromarray(np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1).astype(np.uint8)).save(
            folder / f"{name}.png"
        )
        present, counts = np.unique(ids, return_counts=True)
        infos = [
            {"id": segment, "category_id": kinds[segment], "iscrowd": 0, "area": area, "bbox": [0, 0, 10, 10]}
            for segment, area in zip(present.tolist(), counts.tolist(), strict=True)
            if segment
        ]
        annotations.append({"image_id": number, "file_name": f"{name}.png", "segments_info": infos})
    categories = [
        {"id": number, "name": f"class {number}", "isthing": int(number > STUFF)}
        for number in range(1, CLASSES + 1)
    ]
    content = {"images": entries, "annotations": annotations, "categories": categories}
    file = folder.with_suffix(".json")
    file.write_text(json.dumps(content), encoding="utf-8")
    return file


def reference(truth: Path, found: Path) -> float:
    """PQ of all classes by the loop that panopticapi is: two pictures, the pairs of ids, dictionaries."""
    sides = [json.loads(file.read_text(encoding="utf-8")) for file in (truth, found)]
    totals = np.zeros((CLASSES + 1, 4))
    for own, other in zip(sides[0]["annotations"], sides[1]["annotations"], strict=True):
        maps, segments = [], []
        for file, entry in ((truth, own), (found, other)):
            colors = np.array(Image.open(file.with_suffix("") / entry["file_name"]), dtype=np.uint32)
            maps.append(colors[:, :, 0] + 256 * colors[:, :, 1] + 256 * 256 * colors[:, :, 2])
            segments.append({segment["id"]: dict(segment) for segment in entry["segments_info"]})
        for label, count in zip(*np.unique(maps[1], return_counts=True), strict=True):
            if label:
                segments[1][int(label)]["area"] = int(count)
        both = maps[0].astype(np.uint64) * np.uint64(256**3) + maps[1].astype(np.uint64)
        pairs = {
            divmod(int(code), 256**3): int(count)
            for code, count in zip(*np.unique(both, return_counts=True), strict=True)
        }
        matched: list[set[int]] = [set(), set()]
        for (label, mine), shared in pairs.items():
            a, b = segments[0].get(label), segments[1].get(mine)
            if a is None or b is None or a["iscrowd"] or a["category_id"] != b["category_id"]:
                continue
            iou = shared / (a["area"] + b["area"] - shared - pairs.get((0, mine), 0))
            if iou > 0.5:
                totals[a["category_id"], :2] += iou, 1
                matched[0].add(label)
                matched[1].add(mine)
        missed = Counter(s["category_id"] for label, s in segments[0].items() if label not in matched[0])
        for kind, count in missed.items():
            totals[kind, 3] += count
        for label, segment in segments[1].items():
            if label not in matched[1] and pairs.get((0, label), 0) / segment["area"] <= 0.5:
                totals[segment["category_id"], 2] += 1
    whole = totals[:, 1] + (totals[:, 2] + totals[:, 3]) / 2
    return float((totals[:, 0][whole > 0] / whole[whole > 0]).mean())


def all_numbers(truth: Path, found: Path) -> float:
    """PQ as ``detrkit eval found.json --data truth.json --no-explain --resamples 0`` gives it beside AP."""
    panoptic = evaluate(found, truth, explain=False, resamples=0).panoptic
    assert panoptic is not None
    return panoptic.metrics.values["PQ"]


class Epochs:
    """Pictures in memory, measured as a training measures them after each epoch."""

    def __init__(self, truth: Path, found: Path):
        part = read_split(Config(), "val", truth, pixels=False, masks=True, stuff=True)
        collected = collect(ResultsFile(found), part)
        self.packed, self.classes = collected.packed(), collected.class_map
        self.truth = ground_truth_from_index(part.index)

    def measure(self) -> float:
        evaluator = BoxEvaluator(self.truth, self.classes)
        evaluator.add_packed(self.packed)
        return evaluator.finish_panoptic().values["PQ"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=500)
    arguments = parser.parse_args()
    spent: list[tuple[str, float, float, float]] = []

    def clock(name: str, measure: Callable[[], float]) -> None:
        start, cpu = time.perf_counter(), time.process_time()
        quality = measure()
        spent.append((name, quality, time.perf_counter() - start, time.process_time() - cpu))

    with tempfile.TemporaryDirectory() as folder:
        truth = write_side(Path(folder), "panoptic_val2017", arguments.images, 0)
        found = write_side(Path(folder), "panoptic_found", arguments.images, 6)
        clock("panopticapi's loop", lambda: reference(truth, found))
        clock("detrkit eval --pq", lambda: panoptic_quality(found, truth).values["PQ"])
        clock("detrkit eval --no-explain --resamples 0", lambda: all_numbers(truth, found))
        epochs = Epochs(truth, found)
        clock("pictures in memory, first epoch", epochs.measure)
        clock("pictures in memory, every later epoch", epochs.measure)
    print("| | PQ | s | CPU s | times panopticapi's speed |\n|---|---|---|---|---|")
    for name, quality, wall, cpu in spent:
        print(f"| {name} | {100 * quality:.6f} | {wall:.2f} | {cpu:.2f} | {spent[0][2] / wall:.1f} |")


if __name__ == "__main__":
    main()
