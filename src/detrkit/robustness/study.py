"""AP of a detector on corrupted images, by corruption and severity (arXiv:1907.07484)."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detrkit.checkpoint import weights_digest
from detrkit.data.split import Split
from detrkit.detectors.on_split import EvalTarget, collect
from detrkit.errors import UsageError
from detrkit.evaluation.truth import ground_truth_from_index
from detrkit.robustness.corruptions import COMMON, SEVERITIES, Corruption, check_corruption, check_severity
from detrkit.robustness.journal import Journal

CLEAN = "clean"

Values = Mapping[str, float | None]
"""The twelve COCO numbers, 0 to 1; None where there is nothing to measure."""


@dataclasses.dataclass(frozen=True)
class Robustness:
    """How AP falls as images get worse.

    Args:
        model: What people call it.
        data: Where the annotations lie.
        images: Of the split.
        severities: That were tried, ascending.
        seed: Of the corruptions' randomness.
        clean: On the images as they are.
        cells: On corrupted ones, by corruption and severity.
    """

    model: str
    data: str
    images: int
    severities: tuple[int, ...]
    seed: int
    clean: Values
    cells: Mapping[str, Mapping[int, Values]]

    def mean(self, corruption: str, metric: str = "AP") -> float | None:
        """Over the severities of a corruption; None where a number is undefined."""
        return _mean([self.cells[corruption][severity][metric] for severity in self.severities])

    def mpc(self, metric: str = "AP") -> float | None:
        """Mean performance under corruption: over corruptions of the mean over severities."""
        return _mean([self.mean(corruption, metric) for corruption in self.cells])

    def rpc(self, metric: str = "AP") -> float | None:
        """Relative performance under corruption: the share of the clean performance that is left."""
        clean, corrupted = self.clean[metric], self.mpc(metric)
        return corrupted / clean if clean and corrupted is not None else None

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "model": self.model,
            "data": self.data,
            "images": self.images,
            "severities": list(self.severities),
            "seed": self.seed,
            "mPC": self.mpc(),
            "rPC": self.rpc(),
            "clean": dict(self.clean),
            "corruptions": [
                {
                    "name": name,
                    "AP": self.mean(name),
                    "severities": {str(severity): dict(values) for severity, values in by_severity.items()},
                }
                for name, by_severity in self.cells.items()
            ],
        }

    def lines(self) -> list[str]:
        """A table for people."""
        heads = "".join(f"{f'AP at {severity}':>9}" for severity in self.severities)
        lines = [f"{'corruption':16}{heads}{'mean':>9}"]
        lines.append(f"{'none':16}{'':{9 * len(self.severities)}}{_percent(self.clean['AP']):>9}")
        for name, by_severity in self.cells.items():
            row = "".join(f"{_percent(by_severity[severity]['AP']):>9}" for severity in self.severities)
            lines.append(f"{name:16}{row}{_percent(self.mean(name)):>9}")
        lines.append(f"mPC {_percent(self.mpc())}, rPC {_percent(self.rpc())} of the clean AP, in percent")
        return lines


def evaluate_corruptions(
    subject: EvalTarget,
    split: Split,
    corruptions: Sequence[str] = COMMON,
    severities: Sequence[int] = SEVERITIES,
    *,
    seed: int = 0,
    batch_size: int | None = None,
    journal: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] = lambda _line: None,
) -> Robustness:
    """Evaluate a detector on clean images and on corrupted ones, each time on the whole split.

    Args:
        subject: What detects; it must run.
        split: Images and annotations, which hold for corrupted images too.
        corruptions: Names, see :mod:`detrkit.robustness.corruptions`.
        severities: 1 to 5.
        seed: Of the corruptions' randomness.
        batch_size: Images at once.
        journal: File that gets each result as soon as it is there; results that it holds are not measured again.
        progress: Called with images done and images in all, over all evaluations.
        say: Where messages for people go.

    Raises:
        UsageError: A name or severity is unknown, the subject does not run, or the journal is of another study.
        DataError: No class of the subject is a class of the split, or an image cannot be read.
    """
    wanted = _wanted(corruptions, severities)
    if subject.stages is None:
        raise UsageError(f"{subject.name} is a file of detections; corrupted images need a model that runs")
    book = None if journal is None else Journal(journal, _study(subject, split, seed))
    known: dict[str, Any] = {} if book is None else book.results
    truth = ground_truth_from_index(split.index)
    count, total = len(split.index), len(split.index) * len(wanted)
    results: dict[str, Values] = {}
    if any(name in known for name in wanted):
        say(f"{journal} holds {sum(name in known for name in wanted)} of {len(wanted)} results; going on")
    for number, (name, cell) in enumerate(wanted.items()):
        if name not in known:
            counted = None if progress is None else _offset(progress, number * count, total)
            change = None if cell is None else Corruption(*cell, seed=seed)
            collected = collect(
                subject, split, truth=truth, batch_size=batch_size, progress=counted, change=change
            )
            metrics = collected.finish()
            written = metrics.to_dict()
            known[name] = {key: written[key] for key in metrics.values}
            if book is not None:
                book.add(name, known[name])
        results[name] = known[name]
        if progress is not None:
            progress((number + 1) * count, total)
    chosen = tuple(dict.fromkeys(corruptions))
    levels = tuple(sorted(set(severities)))
    return Robustness(
        model=subject.name,
        data=str(split.files.annotations),
        images=count,
        severities=levels,
        seed=seed,
        clean=results[CLEAN],
        cells={name: {level: results[f"{name} {level}"] for level in levels} for name in chosen},
    )


def _wanted(corruptions: Sequence[str], severities: Sequence[int]) -> dict[str, tuple[str, int] | None]:
    """What is to be measured, by its name in the journal."""
    for corruption in corruptions:
        check_corruption(corruption)
    for severity in severities:
        check_severity(severity)
    if not corruptions or not severities:
        raise UsageError("no corruption or no severity is given; expected at least one of each")
    cells = [(name, severity) for name in corruptions for severity in sorted(set(severities))]
    return {CLEAN: None, **{f"{name} {severity}": (name, severity) for name, severity in cells}}


def _study(subject: EvalTarget, split: Split, seed: int) -> dict[str, Any]:
    """What a result depends on besides corruption and severity."""
    index = split.index
    images = hashlib.sha256()
    for array in (index.image_ids, index.boxes_xyxy, index.labels, index.iscrowd, index.name_bytes):
        images.update(np.ascontiguousarray(array).tobytes())
    assert subject.stages is not None
    return {
        "model": subject.name,
        "settings": subject.settings,
        "weights": weights_digest(subject.stages.network),
        "data": str(split.files.annotations),
        "annotations": images.hexdigest(),
        "seed": seed,
    }


def _offset(progress: Callable[[int, int], None], before: int, total: int) -> Callable[[int], None]:
    return lambda done: progress(before + done, total)


def _mean(values: Sequence[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if values and len(defined) == len(values) else None


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"
