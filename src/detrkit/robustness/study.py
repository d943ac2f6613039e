"""AP of a detector on corrupted images, by corruption and severity (arXiv:1907.07484)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from detrkit.data.split import Split
from detrkit.detectors.journal import Journal, Values, study_of
from detrkit.detectors.on_split import EvalTarget, collect
from detrkit.errors import UsageError
from detrkit.evaluation.coco import known
from detrkit.evaluation.truth import ground_truth_from_index
from detrkit.files import to_plain
from detrkit.robustness.corruptions import COMMON, CORRUPTIONS, SEVERITIES, Corruption
from detrkit.visual.table import Column, Table, Value

CLEAN = "clean"


@dataclasses.dataclass(frozen=True)
class Robustness:
    """The fall of AP as images get worse.

    Args:
        model: Name of the model.
        data: Path of the annotations.
        images: Images of the split.
        severities: Severities that were tried, ascending.
        seed: Seed of the corruptions.
        clean: Numbers on the images as they are.
        cells: Numbers on corrupted ones, by corruption and severity.
    """

    model: str
    data: str
    images: int
    severities: tuple[int, ...]
    seed: int
    clean: Values
    cells: Mapping[str, Mapping[int, Values]]

    def mean(self, corruption: str, metric: str = "AP") -> float | None:
        """Return the mean over the severities of a corruption; None where a number is undefined."""
        return _mean([self.cells[corruption][severity][metric] for severity in self.severities])

    def mpc(self, metric: str = "AP") -> float | None:
        """Return the mean performance under corruption: over corruptions of the mean over severities."""
        return _mean([self.mean(corruption, metric) for corruption in self.cells])

    def rpc(self, metric: str = "AP") -> float | None:
        """Return the relative performance under corruption: the share of the clean performance that is left."""
        return _share(self.mpc(metric), self.clean[metric])

    def to_dict(self) -> dict[str, Any]:
        """Return the content for JSON."""
        plain = ("model", "data", "images", "severities", "seed", "clean")
        return {
            **{name: to_plain(getattr(self, name)) for name in plain},
            "mPC": self.mpc(),
            "rPC": self.rpc(),
            "corruptions": [
                {"name": name, "AP": self.mean(name), "severities": to_plain(cells, str_keys=True)}
                for name, cells in self.cells.items()
            ],
        }

    def table(self) -> Table:
        """Return AP by corruption and severity, for people."""
        kind_of = {name: kind for kind, names in CORRUPTIONS.items() for name in names}
        columns = [
            *map(Column, ("corruption", "kind")),
            *(Column(f"AP at {severity}", "percent") for severity in self.severities),
            Column("mean", "percent", bar=True),
            Column("of the clean", "percent"),
        ]
        rows: list[list[Value]] = []
        for name, cells in self.cells.items():
            values, mean = [cells[severity]["AP"] for severity in self.severities], self.mean(name)
            rows.append([name, kind_of[name], *values, mean, _share(mean, self.clean["AP"])])
        return Table(columns, rows, "AP by corruption and severity")

    def lines(self) -> list[str]:
        """Return the table and what it comes to as text."""
        percent = Column("", "percent").written
        clean, mpc, rpc = map(percent, (self.clean["AP"], self.mpc(), self.rpc()))
        return [*self.table().lines(), f"clean AP {clean}, mPC {mpc}, rPC {rpc} (of the clean AP)"]


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
        subject: Detector; it must run.
        split: Images and annotations, which hold for corrupted images too.
        corruptions: Names, see :mod:`detrkit.robustness.corruptions`.
        severities: 1 to 5.
        seed: Seed of the corruptions.
        batch_size: Images at once.
        journal: File that gets each result as soon as it is there; results that it holds are not measured again.
        progress: Called with images done and images in all, over all evaluations.
        say: Called with messages for people.

    Raises:
        UsageError: A name or severity is unknown, the subject does not run, or the journal is of another study.
        DataError: No class of the subject is a class of the split, or an image cannot be read.
    """
    # everything that is wanted, and what is there already
    levels, chosen = sorted(set(severities)), list(dict.fromkeys(corruptions))
    wanted = _wanted(chosen, levels, seed)
    if subject.stages is None:
        raise UsageError(f"{subject.name} is a file of detections; corrupted images need a model that runs")
    book = Journal(journal, {**study_of(subject, split), "seed": seed})
    there = sum(name in book.results for name in wanted)
    if there:
        say(f"{journal} holds {there} of {len(wanted)} results; going on")
    # the rest, each result written down at once
    truth = ground_truth_from_index(split.index)
    count, total = len(split.index), len(split.index) * len(wanted)
    for number, (name, change) in enumerate(wanted.items()):
        if name not in book.results:
            tell = None if progress is None else functools.partial(tell_part, progress, number * count, total)
            collected = collect(subject, split, truth=truth, batch_size=batch_size, progress=tell, change=change)
            book.add(name, {key: known(value) for key, value in collected.finish().values.items()})
        if progress is not None:
            progress((number + 1) * count, total)
    cells = {name: {level: book.results[f"{name} {level}"] for level in levels} for name in chosen}
    data, clean = str(split.files.annotations), book.results[CLEAN]
    return Robustness(subject.name, data, count, tuple(levels), seed, clean, cells)


def tell_part(progress: Callable[[int, int], None], before: int, total: int, done: int) -> None:
    """Report images done of a part of the work."""
    progress(before + done, total)


def _wanted(corruptions: Sequence[str], severities: Sequence[int], seed: int) -> dict[str, Corruption | None]:
    """Return the corruption of every evaluation, by its name in the journal."""
    if not corruptions or not severities:
        raise UsageError("no corruption or no severity is given; expected at least one of each")
    cells = [Corruption(name, severity, seed) for name in corruptions for severity in severities]
    return {CLEAN: None, **{f"{cell.name} {cell.severity}": cell for cell in cells}}


def _mean(values: Sequence[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if values and len(defined) == len(values) else None


def _share(part: float | None, whole: float | None) -> float | None:
    return part / whole if whole and part is not None else None
