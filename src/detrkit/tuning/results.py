"""What a study has found, as values and files."""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from detrkit.config import Config, write_config
from detrkit.files import atomic_file
from detrkit.tuning.settings import Settings
from detrkit.tuning.study import Place, read_facts

if TYPE_CHECKING:
    import optuna

State = Literal["complete", "pruned", "fail", "running", "waiting"]


@dataclasses.dataclass(frozen=True)
class TrialResult:
    """A trial.

    Args:
        number: From 0; the first has the config's own values.
        state: complete, pruned, fail, running (also: interrupted) or waiting.
        best_ap: Highest AP of its evaluations; None before the first.
        parameters: By name.
        curve: AP by epoch.
        epochs: Completed.
        seconds: Of training and evaluation, over all starts.
        run_dir: Its run folder.
        reason: Why it failed.
    """

    number: int
    state: State
    best_ap: float | None
    parameters: Mapping[str, Any]
    curve: Mapping[int, float]
    epochs: int | None
    seconds: float
    run_dir: Path
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            **dataclasses.asdict(self),
            "run_dir": str(self.run_dir),
            "parameters": dict(self.parameters),
            "curve": {str(epoch): ap for epoch, ap in self.curve.items()},
        }


@dataclasses.dataclass(frozen=True)
class StudyResult:
    """What a search has found.

    Args:
        out: Its folder: best.yaml, trials.csv, tune.html, tune.png, trials/.
        trials: By number.
        total: How many there are to be.
        config: Of the best trial, ready to train with; None if none is complete.
        stopped: finished, or interrupted by a signal.
        signal_number: That signal.
    """

    out: Path
    trials: tuple[TrialResult, ...]
    total: int
    config: Config | None
    stopped: Literal["finished", "interrupted"]
    signal_number: int | None = None

    @property
    def ranked(self) -> tuple[TrialResult, ...]:
        """Complete trials, the best first; of equals the earlier."""
        return ranked(self.trials)

    @property
    def best(self) -> TrialResult | None:
        """The best complete trial."""
        return next(iter(self.ranked), None)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        best = self.best
        return {
            "out": str(self.out),
            "stopped": self.stopped,
            "total": self.total,
            "best": None if best is None else best.number,
            "best_config": None if best is None else str(self.out / "best.yaml"),
            "trials": [trial.to_dict() for trial in self.trials],
        }


def ranked(trials: Sequence[TrialResult]) -> tuple[TrialResult, ...]:
    """Complete trials, the best first; of equals the earlier."""
    complete = [trial for trial in trials if trial.state == "complete"]
    return tuple(sorted(complete, key=lambda trial: (-(trial.best_ap or 0.0), trial.number)))


def read_trials(study: optuna.Study, place: Place) -> tuple[TrialResult, ...]:
    """All trials of a study."""
    found = []
    for trial in study.get_trials(deepcopy=False):
        facts = read_facts(trial)
        curve = {epoch: ap for epoch, ap in sorted(trial.intermediate_values.items()) if math.isfinite(ap)}
        found.append(
            TrialResult(
                number=trial.number,
                state=cast("State", trial.state.name.lower()),
                best_ap=max(curve.values(), default=facts.get("best_ap")),
                parameters=trial.params,
                curve=curve,
                epochs=facts.get("epochs", max(curve, default=None)),
                seconds=float(facts.get("seconds", 0.0)),
                run_dir=place.run_dir(trial.number),
                reason=facts.get("reason"),
            )
        )
    return tuple(found)


def best_config(settings: Settings, trials: Sequence[TrialResult]) -> Config | None:
    """The config of the best complete trial, with the data's folder as it was given."""
    best = next(iter(ranked(trials)), None)
    return None if best is None else settings.space.apply(settings.config, best.parameters)


def write_results(out: Path, config: Config | None, trials: Sequence[TrialResult]) -> None:
    """Write trials.csv, and best.yaml if there is a best."""
    if config is not None:
        write_config(config, out / "best.yaml")
    names = list(dict.fromkeys(name for trial in trials for name in trial.parameters))
    with atomic_file(out / "trials.csv") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["trial", "state", "best_ap", "epochs", "seconds", *names, "run", "reason"])
        for trial in trials:
            values = ["" if trial.parameters.get(name) is None else trial.parameters[name] for name in names]
            ap = "" if trial.best_ap is None else trial.best_ap
            run = trial.run_dir.relative_to(out).as_posix()
            head = [trial.number, trial.state, ap, trial.epochs, round(trial.seconds, 1)]
            writer.writerow([*head, *values, run, trial.reason or ""])


def table_of_best(trials: Sequence[TrialResult], count: int) -> list[list[str]]:
    """Head and rows of the best trials and the first, for people to read."""
    from detrkit.tuning.work import shown_value

    order = list(ranked(trials))
    shown = order[:count]
    first = next((trial for trial in order if trial.number == 0), None)
    if first is not None and first not in shown:
        shown.append(first)
    names = list(dict.fromkeys(name for trial in shown for name in trial.parameters))
    rows = [["trial", "best AP", "epochs", *names]]
    for trial in shown:
        own = " (config's own)" if trial.number == 0 else ""
        ap = "-" if trial.best_ap is None else f"{trial.best_ap:.3f}"
        values = [shown_value(trial.parameters.get(name)) for name in names]
        rows.append([f"{trial.number}{own}", ap, str(trial.epochs), *values])
    return rows
