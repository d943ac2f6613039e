"""Reading an annotation file of the size of COCO's instances_train2017: time and peak memory.

    python -m benchmarks.annotations

The file is made here: 118,287 images, 860,001 annotations with polygons of COCO's length, some 450 MB. Each reader
runs in a process of its own, so that its peak is its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

IMAGES, ANNOTATIONS = 118_287, 860_001

DETRKIT = """
import resource, sys, time
from pathlib import Path
from detrkit.data.read import read_coco
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
index, report = read_coco(Path(sys.argv[1]), Path(sys.argv[2]))
seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(seconds, peak / 2**20, len(index.labels), before / 2**20)
"""
PYCOCOTOOLS = """
import contextlib, io, resource, sys, time
from pycocotools.coco import COCO
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
with contextlib.redirect_stdout(io.StringIO()):
    coco = COCO(sys.argv[1])
seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(seconds, peak / 2**20, len(coco.anns), before / 2**20)
"""


def write_large(folder: Path, images: int = IMAGES, annotations: int = ANNOTATIONS) -> Path:
    """Write a COCO JSON file of that size, and an empty file for every image."""
    random = np.random.Generator(np.random.PCG64(0))
    (folder / "train2017").mkdir()
    names = [f"{number:012d}.jpg" for number in range(1, images + 1)]
    for name in names:
        (folder / "train2017" / name).touch()
    path = folder / "instances_train2017.json"
    with path.open("w", encoding="utf-8") as file:
        file.write('{"info": {"year": 2017}, "licenses": [], "images": [')
        file.write(
            ", ".join(
                json.dumps(
                    {
                        "license": 3,
                        "file_name": name,
                        "coco_url": f"http://images.cocodataset.org/train2017/{name}",
                        "height": 480,
                        "width": 640,
                        "date_captured": "2013-11-14 11:18:45",
                        "flickr_url": f"http://farm9.staticflickr.com/8186/{name}",
                        "id": number,
                    }
                )
                for number, name in enumerate(names, start=1)
            )
        )
        file.write('], "annotations": [')
        for start in range(0, annotations, 10_000):
            count = min(10_000, annotations - start)
            refs = random.integers(1, images + 1, count)
            boxes = np.round(random.uniform(1, 300, (count, 4)), 2)
            points = np.round(random.uniform(0, 480, (count, 44)), 2)
            classes = random.integers(1, 81, count)
            file.write(", " if start else "")
            file.write(
                ", ".join(
                    json.dumps(
                        {
                            "segmentation": [points[row].tolist()],
                            "area": float(boxes[row, 2] * boxes[row, 3]) * 0.6,
                            "iscrowd": 0,
                            "image_id": int(refs[row]),
                            "bbox": boxes[row].tolist(),
                            "category_id": int(classes[row]),
                            "id": start + row + 1,
                        }
                    )
                    for row in range(count)
                )
            )
        categories = [
            {"supercategory": "thing", "id": number, "name": f"class {number}"} for number in range(1, 81)
        ]
        file.write('], "categories": ' + json.dumps(categories) + "}")
    return path


def measure(code: str, path: Path, images: Path) -> tuple[float, float]:
    """Seconds and GiB of peak resident memory of reading in a new process, imports not counted in the time."""
    command = [sys.executable, "-W", "ignore", "-c", code, str(path), str(images)]
    seconds, peak, found, _before = map(
        float, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    )
    if found != ANNOTATIONS:
        raise AssertionError(f"{found:.0f} annotations were read, expected {ANNOTATIONS}")
    return seconds, peak


def reading_table(repeats: int) -> str:
    """Medians of detrkit and pycocotools as a Markdown table."""
    lines = ["| | s | peak memory | times as fast |", "|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        path = write_large(Path(folder))
        medians = {}
        for name, code in (("pycocotools", PYCOCOTOOLS), ("detrkit", DETRKIT)):
            runs = [measure(code, path, path.parent / "train2017") for _ in range(repeats)]
            medians[name] = [float(np.median([run[part] for run in runs])) for part in (0, 1)]
    for name, (seconds, peak) in medians.items():
        ratio = medians["pycocotools"][0] / seconds
        lines.append(f"| {name} | {seconds:.1f} | {peak:.2f} GiB | {ratio:.2f} |")
    note = f"{ANNOTATIONS:,} annotations with polygons, {IMAGES:,} images; peak with torch and all other imports."
    return "\n".join([*lines, "", note])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    print(reading_table(parser.parse_args().repeats))


if __name__ == "__main__":
    main()
