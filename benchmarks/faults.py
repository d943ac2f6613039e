"""Faults planted in a clean data set, and how many of each kind `detrkit data check` finds and names.

    python -m benchmarks.faults --data DIR

Each kind is planted alone, a few times, at random places of a copy; images are linked, so that a copy costs
nothing. Recall is the share of planted faults that are found under their name; precision the share of findings
under that name that were planted. What the clean set shows by itself is counted apart, and so are findings of
other kinds that came with a fault. The copy that ``--fix`` writes is checked too.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from detrkit.curation.check import CheckResult, Finding, Severity, examine
from detrkit.curation.fix import fix_data
from detrkit.data.formats import find_splits
from detrkit.data.formats.coco.write import write_coco
from detrkit.data.formats.output import WriteOptions
from detrkit.data.read import read_split_files
from tests.support.planting import PLANTERS, DataCopy, Key, Planter


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How one kind of fault fared.

    Args:
        kind: Of finding.
        words: What was done.
        planted: How many faults.
        precision: Share of new findings of the kind that were planted.
        recall: Share of planted faults that were found under the kind.
        others: Errors and warnings of other kinds that the fault alone does not explain.
        left: Errors and warnings that the repaired copy still has.
    """

    kind: str
    words: str
    planted: int
    precision: float
    recall: float
    others: tuple[str, ...]
    left: tuple[str, ...]


def prepare(data: Path, folder: Path) -> Path:
    """A copy of a data set in COCO layout, without what it has of errors and warnings by itself."""
    splits, sources = {}, {}
    for name, files in find_splits(data).items():
        index, _ = read_split_files(files)
        splits[name] = (index, files.images)
        if files.format == "coco":
            sources[name] = files.annotations
    written = folder / "written"
    write_coco(written, splits, WriteOptions(sources=sources))
    return fix_data(examine(written), folder / "clean").out


def run_kind(
    clean: Path,
    before: CheckResult,
    folder: Path,
    kind: str,
    planting: tuple[str, Planter, frozenset[str]],
    count: int,
    seed: int,
) -> Outcome | None:
    """Plant one kind of fault in a copy, check it, repair it, check that; None if the set has no place for it."""
    copied = folder / "spoiled"
    shutil.copytree(clean, copied, copy_function=os.link)
    for file in (copied / "annotations").iterdir():
        content = file.read_bytes()
        file.unlink()
        file.write_bytes(content)
    data = DataCopy(copied, np.random.default_rng(seed), count)
    words, planter, allowed = planting
    keys = planter(data)
    if not keys:
        shutil.rmtree(copied)
        return None
    data.save()
    checked = examine(copied)
    precision, recall = score(before, checked.result, kind, keys)
    others = new_alarms(before, checked.result, {kind, *allowed})
    fixed = fix_data(checked, folder / "fixed")
    left = tuple(sorted(f.kind for f in fixed.after.findings if f.severity is not Severity.NOTE))
    planted = sum(key[1] for key in keys if key[0] == "count") or len(keys)
    shutil.rmtree(copied)
    shutil.rmtree(folder / "fixed")
    return Outcome(kind, words, planted, precision, recall, others, left)


def score(before: CheckResult, after: CheckResult, kind: str, planted: set[Key]) -> tuple[float, float]:
    """Precision and recall of a kind; places where they are known, counts otherwise."""
    old, new = _find(before, kind), _find(after, kind)
    counts = [key[1] for key in planted if key[0] == "count"]
    if counts:
        found = (new.count if new else 0) - (old.count if old else 0)
        if kind.startswith("category_ids"):  # a statement on the whole list
            found = int(new is not None)
        good = min(found, counts[0])
        return (good / found if found > 0 else float(not counts[0])), good / counts[0]
    unit = next(iter(planted))[0]
    found_keys = _keys(new, unit) - _keys(old, unit)
    if kind == "near_duplicate_in_two_splits" or kind == "image_in_two_splits":
        found_keys = {key for key in found_keys if key[1] == next(iter(planted))[1]}
    good = len(found_keys & planted)
    return (good / len(found_keys) if found_keys else 0.0), good / len(planted)


def new_alarms(before: CheckResult, after: CheckResult, expected: set[str]) -> tuple[str, ...]:
    """Errors and warnings that were not there before and are not expected."""
    return tuple(
        sorted(
            finding.kind
            for finding in after.findings
            if finding.severity is not Severity.NOTE
            and finding.kind not in expected
            and finding.count > before.count(finding.kind)
        )
    )


def _find(result: CheckResult, kind: str) -> Finding | None:
    return next((finding for finding in result.findings if finding.kind == kind), None)


def _keys(finding: Finding | None, unit: str) -> set[Key]:
    if finding is None:
        return set()
    if unit == "annotation":
        return {(unit, place.split, place.annotation) for place in finding.locations}
    return {(unit, place.split, place.image) for place in finding.locations}


def run_all(data: Path, count: int = 5, seed: int = 0, kinds: Sequence[str] = ()) -> Iterator[Outcome]:
    """Every kind of fault, one after the other."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clean = prepare(data, folder)
        before = examine(clean).result
        for kind, planters in PLANTERS.items():
            for planting in planters:
                if not kinds or kind in kinds:
                    outcome = run_kind(clean, before, folder, kind, planting, count, seed)
                    if outcome is not None:
                        yield outcome


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="data set in any layout")
    parser.add_argument("--count", type=int, default=5, help="faults of a kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", action="append", default=[], help="only this kind; may repeat")
    given = parser.parse_args(arguments)
    print(f"{'kind':30} {'planted':26} {'n':>5} {'precision':>9} {'recall':>7}  also raised / left after --fix")
    for one in run_all(given.data, given.count, given.seed, given.kind):
        also = ", ".join(one.others) + (" / " + ", ".join(one.left) if one.left else "")
        print(
            f"{one.kind:30} {one.words:26} {one.planted:5} {one.precision:9.2f} {one.recall:7.2f}  {also}",
            flush=True,
        )


if __name__ == "__main__":
    main()
