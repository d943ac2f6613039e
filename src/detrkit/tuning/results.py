"""Results of a search, as values and files."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from detrkit.config import Config, write_config
from detrkit.files import to_plain
from detrkit.tuning.study import StudyLocation, current_trials
from detrkit.visual.table import Column, Table, write_csv

if TYPE_CHECKING:
    import optuna

State = Literal["complete", "pruned", "fail", "running", "waiting"]


@dataclasses.dataclass(frozen=True)
class TrialResult:
    """A trial.

    Args:
        number: number from 0; the first has the config's own values.
        state: complete, pruned, fail, running, or waiting: not begun, or interrupted.
        best_ap: highest AP of its evaluations; None before the first.
        parameters: values by name.
        curve: AP by epoch.
        epochs: epochs completed.
        seconds: time of training and evaluation, over all starts.
        run_dir: its run folder.
        reason: why it failed.
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


@dataclasses.dataclass(frozen=True)
class StudyResult:
    """Result of a search.

    Args:
        out: its folder: best.yaml, trials.csv, tune.html, tune.png, trials/.
        trials: trials by number.
        total: trials that there are to be.
        config: config of the best trial, ready to train with; None if none is complete.
        signal_number: signal that interrupted the search; None if it finished.
    """

    out: Path
    trials: tuple[TrialResult, ...]
    total: int
    config: Config | None
    signal_number: int | None = None

    @property
    def stopped(self) -> Literal["finished", "interrupted"]:
        """How the search ended."""
        return "finished" if self.signal_number is None else "interrupted"

    @property
    def ranked(self) -> tuple[TrialResult, ...]:
        """Complete trials, the best first; of equals the earlier."""
        complete = [trial for trial in self.trials if trial.state == "complete"]
        return tuple(sorted(complete, key=lambda trial: (-(trial.best_ap or 0.0), trial.number)))

    @property
    def best(self) -> TrialResult | None:
        """The best complete trial."""
        return next(iter(self.ranked), None)

    def to_dict(self) -> dict[str, Any]:
        """Return the values for JSON."""
        best = self.best
        return {
            "out": str(self.out),
            "stopped": self.stopped,
            "total": self.total,
            "best": None if best is None else best.number,
            "best_config": None if best is None else str(self.out / "best.yaml"),
            "trials": to_plain(self.trials, str_keys=True),
        }


def read_trials(study: optuna.Study, location: StudyLocation) -> tuple[TrialResult, ...]:
    """Read all trials of a study; one that was retried counts once, as its last retry."""
    found = []
    for number, trial in enumerate(current_trials(study)):
        facts = trial.user_attrs.get("facts", {})
        curve = {epoch: ap for epoch, ap in sorted(trial.intermediate_values.items()) if math.isfinite(ap)}
        died = "its process died too often; was it killed for the memory it took?"
        found.append(
            TrialResult(
                number=number,
                state=cast("State", trial.state.name.lower()),
                best_ap=max(curve.values(), default=facts.get("best_ap")),
                parameters=trial.params,
                curve=curve,
                epochs=facts.get("epochs", max(curve, default=None)),
                seconds=float(facts.get("seconds", 0.0)),
                run_dir=location.run_dir(number),
                reason=facts.get("reason", died) if trial.state.name == "FAIL" else None,
            )
        )
    return tuple(found)


def write_results(result: StudyResult) -> None:
    """Write trials.csv, and best.yaml if there is a best."""
    if result.config is not None:
        write_config(result.config, result.out / "best.yaml")
    names = _parameter_names(result.trials)
    rows = [
        [
            *(trial.number, trial.state, trial.best_ap, trial.epochs, round(trial.seconds, 1)),
            *(trial.parameters.get(name) for name in names),
            *(trial.run_dir.relative_to(result.out).as_posix(), trial.reason),
        ]
        for trial in result.trials
    ]
    head = ["trial", "state", "best_ap", "epochs", "seconds", *names, "run", "reason"]
    write_csv(result.out / "trials.csv", head, rows)


def _parameter_names(trials: Sequence[TrialResult]) -> list[str]:
    return list(dict.fromkeys(name for trial in trials for name in trial.parameters))


def trials_table(trials: Sequence[TrialResult]) -> Table:
    """Lay out trials: state, AP, parameters."""
    names = _parameter_names(trials)
    columns = [Column("trial", "count"), Column("state"), Column("best AP", "number", 3, bar=True)]
    columns += [Column("epochs", "count"), Column("seconds", "count")]
    columns += [*(Column(name, "name") for name in names), Column("reason")]
    rows = [
        [
            *(trial.number, trial.state, trial.best_ap, trial.epochs, trial.seconds),
            *(shown_value(trial.parameters[name]) if name in trial.parameters else None for name in names),
            trial.reason or "",
        ]
        for trial in trials
    ]
    return Table(columns, rows, "Trials; the first has the config's own values")


def shown_parameters(parameters: Mapping[str, Any]) -> str:
    """Return parameters in one line."""
    return ", ".join(
        f"{name.rpartition('/')[0] or name}{'/lr' if '/' in name else ''} {shown_value(value)}"
        for name, value in parameters.items()
    )


def shown_value(value: Any) -> str:
    """Return a parameter's value, short."""
    return "off" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def shown_trial(trial: TrialResult) -> str:
    """Return what became of a trial, in one line."""
    if trial.state == "fail":
        return f"trial {trial.number} failed: {trial.reason}"
    took = f"{trial.epochs} epoch{'' if trial.epochs == 1 else 's'}, {trial.seconds:.0f} s"
    ap = "-" if trial.best_ap is None else f"{trial.best_ap:.3f}"
    state = "done" if trial.state == "complete" else trial.state
    return f"trial {trial.number} {state}: best AP {ap} ({took})"
