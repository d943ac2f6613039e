"""How often preflight calls a sound data set faulty, over seeds and parts of it; planted faults are to be seen.

Asks what preflight asks of annotations and pixels, by the function that it calls itself; nothing is trained,
unless ``--training`` asks for whole preflights. Answers are kept in a file, a line each, so that a measurement may
be stopped and gone on with: ``python -m benchmarks.false_alarms --data FOLDER... --made FOLDER --kept FILE``
prints a table and exits with 1 where more than 1 % of the answers are false faults.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import os
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from benchmarks.uniform_sets import KINDS, write_set
from detrkit.config import Config, update_config
from detrkit.data.index import CocoIndex
from detrkit.data.split import Split, read_split
from detrkit.families.recipes import preset_config
from detrkit.preflight import evidence
from detrkit.preflight.report import CheckResult, Outcome
from detrkit.preflight.run import look_at_data, run_preflight

MOST = 0.01
PARTS = {"all": 1.0, "half": 0.5, "quarter": 0.25}
Change = Callable[[CocoIndex, np.random.Generator], CocoIndex]


def shifted(share: float) -> Change:
    """Return a fault: every box moved by a share of its own size."""

    def change(index: CocoIndex, random: np.random.Generator) -> CocoIndex:
        sizes = index.boxes_xyxy[:, 2:] - index.boxes_xyxy[:, :2]
        return dataclasses.replace(index, boxes_xyxy=index.boxes_xyxy + np.tile(share * sizes, 2))

    return change


def of_other_images(index: CocoIndex, random: np.random.Generator) -> CocoIndex:
    """Exchange the annotations of images of about the same size, an image with the seventh after it."""
    order = np.lexsort((np.arange(len(index)), index.sizes_hw[:, 0], index.sizes_hw[:, 1]))
    other = np.empty_like(order)
    other[order] = np.roll(order, 7)
    own = {name: getattr(index, name) for name in ("image_ids", "name_bytes", "name_offsets", "sizes_hw")}
    return _cut_off(dataclasses.replace(index.select(other), **own))


def _cut_off(index: CocoIndex) -> CocoIndex:
    """Cut off what sticks out of the images."""
    limits = np.tile(np.repeat(index.sizes_hw[:, ::-1], np.diff(index.offsets), axis=0), 2)
    return dataclasses.replace(index, boxes_xyxy=np.clip(index.boxes_xyxy, 0, limits))


def corners_as_size(index: CocoIndex, random: np.random.Generator) -> CocoIndex:
    """Read the right lower corner as width and height."""
    boxes = index.boxes_xyxy + np.pad(index.boxes_xyxy[:, :2], ((0, 0), (2, 0)))
    return _cut_off(dataclasses.replace(index, boxes_xyxy=boxes))


def x_as_y(index: CocoIndex, random: np.random.Generator) -> CocoIndex:
    """Exchange x and y."""
    return _cut_off(dataclasses.replace(index, boxes_xyxy=index.boxes_xyxy[:, [1, 0, 3, 2]]))


def labels_shuffled(index: CocoIndex, random: np.random.Generator) -> CocoIndex:
    """Exchange labels at random."""
    return dataclasses.replace(index, labels=random.permutation(index.labels))


def classes_turned(index: CocoIndex, random: np.random.Generator) -> CocoIndex:
    """Take every class for the next one, in this split alone."""
    return dataclasses.replace(index, labels=(index.labels + 1) % len(index.class_map))


PLANTS: Mapping[str, Change] = {
    "boxes half their size right and down": shifted(0.5),
    "boxes half their size left and up": shifted(-0.5),
    "boxes of other images": of_other_images,
    "corners as sizes": corners_as_size,
    "x and y exchanged": x_as_y,
    "labels shuffled": labels_shuffled,
    "classes off by one in train": classes_turned,
}


def ask(train: Split, val: Split, seed: int) -> list[CheckResult]:
    """Ask whether boxes and labels fit the pixels, as preflight does with a seed."""
    results: list[CheckResult] = []
    look_at_data(update_config(Config(), {"train.seed": seed}), train, val, results.extend)
    return results


def part_of(split: Split, share: float, seed: int) -> Split:
    """Return a random part of a split's images."""
    random = np.random.Generator(np.random.PCG64(seed))
    rows = np.sort(random.permutation(len(split.index))[: max(1, round(share * len(split.index)))])
    return dataclasses.replace(split, index=split.index.select(rows))


def remember() -> None:
    """Decode each image once and describe each patch once, whatever draws it: the same numbers, in less time."""
    described: dict[tuple[tuple[int, ...], bytes], np.ndarray] = {}
    describe = evidence._features

    def features(crop: Tensor) -> np.ndarray:
        key = tuple(crop.shape), hashlib.blake2b(crop.contiguous().numpy().tobytes(), digest_size=16).digest()
        if key not in described:
            described[key] = describe(crop)
        return described[key]

    evidence._features = features
    evidence.decode_image = functools.cache(evidence.decode_image)  # type: ignore[attr-defined]


def questions(data: Path, seed: int) -> Iterator[tuple[str, str, Callable[[], list[CheckResult]]]]:
    """Yield part, planted fault or an empty text, and the question."""
    splits = [read_split(Config(), name, str(data)) for name in ("train", "val")]
    for part, share in PARTS.items():
        train, val = (part_of(split, share, 2 * seed + number) for number, split in enumerate(splits))
        yield part, "", functools.partial(ask, train, val, 100 * seed)
    random = np.random.Generator(np.random.PCG64(seed))
    for name, change in PLANTS.items() if seed == 0 else ():
        wrong = dataclasses.replace(splits[0], index=change(splits[0].index, random))
        yield "all", name, functools.partial(ask, wrong, splits[1], 100 * seed)


def train_a_little(data: Path, seed: int) -> list[CheckResult]:
    """Ask everything, a handful of images over-fitted included."""
    sizes = {"transforms.eval_size": 128, "transforms.scales": [128], "data.workers": 0}
    changes = {"data.root": str(data), "train.seed": seed, **sizes}
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()):
        config = update_config(preset_config("detr-tiny"), changes)
        return list(run_preflight(config, Path(out), budget_s=2.0, say=lambda _line: None).results)


def table(kept: list[dict[str, object]]) -> tuple[list[str], int, int]:
    """Return the lines of the table, the sound answers and the false faults of them."""
    by_set: defaultdict[str, list[dict[str, object]]] = defaultdict(list)
    seen: defaultdict[str, Counter[bool]] = defaultdict(Counter)
    for answer in kept:
        if answer["planted"]:
            seen[str(answer["planted"])][bool(answer["faults"])] += 1
        else:
            by_set[str(answer["set"])].append(answer)
    lines = ["| sound set | answers | faults | warnings |", "|---|---|---|---|"]
    for name, answers in by_set.items():
        words = [", ".join(sorted({str(x) for a in answers for x in a[key]})) for key in ("faults", "warnings")]  # type: ignore[attr-defined]
        counts = [sum(bool(answer[key]) for answer in answers) for key in ("faults", "warnings")]
        told = [f"{count} ({word})" if count else "0" for count, word in zip(counts, words, strict=True)]
        lines.append(f"| {name} | {len(answers)} | {told[0]} | {told[1]} |")
    lines += ["", "| planted fault | answers | called a fault |", "|---|---|---|"]
    lines += [f"| {name} | {sum(found.values())} | {found[True]} |" for name, found in seen.items()]
    sound = [answer for answers in by_set.values() for answer in answers]
    return lines, len(sound), sum(bool(answer["faults"]) for answer in sound)


def main() -> None:
    """Measure the rates."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, nargs="*", default=[], help="folders of sound data sets")
    parser.add_argument("--made", type=Path, required=True, help="folder to draw coins and faces into")
    parser.add_argument("--kept", type=Path, required=True, help="file of the answers")
    parser.add_argument("--seeds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long")
    parser.add_argument("--training", action="store_true", help="whole preflights, which train a little")
    arguments = parser.parse_args()
    end = time.monotonic() + arguments.seconds
    kept = [json.loads(line) for line in arguments.kept.open()] if arguments.kept.exists() else []
    known = {(answer["set"], answer["part"], answer["planted"], answer["seed"]) for answer in kept}
    sets = {data.name: data for data in arguments.data}
    sets |= {name: write_set(arguments.made / name.replace(" ", "_"), kind) for name, kind in KINDS.items()}
    remember()
    with arguments.kept.open("a", encoding="utf-8") as file:
        for seed, (name, data) in ((seed, item) for seed in range(arguments.seeds) for item in sets.items()):
            whole = ("whole", "", functools.partial(train_a_little, data, 100 * seed))
            for part, planted, question in [whole] if arguments.training else questions(data, seed):
                if (name, part, planted, seed) in known or time.monotonic() > end:
                    continue
                found = question()
                words = {"faults": Outcome.FAULT, "warnings": Outcome.WARNING}
                told = {key: [r.name for r in found if r.outcome is outcome] for key, outcome in words.items()}
                answer = {"set": name, "part": part, "planted": planted, "seed": seed, **told}
                kept.append(answer)
                file.write(json.dumps(answer) + "\n")
                file.flush()
    lines, answers, false = table(kept)
    print(*lines, "", f"false faults: {false} of {answers}", sep=os.linesep)
    sys.exit(int(false > MOST * answers))


if __name__ == "__main__":
    main()
