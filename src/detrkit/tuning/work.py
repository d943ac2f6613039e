"""Working through trials: in this process, or in several of one machine."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

from detrkit.errors import DetrkitError, TrainingError
from detrkit.tuning.settings import Settings
from detrkit.tuning.study import (
    Place,
    Watch,
    claim_trial,
    open_study,
    read_facts,
    read_settings,
    set_up_pruner,
)
from detrkit.tuning.trial import Train, run_trial, thin_out, train_trial

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

Say = Callable[[str], None]

_LOOK_S = 1.0
_COMMAND = "import sys; from detrkit.tuning.work import main; sys.exit(main(sys.argv[1]))"
_FAILED = 1
_STORAGE = "DETRKIT_TUNE_STORAGE"


@dataclasses.dataclass(frozen=True)
class WorkEnd:
    """How the work ended.

    Args:
        stopped: finished: every trial is done or in other hands; interrupted: by a signal.
        signal_number: That signal.
    """

    stopped: Literal["finished", "interrupted"]
    signal_number: int | None = None


class Signals:
    """Ctrl-C and SIGTERM between trainings, which have their own way with them: KeyboardInterrupt.

    Outside the main thread Python cannot catch signals; nothing is caught there then.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._former: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._former[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.number = self.number or number
        raise KeyboardInterrupt


def work_here(
    study: optuna.Study,
    settings: Settings,
    place: Place,
    since: datetime.datetime,
    say: Say,
    *,
    data_workers: int | None = None,
    train: Train = train_trial,
    may_go_on: Callable[[], bool] = lambda: True,
) -> WorkEnd:
    """Train one trial after another until there is nothing left for this process.

    Args:
        study: The study.
        settings: Of it.
        place: Of it.
        since: When the command began.
        say: Told each trial that begins or ends.
        data_workers: As for :func:`detrkit.tuning.trial.run_trial`.
        train: As there.
        may_go_on: Asked before each trial.

    Raises:
        TrainingError: The first trials all failed.
    """
    set_up_pruner(study, settings)
    watch = Watch()
    with Signals() as signals:
        try:
            while may_go_on():
                trial = claim_trial(study, settings, place, watch, since)
                if trial is None:
                    break
                goes_on = " goes on" if (place.run_dir(trial.number) / "config.yaml").is_file() else ""
                say(f"trial {trial.number}{goes_on}: {shown_parameters(trial.params)}")
                end = run_trial(study, trial, settings, place, data_workers=data_workers, train=train)
                if end.state == "interrupted":
                    return WorkEnd("interrupted", end.signal_number)
                say(shown_trial(study.trials[trial.number]))
                thin_out(study, place)
        except KeyboardInterrupt:
            return WorkEnd("interrupted", signals.number or signal.SIGINT)
    return WorkEnd("finished")


def work_in_parallel(
    study: optuna.Study, settings: Settings, place: Place, since: datetime.datetime, workers: int, say: Say
) -> WorkEnd:
    """The same in several processes, which share the CPUs and the GPUs.

    Each is a program of its own, with its messages in ``worker-1.log`` and so on: nothing of this process can
    leak into it. A signal is handed on to all; if this process dies, they stop at their next sign of life.

    Raises:
        TrainingError: A process failed.
    """
    open_trials = {trial.number for trial in study.get_trials(deepcopy=False) if not trial.state.is_finished()}
    processes = [_start(settings, place, since, number, workers) for number in range(workers)]
    told = {trial.number for trial in study.get_trials(deepcopy=False)} - open_trials
    stop: int | None = None
    with Signals() as signals:
        while any(process.poll() is None for process in processes):
            try:
                time.sleep(_LOOK_S)
                told |= _tell_finished(study, told, say)
            except KeyboardInterrupt:
                stop = signals.number or signal.SIGINT
                for process in processes:
                    with contextlib.suppress(ProcessLookupError):
                        process.send_signal(stop)
        if stop is None:
            _tell_finished(study, told, say)
    codes = [process.returncode for process in processes]
    if stop is not None:
        return WorkEnd("interrupted", stop)
    if any(codes):
        message = _what_failed(place, codes)
        if any(not trial.state.is_finished() for trial in study.get_trials(deepcopy=False)) or not any(
            code == 0 for code in codes
        ):
            raise TrainingError(message)
        say(f"WARNING: {message}; the others have done its trials")
    return WorkEnd("finished")


def wait_for_others(study: optuna.Study, place: Place, say: Say) -> WorkEnd | None:
    """Wait until no other process has a trial in hands; None if one lost its process, and there is work again."""
    watch = Watch()
    told: set[int] = set()
    with Signals() as signals:
        try:
            while True:
                running = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == "RUNNING"]
                if not running:
                    return WorkEnd("finished")
                if any(watch.is_dead(trial, place) for trial in running):
                    return None
                if new := {trial.number for trial in running} - told:
                    told |= new
                    say(f"waiting for other processes, at work on trial {', '.join(map(str, sorted(new)))}")
                time.sleep(_LOOK_S)
        except KeyboardInterrupt:
            return WorkEnd("interrupted", signals.number or signal.SIGINT)


def main(task: str) -> int:
    """A worker's program."""
    values = json.loads(task)
    place = Place(Path(values["out"]), os.environ.get(_STORAGE), values["study"])
    parent = os.getppid()
    _end_with_parent(parent)
    try:
        study = open_study(place)
        settings = read_settings(study)
        assert settings is not None
        since = datetime.datetime.fromisoformat(values["since"])
        end = work_here(
            study,
            settings,
            place,
            since,
            lambda message: print(message, flush=True),
            data_workers=values["data_workers"],
            may_go_on=lambda: os.getppid() == parent,
        )
    except DetrkitError as error:
        print(f"error: {error}", file=sys.stderr)
        return _FAILED
    return 0 if end.stopped == "finished" else 128 + (end.signal_number or signal.SIGINT)


def shown_parameters(parameters: Mapping[str, Any]) -> str:
    """Parameters in one line."""
    return ", ".join(
        f"{name.rpartition('/')[0] or name}{'/lr' if '/' in name else ''} {shown_value(value)}"
        for name, value in parameters.items()
    )


def shown_value(value: Any) -> str:
    """A parameter's value, short."""
    if value is None:
        return "off"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def shown_trial(trial: FrozenTrial) -> str:
    """What became of a trial, in one line."""
    facts = read_facts(trial)
    state = trial.state.name
    if state == "FAIL":
        return f"trial {trial.number} failed: {facts.get('reason')}"
    best = facts.get("best_ap")
    ap = "-" if best is None else f"{best:.3f}"
    epochs = facts.get("epochs")
    took = f"{epochs} epoch{'' if epochs == 1 else 's'}, {facts.get('seconds', 0.0):.0f} s"
    return f"trial {trial.number} {'done' if state == 'COMPLETE' else 'pruned'}: best AP {ap} ({took})"


def thread_share(workers: int) -> int:
    """CPUs for each worker."""
    from detrkit.data.loader import available_cpus

    return max(1, available_cpus() // workers)


def _start(
    settings: Settings, place: Place, since: datetime.datetime, number: int, workers: int
) -> subprocess.Popen[bytes]:
    threads = thread_share(workers)
    task = {
        "out": str(place.out.resolve()),
        "study": place.name,
        "since": since.isoformat(),
        "data_workers": min(_loader_processes(settings), max(0, threads - 1)),
    }
    environment = {**os.environ, **_devices(settings, number)}
    if place.storage is not None:  # may hold a password, which a list of processes would show
        environment[_STORAGE] = place.storage
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        environment[name] = str(min(threads, int(os.environ.get(name, "") or threads)))
    with (place.out / f"worker-{number + 1}.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-c", _COMMAND, json.dumps(task)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,  # a terminal's Ctrl-C would reach it twice
        )


def _loader_processes(settings: Settings) -> int:
    """Loader processes that a trial alone would have."""
    from detrkit.data.loader import auto_workers

    return auto_workers() if settings.config.data.workers == "auto" else settings.config.data.workers


def _devices(settings: Settings, number: int) -> dict[str, str]:
    """Which GPU a worker sees."""
    if settings.config.train.device == "cpu":
        return {}
    import torch

    count = torch.cuda.device_count()
    if not count:
        return {}
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible: Sequence[str] = named.split(",") if named else [str(device) for device in range(count)]
    return {"CUDA_VISIBLE_DEVICES": visible[number % count]}


def _end_with_parent(parent: int) -> None:
    """Stop this worker politely once the process that started it is gone."""

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_S)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=look, name="watch parent", daemon=True).start()


def _tell_finished(study: optuna.Study, told: set[int], say: Say) -> set[int]:
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    new = [trial for trial in trials if trial.number not in told]
    for trial in new:
        say(shown_trial(trial))
    return {trial.number for trial in new}


def _what_failed(place: Place, codes: Sequence[int]) -> str:
    """The last words of the first worker that failed."""
    number = next(number for number, code in enumerate(codes, start=1) if code)
    code = codes[number - 1]
    log = place.out / f"worker-{number}.log"
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    said = f": {lines[-1].removeprefix('error: ')}" if lines and code == _FAILED else ""
    advice = "" if said else "; its trial goes on with the same command"
    return f"worker {number} {how}{said} (all it said is in {log}){advice}"
