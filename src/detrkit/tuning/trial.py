"""One trial: a full run, in a folder of its own."""

from __future__ import annotations

import dataclasses
import math
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from detrkit.config import Config, update_config
from detrkit.errors import DetrkitError
from detrkit.tuning.settings import Settings
from detrkit.tuning.study import Place, import_optuna, note_facts, read_facts, release_trial, signs_of_life

if TYPE_CHECKING:
    import optuna

    from detrkit.training.loop import FitResult

OnEvaluation = Callable[[int, Mapping[str, float]], bool]
Train = Callable[[Config, Path, OnEvaluation], "FitResult"]


@dataclasses.dataclass(frozen=True)
class TrialEnd:
    """How a trial ended.

    Args:
        state: As Optuna has it, or interrupted: it goes on at the next start.
        signal_number: The signal that interrupted it, if one did.
    """

    state: Literal["complete", "pruned", "fail", "interrupted"]
    signal_number: int | None = None


def train_trial(config: Config, run_dir: Path, on_evaluation: OnEvaluation) -> FitResult:
    """Train in a folder, or go on with what is in it."""
    from detrkit.training.run import Drawings, resume_run, start_run
    from detrkit.visual.curves import plot_curves
    from detrkit.visual.drawing import draw

    drawings = Drawings(plot_curves, draw)
    if (run_dir / "config.yaml").is_file():
        return resume_run(run_dir, _say_nothing, drawings=drawings, on_evaluation=on_evaluation)
    if run_dir.is_dir():  # its process died before there was a run
        shutil.rmtree(run_dir)
    return start_run(config, run_dir, _say_nothing, drawings=drawings, on_evaluation=on_evaluation)


def run_trial(
    study: optuna.Study,
    trial: optuna.Trial,
    settings: Settings,
    place: Place,
    *,
    data_workers: int | None = None,
    train: Train = train_trial,
) -> TrialEnd:
    """Train with the parameters of a trial, and tell the study.

    Args:
        study: The study.
        trial: Claimed by this process.
        settings: Of the study.
        place: Of the study.
        data_workers: Loader processes, where the config leaves them open and several trials share the machine.
        train: Trains; another in tests.
    """
    run_dir = place.run_dir(trial.number)
    began_s = time.monotonic()
    before_s = float(read_facts(trial).get("seconds", 0.0))

    def facts(**known: Any) -> dict[str, Any]:
        return {**known, "seconds": before_s + time.monotonic() - began_s}

    try:
        config = settings.space.apply(settings.config, trial.params)
        if data_workers is not None and config.data.workers == "auto":
            config = update_config(config, {"data.workers": data_workers})
        with signs_of_life(trial):
            result = train(config, run_dir, _reporting(study, trial, settings))
    except KeyboardInterrupt:
        release_trial(trial, facts())
        raise
    except Exception as error:
        reason = _reason_to_go_on(error)
        _tell(study, trial, "FAIL", facts(reason=reason or f"{type(error).__name__}: {error}"))
        if reason is None:  # a fault of the program
            raise
        return TrialEnd("fail")
    if result.stopped == "interrupted":
        release_trial(trial, facts())
        return TrialEnd("interrupted", result.signal_number)
    found = {"epochs": result.epochs, "steps": result.steps, "best_ap": result.best}
    if result.stopped == "pruned":
        _tell(study, trial, "PRUNED", facts(**found))
        return TrialEnd("pruned")
    if result.best is None or not math.isfinite(result.best):
        reason = "no evaluation gave an AP; has the validation split objects?"
        _tell(study, trial, "FAIL", facts(**found, reason=reason))
        return TrialEnd("fail")
    _tell(study, trial, "COMPLETE", facts(**found), result.best)
    return TrialEnd("complete")


def thin_out(study: optuna.Study, place: Place) -> None:
    """Free the disk of what no trial needs any more.

    The best trial keeps everything, another complete one its best weights, a pruned or failed one its logs.
    """
    with place.lock():
        trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
        complete = [trial for trial in trials if trial.state.name == "COMPLETE" and trial.value is not None]
        best = max(complete, key=lambda trial: (trial.value or 0.0, -trial.number), default=None)
        for trial in trials:
            if best is not None and trial.number == best.number:
                continue
            names = ["last.pt", "previous.pt", "next.pt"] + ["best.pt"] * (trial.state.name != "COMPLETE")
            for name in names:
                (place.run_dir(trial.number) / "checkpoints" / name).unlink(missing_ok=True)


def _reporting(study: optuna.Study, trial: optuna.Trial, settings: Settings) -> OnEvaluation:
    """Hands each evaluation's AP to the study and asks whether to go on."""
    frozen = next(other for other in study.get_trials(deepcopy=False) if other.number == trial.number)
    reported = set(frozen.intermediate_values)

    def on_evaluation(epoch: int, metrics: Mapping[str, float]) -> bool:
        ap = metrics.get("AP", math.nan)
        if not math.isfinite(ap) or ap < 0:  # COCO's -1: nothing to measure
            return False
        if epoch not in reported:  # a run that went on from before its last evaluation gives it again
            trial.report(ap, epoch)
            reported.add(epoch)
        return epoch < settings.config.train.epochs and trial.should_prune()

    return on_evaluation


def _tell(
    study: optuna.Study, trial: optuna.Trial, state: str, facts: dict[str, Any], value: float | None = None
) -> None:
    note_facts(trial, facts)
    study.tell(trial, value, state=import_optuna().trial.TrialState[state])


def _reason_to_go_on(error: Exception) -> str | None:
    """Why a trial failed, in words, if other parameters may do better; None for a fault of the program."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return f"out of memory: {(str(error).splitlines() or ['no more is known'])[0]}"
    if isinstance(error, DetrkitError | OSError):
        return str(error) or type(error).__name__
    return None


def _say_nothing(_message: str) -> None:
    """What every trial says anew."""
