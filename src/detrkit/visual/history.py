"""Reading of run folders: the records of metrics.jsonl as curves, and the config."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from detrkit.config import read_yaml
from detrkit.errors import ConfigError, DataError, UsageError, listed
from detrkit.files import parse_json
from detrkit.visual.chart import Series

Across = Literal["step", "epoch", "time"]

_PLACES = frozenset(("kind", "step", "epoch", "elapsed_s"))
"""Keys of a record that say where it stands, not what was measured."""

_UNDEFINED = -1.0
"""What COCO's metrics are where there is nothing to measure."""


@dataclasses.dataclass(frozen=True)
class History:
    """Records of a run so far.

    Args:
        name: name beside other runs.
        folder: run folder.
        config: config, nested by section; empty if there is none to read.
        records: lines of its metrics.jsonl.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]]

    def metrics(self, kind: Literal["step", "eval"]) -> list[str]:
        """Return names of what was measured, in the order of the log; ``layers.class.2`` for a layer's term."""
        records = [record for record in self.records if record.get("kind") == kind]
        return list(dict.fromkeys(name for record in records for name, _ in _numbers(record)))

    def series(self, metric: str, across: Across = "step") -> Series:
        """Return a metric over steps, epochs or hours of training; empty if it was never measured."""
        found = [
            (int(record["step"]), value)
            for record in self.records
            if record.get("kind") in ("step", "eval") and isinstance(record.get("step"), int)
            for name, value in _numbers(record)
            if name == metric and not (record["kind"] == "eval" and value == _UNDEFINED)
        ]
        table = np.array(sorted(dict(found).items()), dtype=np.float64).reshape(-1, 2)
        return Series(self._across(table[:, 0], across), table[:, 1])

    @property
    def has_times(self) -> bool:
        """Tell whether the records say when they were made."""
        return bool(self._pairs("elapsed_s", ("step",)))

    def _across(self, steps: np.ndarray, across: Across) -> np.ndarray:
        """Return steps as what runs along the axis."""
        if across == "step" or not len(steps):
            return steps
        if across == "time":
            marks = [(step, seconds / 3600) for step, seconds in self._pairs("elapsed_s", ("step",))]
        else:
            # still in the first epoch, its length is not known yet
            marks = self._pairs("epoch", ("epoch", "eval")) or [(2 * float(steps.max()), 1.0)]
        known = np.array(sorted({0: 0.0, **dict(marks)}.items()), dtype=np.float64)
        slope = known[-1] / max(known[-1, 0], 1)  # beyond the last mark it goes on as it has on average
        beyond = np.maximum(steps - known[-1, 0], 0) * slope[1]
        return np.asarray(np.interp(steps, known[:, 0], known[:, 1]) + beyond)

    def _pairs(self, key: str, kinds: Sequence[str]) -> list[tuple[float, float]]:
        """Return step and another number of the records that have both."""
        return [
            (float(record["step"]), float(record[key]))
            for record in self.records
            if record.get("kind") in kinds and _is_number(record.get("step")) and _is_number(record.get(key))
        ]


def read_metrics_log(path: str | Path) -> list[dict[str, Any]]:
    """Return the records of a run's ``metrics.jsonl``, without a last line that is cut off or not done yet.

    Raises:
        DataError: The file cannot be read, or another line is not a JSON object.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise DataError(f"cannot read the log {path}: {error.strerror or error}") from error
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = parse_json(line)
        except ValueError as error:
            if number == len(lines):
                break
            raise DataError(f"{path}: line {number} is not JSON: {error}") from error
        if not isinstance(record, dict):
            raise DataError(f"{path}: line {number} is a {type(record).__name__}, expected a JSON object")
        records.append(record)
    return records


def read_histories(folders: Iterable[str | Path]) -> list[History]:
    """Return what several runs have recorded, under names that tell them apart.

    Raises:
        UsageError: A folder is no run.
        DataError: A log cannot be read.
    """
    paths = [_run_folder(Path(folder)) for folder in folders]
    names = _distinct_names(paths)
    return [
        History(name, path, _read_config(path), read_metrics_log(path / "metrics.jsonl"))
        for name, path in zip(names, paths, strict=True)
    ]


def differences(histories: Sequence[History]) -> dict[str, list[str]]:
    """Return config keys in which runs differ, with the value of each run as text."""
    flat = [_flattened(history.config) for history in histories]
    keys = list(dict.fromkeys(key for config in flat for key in config))
    rows = {key: [config.get(key, "-") for config in flat] for key in keys}
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


def _run_folder(path: Path) -> Path:
    path = path.parent if path.name == "metrics.jsonl" and not path.is_dir() else path
    if (path / "metrics.jsonl").is_file():
        return path
    if not path.exists():
        raise UsageError(f"{path} does not exist; expected a run folder, which holds metrics.jsonl")
    if (path / "config.yaml").is_file():
        raise UsageError(f"{path} is a run that has recorded nothing yet: it has no metrics.jsonl")
    inside = sorted(child.parent for child in path.glob("*/metrics.jsonl")) if path.is_dir() else []
    hint = f"; did you mean {listed(inside, 4)}?" if inside else ""
    raise UsageError(f"{path} is not a run folder: it has no metrics.jsonl{hint}")


def _distinct_names(paths: Sequence[Path]) -> list[str]:
    """Return last parts of the paths, as few as tell them apart."""
    parts = [path.resolve().parts for path in paths]
    for count in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(set(parts)):
            return names
    return names


def _read_config(folder: Path) -> dict[str, Any]:
    """Return the config as it stands, whatever version of detrkit wrote it; empty if it cannot be read."""
    try:
        content = read_yaml(folder / "config.yaml")
    except ConfigError:
        return {}
    return content if isinstance(content, dict) else {}


def _flattened(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat.update(_flattened(value, f"{prefix}{key}."))
        elif isinstance(value, list | tuple):
            flat[f"{prefix}{key}"] = ", ".join(map(str, value)) or "none"
        else:
            flat[f"{prefix}{key}"] = "none" if value is None or value == {} else str(value)
    return flat


def _numbers(record: Mapping[str, Any]) -> Iterable[tuple[str, float]]:
    """Return name and value of everything finite that a record measured."""
    for name, value in record.items():
        if name in _PLACES:
            continue
        if _is_number(value):
            yield name, float(value)
        elif isinstance(value, Mapping):
            for term, layers in value.items():
                for number, layer in enumerate(layers if isinstance(layers, list) else [], start=1):
                    if _is_number(layer):
                        yield f"{name}.{term}.{number}", float(layer)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))
