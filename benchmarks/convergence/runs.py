"""One training of one competitor: measured, written down, and not made again once it is complete."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

import detrkit
from benchmarks.convergence.budget import Budget, epoch_seconds, epochs_within, evaluations_every, measure_epoch
from benchmarks.convergence.competitors import Conditions, command_of, config_of, count_parameters, kind_of, train
from benchmarks.convergence.data_sets import Files
from benchmarks.convergence.peers import PEERS
from benchmarks.timing import machine
from detrkit.config import Config, update_config
from detrkit.data.split import read_split
from detrkit.errors import UsageError
from detrkit.files import atomic_file
from detrkit.visual.history import read_metrics_log

RESULT = "result.json"
"""Written last into a run's folder: where it is, the run is complete."""


@dataclasses.dataclass(frozen=True)
class Job:
    """What is asked for.

    Args:
        competitor: Name of a recipe or peer.
        files: The data set.
        seed: Of weights, order and augmentation.
        budget: Of training.
        conditions: The same for all.
    """

    competitor: str
    files: Files
    seed: int
    budget: Budget
    conditions: Conditions

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.files.name}-{self.competitor}-s{self.seed}"

    def config(self) -> Config:
        """To train by, but for the epochs."""
        return config_of(self.competitor, self.files, self.seed, self.conditions)

    def asked(self) -> dict[str, Any]:
        """All that the result depends on, but for code and machine; ready for JSON."""
        config, budget = self.config().model_dump(mode="json"), dataclasses.asdict(self.budget)
        if not self.budget.cpu:
            del budget["cpu"]  # as in results of before
        return {"budget": budget, "threads": self.conditions.threads, "config": config}


def result_of(job: Job, out: Path) -> dict[str, Any] | None:
    """The result of a run that is complete; None if it has to be made.

    Raises:
        UsageError: It was made under other conditions, or its recipe has changed since.
    """
    path = out / "runs" / job.name / RESULT
    if not path.is_file():
        return None
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    asked = json.loads(json.dumps(job.asked()))
    if result["asked"] != asked:
        changed = ", ".join(_differences(result["asked"], asked))
        raise UsageError(
            f"{path.parent} was made otherwise than is asked for now ({changed}); give --redo to make it again, "
            "or another --out"
        )
    return result


def make(job: Job, out: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Train and measure; what a killed process left of the same run is removed first.

    Returns:
        The result, as it lies in the run's folder: every figure of the tables and curves.
    """
    run_dir, work = out / "runs" / job.name, out / f"rehearsal-{job.name}"
    shutil.rmtree(run_dir, ignore_errors=True)
    if job.conditions.threads:
        torch.set_num_threads(job.conditions.threads)
    config, rehearsed, epochs = job.config(), None, job.budget.epochs
    clock, began_s = job.budget.now, job.budget.now()
    if job.budget.minutes is not None:
        with job.budget.clock():
            rehearsed = measure_epoch(train, config, job.files, work)
        epochs = epochs_within(job.budget.minutes, rehearsed)
        say(f"{job.name}: an epoch takes {rehearsed:.1f} s, so {epochs} of them fit into {job.budget}")
    assert epochs is not None
    rehearsal_s = clock() - began_s
    config = update_config(config, {"train.epochs": epochs, "train.eval_every": evaluations_every(epochs)})
    began_s = clock()
    with job.budget.clock():
        train(config, run_dir, None)
    total_s = clock() - began_s
    points = points_of(run_dir)
    best = max(points, key=lambda point: point["AP"])
    facts = dict(line[2:].split(": ", 1) for line in machine().splitlines())
    result = {
        "name": job.name,
        "data": job.files.name,
        "competitor": job.competitor,
        "kind": kind_of(job.competitor),
        "seed": job.seed,
        "parameters": _parameters(job, config, run_dir),
        "images": job.files.train_count(),
        "batch_size": config.train.batch_size,
        "epochs": epochs,
        "rehearsed_epoch_s": rehearsed,
        "rehearsal_s": rehearsal_s,
        "training_s": sum(epoch_seconds(run_dir)),
        "total_s": total_s,
        "AP": points[-1]["AP"],
        "AP50": points[-1]["AP50"],
        "best_AP": best["AP"],
        "best_epoch": best["epoch"],
        "points": points,
        "command": command_of(job.competitor, run_dir),
        "machine": {**facts, "threads": torch.get_num_threads(), "commit": _commit()},
        "asked": job.asked(),
    }
    with atomic_file(run_dir / RESULT) as file:
        json.dump(result, file, indent=1)
    return result


def points_of(run_dir: Path) -> list[dict[str, float]]:
    """Every evaluation of a run: epochs and minutes trained until then, and the twelve COCO numbers."""
    points, seconds = [], 0.0
    for record in read_metrics_log(run_dir / "metrics.jsonl"):
        if record["kind"] == "epoch":
            seconds += float(record["seconds"])
        elif record["kind"] == "eval":
            figures = {name: value for name, value in record.items() if name not in ("kind", "step", "epoch")}
            points.append({"epoch": record["epoch"], "minutes": seconds / 60, **figures})
    return points


def read_results(out: Path) -> list[dict[str, Any]]:
    """The results of all complete runs of a folder, by name."""
    paths = sorted((out / "runs").glob(f"*/{RESULT}"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def _parameters(job: Job, config: Config, run_dir: Path) -> int:
    """Of the network that detects, without parts that only train."""
    if kind_of(job.competitor) == "recipe":
        return count_parameters(detrkit.load(run_dir, device="cpu").model)
    classes = len(read_split(config, config.data.train_split).index.class_map)
    return count_parameters(PEERS[job.competitor].build(classes, (32, 32)))


def _differences(one: Mapping[str, Any], other: Mapping[str, Any], above: str = "") -> list[str]:
    """Dotted keys in which two mappings differ."""
    found = []
    for key in {**one, **other}:
        left, right = one.get(key), other.get(key)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            found += _differences(left, right, f"{above}{key}.")
        elif left != right:
            found.append(f"{above}{key}")
    return found


def _commit() -> str:
    """Of the code; with a plus where files differ from it."""
    try:
        command = ["git", "describe", "--always", "--dirty=+"]
        here = Path(__file__).parent
        return subprocess.run(command, cwd=here, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
