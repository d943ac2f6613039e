"""How often preflight calls a sound data set faulty, over seeds and halves of it; planted faults are to be seen.

Asks the questions about data alone; nothing is trained. ``python -m benchmarks.false_alarms --data DATA`` prints a
line for each set and exits with 1 where more than 1 % of the answers are false faults.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from detrkit.config import Config
from detrkit.data.index import CocoIndex
from detrkit.data.split import read_split
from detrkit.preflight.data_questions import check_boxes_and_labels, check_offset
from detrkit.preflight.evidence import collect_patches, offset_evidence
from detrkit.preflight.report import CheckResult, Outcome

MOST = 0.01


def ask(index: CocoIndex, images: Path, seed: int) -> list[CheckResult]:
    """Ask whether boxes and labels fit the pixels, as preflight does with a seed."""
    draw = functools.cache(lambda number: collect_patches(index, images, seed=seed + number))
    found = check_boxes_and_labels("train", draw)
    if any(result.outcome is Outcome.FAULT for result in found):
        return found
    return found + check_offset("train", lambda number: offset_evidence(index, images, seed=seed + number))


def planted(index: CocoIndex) -> dict[str, CocoIndex]:
    """Return the same set with boxes half their size off, and with labels shuffled."""
    sizes = index.boxes_xyxy[:, 2:] - index.boxes_xyxy[:, :2]
    random = np.random.Generator(np.random.PCG64(0))
    return {
        "half off": dataclasses.replace(index, boxes_xyxy=index.boxes_xyxy + np.tile(sizes / 2, 2)),
        "labels shuffled": dataclasses.replace(index, labels=random.permutation(index.labels)),
    }


def main() -> None:
    """Measure the rates."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders of sound data sets")
    parser.add_argument("--seeds", type=int, default=10)
    arguments = parser.parse_args()
    answers, false = 0, 0
    for data in arguments.data:
        part = read_split(Config(), "train", str(data))
        outcomes: Counter[str] = Counter()
        seen: Counter[str] = Counter()
        for seed in range(arguments.seeds):
            # all of the set, and a random half of its images
            random = np.random.Generator(np.random.PCG64(seed))
            half = np.sort(random.permutation(len(part.index))[: len(part.index) // 2])
            for index in (part.index, part.index.select(half)):
                results = ask(index, part.files.images, 100 * seed)
                outcomes.update(f"{r.outcome} {r.name}" for r in results if r.outcome in ("fault", "warning"))
                answers += 1
                false += any(result.outcome is Outcome.FAULT for result in results)
            if seed < 2:
                for name, wrong in planted(part.index).items():
                    results = ask(wrong, part.files.images, 100 * seed)
                    seen[f"{name}: {any(result.outcome is Outcome.FAULT for result in results)}"] += 1
        print(f"{data.name}: {dict(outcomes) or 'no alarm'} in {2 * arguments.seeds}; planted seen: {dict(seen)}")
        sys.stdout.flush()
    print(f"false faults: {false} of {answers}")
    sys.exit(int(false > MOST * answers))


if __name__ == "__main__":
    main()
