"""Trials of a search: each a full run, in a folder of its own."""

from __future__ import annotations

import math
import signal
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detrkit.config import Config
from detrkit.errors import DetrkitError, TrainingError
from detrkit.training.memory import error_line
from detrkit.tuning.results import TrialResult, read_trials, shown_parameters, shown_trial
from detrkit.tuning.settings import Settings
from detrkit.tuning.study import (
    StudyLocation,
    first_trials,
    import_optuna,
    number_of,
    retry_dead_trials,
    retry_trial,
    set_up,
    study_lock,
)

if TYPE_CHECKING:
    import optuna

    from detrkit.training.loop import FitResult

Say = Callable[[str], None]
OnEvaluation = Callable[[int, Mapping[str, float]], bool]
Train = Callable[[Config, Path, OnEvaluation], "FitResult"]

FIRST_FAILURES = 3
"""Trials that all fail before any succeeds: then something is wrong with all of them."""


class _StoppedBySignalError(Exception):
    """A signal stopped the training of a trial, which was saved."""

    def __init__(self, number: int | None):
        super().__init__()
        self.number = number or signal.SIGINT


def train_trial(config: Config, run_dir: Path, on_evaluation: OnEvaluation) -> FitResult:
    """Train in a folder, or go on with the run in it."""
    from detrkit.detectors.on_split import draw_found
    from detrkit.training.run import Drawings, resume_run, start_run
    from detrkit.visual.curves import plot_curves

    def say_nothing(_message: str) -> None:
        """Say nothing: every trial would say the same anew."""

    drawings = Drawings(plot_curves, draw_found)
    if (run_dir / "config.yaml").is_file():
        return resume_run(run_dir, say_nothing, drawings=drawings, on_evaluation=on_evaluation)
    return start_run(config, run_dir, say_nothing, drawings=drawings, on_evaluation=on_evaluation)


class Worker:
    """A process that trains the trials of a study, one after the other.

    Args:
        study: the study.
        settings: settings of the study.
        location: location of the study.
        total: trials that there are to be.
        say: told each trial that begins or ends.
        train: trains a trial; another in tests.
    """

    def __init__(
        self, study: optuna.Study, settings: Settings, location: StudyLocation, total: int, say: Say, train: Train
    ):
        self.study, self.settings, self.location = study, settings, location
        self.total, self.say, self.train = total, say, train
        self._lock = study_lock(location.out)
        self._trial_lock = location.trial_lock(0)
        self._optuna_number, self._number, self._failed_in_a_row = -1, 0, 0

    def work(self) -> int | None:
        """Train until every trial is done, here or elsewhere; return the signal that stopped it, if one did.

        Raises:
            TrainingError: The first trials all failed.
        """
        try:
            while self._begin_or_wait():
                self._work_on_one()
        except _StoppedBySignalError as stop:
            return stop.number
        except KeyboardInterrupt:
            return signal.SIGINT
        finally:
            self._lock.release(force=True)
        return None

    def _begin_or_wait(self) -> bool:
        """Return True once a trial can be begun, with the study's lock held; False if all are finished."""
        told = False
        while True:
            self._lock.acquire()
            retry_dead_trials(self.study, self.location)
            trials = self.study.get_trials(deepcopy=False)
            states = {trial.state.name for trial in trials}
            begun = len(first_trials(trials))
            if "WAITING" in states or begun < self.total:
                set_up(self.study, self.settings, begun, self.total)
                return True
            self._lock.release()
            if "RUNNING" not in states:
                return False
            if not told:
                told = True
                self.say("waiting for trials of other processes")
            time.sleep(1)

    def _work_on_one(self) -> None:
        """Train one trial, and tell the study; the study's lock is held until it has begun."""
        import torch

        self._optuna_number = -1
        # after these, other parameters may do better; other errors are faults of the program
        expected = (DetrkitError, OSError, MemoryError, torch.OutOfMemoryError)
        try:
            self.study.optimize(self._objective, n_trials=1, catch=expected)
        except (KeyboardInterrupt, _StoppedBySignalError):
            if self._optuna_number >= 0 and self.study.trials[self._optuna_number].state.name == "FAIL":
                retry_trial(self.study, self._optuna_number)
            raise
        finally:
            self._lock.release(force=True)
            self._trial_lock.release()  # not before the study knows of the end
        with self._lock:
            results = read_trials(self.study, self.location)
            prune_checkpoints(results)
        self.say(shown_trial(results[self._number]))
        self._check_failures(results, results[self._number])

    def _check_failures(self, results: tuple[TrialResult, ...], last: TrialResult) -> None:
        """Stop where a fault of data or settings fails every trial, instead of failing the rest."""
        self._failed_in_a_row = self._failed_in_a_row + 1 if last.state == "fail" else 0
        some_succeed = any(result.state in ("complete", "pruned") for result in results)
        if self._failed_in_a_row >= FIRST_FAILURES and not some_succeed:
            raise TrainingError(
                f"the first {self._failed_in_a_row} trials all failed, the last with: {last.reason}; mend it, "
                "then begin anew in another --out, or go on with the same command"
            )

    def _objective(self, trial: optuna.Trial) -> float:
        """Train with the parameters of a trial; return its best AP."""
        # take it under the study's lock, so that no process takes it for dead
        trials = self.study.get_trials(deepcopy=False)
        frozen = trials[trial.number]
        number = self._number = number_of(frozen, trials)
        run_dir = self.location.run_dir(number)
        self._optuna_number, self._trial_lock = trial.number, self.location.trial_lock(number)
        self._trial_lock.acquire(timeout=60)
        run_dir.mkdir(parents=True, exist_ok=True)
        trial.set_user_attr("host", socket.gethostname())
        for dimension in self.settings.space.dimensions:
            dimension.suggest(trial)
        self._lock.release()

        # train, and note what is known of it in any case
        goes_on = " goes on" if (run_dir / "config.yaml").is_file() else ""
        self.say(f"trial {number}{goes_on}: {shown_parameters(trial.params)}")
        facts: dict[str, Any] = {}
        before_s, began_s = float(frozen.user_attrs.get("facts", {}).get("seconds", 0.0)), time.monotonic()
        try:
            config = self.settings.space.apply(self.settings.config, trial.params)
            result = self.train(config, run_dir, self._reporting(trial, set(frozen.intermediate_values)))
            facts = {"epochs": result.epochs, "steps": result.steps, "best_ap": result.best}
            if result.stopped == "interrupted":
                raise _StoppedBySignalError(result.signal_number)
            if result.stopped == "pruned":
                raise import_optuna().TrialPruned()
            if result.best is None or not math.isfinite(result.best):
                raise TrainingError("no evaluation gave an AP; has the validation split objects?")
            return result.best
        except Exception as error:
            facts["reason"] = error_line(error)
            raise
        finally:
            trial.set_user_attr("facts", {**facts, "seconds": before_s + time.monotonic() - began_s})

    def _reporting(self, trial: optuna.Trial, reported: set[int]) -> OnEvaluation:
        """Return a function that hands each evaluation's AP to the study and asks whether to prune."""

        def on_evaluation(epoch: int, metrics: Mapping[str, float]) -> bool:
            ap = metrics.get("AP", math.nan)
            if not math.isfinite(ap):  # nothing to measure
                return False
            if epoch not in reported:  # a run that went on from before its last evaluation gives it again
                trial.report(ap, epoch)
                reported.add(epoch)
            return epoch < self.settings.config.train.epochs and trial.should_prune()

        return on_evaluation


def prune_checkpoints(results: tuple[TrialResult, ...]) -> None:
    """Free the disk of what no trial needs any more.

    The best trial keeps everything, another complete one its best weights, a pruned or failed one its logs.
    """
    complete = [result for result in results if result.state == "complete"]
    best = max(complete, key=lambda result: (result.best_ap or 0.0, -result.number), default=None)
    for result in results:
        if result is not best and result.state in ("complete", "pruned", "fail"):
            for name in ("last.pt", "previous.pt", "next.pt", *["best.pt"] * (result.state != "complete")):
                (result.run_dir / "checkpoints" / name).unlink(missing_ok=True)
