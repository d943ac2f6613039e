"""The study of a search: where it lies, what it was begun with, and which of its trials nobody works on any more.

Optuna holds parameters and values. A trial whose process died is failed and queued again by Optuna's own means:
after its heartbeat stopped, on another machine, or at once where nobody holds its lock, on this one. The queued
trial goes on in the run folder of the first. People know both as one trial, by the place of the first among all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from filelock import FileLock, Timeout

from detrkit.errors import MissingExtraError, UsageError
from detrkit.files import NOTES, check_free, is_leftover, make_folder, parse_json, write_text
from detrkit.tuning.settings import Settings

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

STUDY_FILE = "study.json"
RESULTS = ("best.yaml", "trials.csv", "tune.html", "tune.png")
"""Files that a search writes at its end."""
HEARTBEAT_S = 10
"""Time between two heartbeats of a running trial."""
GRACE_S = 90
"""Time without a heartbeat after which a trial of another machine is taken for dead."""
MOST_RETRIES = 5
"""Deaths of processes over one trial, after which it has failed."""


def import_optuna() -> Any:
    """Import the optional package, quiet.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise MissingExtraError("optuna", "tune") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


@contextlib.contextmanager
def no_experimental_warnings() -> Iterator[None]:
    """Use what Optuna calls experimental, without its warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", import_optuna().exceptions.ExperimentalWarning)
        yield


class _Noted(msgspec.Struct):
    """Content of ``study.json``: name of the study, and whether it lies in a database that was given."""

    study: str
    database: bool


@dataclasses.dataclass(frozen=True)
class StudyLocation:
    """Place of a study.

    Args:
        out: folder of the study, with the runs of its trials.
        storage: address of a database; None: ``study.db`` in the folder.
        name: name of the study in the database.
    """

    out: Path
    storage: str | None
    name: str

    def run_dir(self, number: int) -> Path:
        """Return the run folder of a trial."""
        return self.out / "trials" / f"{number:04d}"

    def trial_lock(self, number: int) -> FileLock:
        """Return the lock that a process holds while it trains a trial; the system releases it if it dies."""
        return FileLock(self.out / f".trial-{number:04d}.lock")


def study_lock(out: Path) -> FileLock:
    """Return the lock under which a study is begun, and its trials begun, failed and pruned.

    Raises:
        UsageError: The folder cannot be used, or holds something else.
    """
    make_folder(out)
    lock, found = out / ".lock", list(out.iterdir())
    if lock.exists() and not lock.stat().st_size:  # a process makes the study now, or was killed while it did
        found = [part for part in found if part != lock and not part.name.startswith(("study.db", NOTES))]
    if any(not is_leftover(part) for part in found) and not (out / STUDY_FILE).is_file():
        raise UsageError(f"{out} is not empty and holds no study; give another --out")
    return FileLock(lock)


def find_location(out: Path, storage: str | None, name: str | None) -> StudyLocation:
    """Return the location of a new or former study; what a former call said of it need not be said again.

    To be called under the study's lock, or two processes would begin two studies in one folder.

    Raises:
        UsageError: The folder holds another study, or its study lies in a database not given.
    """
    path = out / STUDY_FILE
    if not path.is_file():
        return StudyLocation(out, storage, name or out.resolve().name)
    try:
        noted: _Noted = parse_json(path.read_bytes(), _Noted)
    except ValueError as error:
        raise UsageError(f"{path} is not the note of a study ({error}); give another --out") from error
    check_free(*(out / name for name in RESULTS))
    if name is not None and name != noted.study:
        raise UsageError(f"{out} holds the study {noted.study!r}, asked for is {name!r}; give another --out")
    if noted.database and storage is None:
        raise UsageError(f"the study of {out} lies in a database; give its address again: --storage URL")
    if not noted.database and storage is not None:
        raise UsageError(f"the study of {out} lies in its study.db; leave out --storage, or give another --out")
    return StudyLocation(out, storage, noted.study)


def open_study(location: StudyLocation) -> optuna.Study:
    """Open a study, made if it is not there.

    Raises:
        UsageError: The database cannot be opened.
        MissingExtraError: Optuna is not installed.
    """
    optuna = import_optuna()
    from sqlalchemy.engine import URL, make_url
    from sqlalchemy.exc import SQLAlchemyError

    # the address, in which Optuna's migrations take braces for places to fill in
    if location.storage is None:
        url = URL.create("sqlite", database=str((location.out / "study.db").resolve()))
    else:
        try:
            url = make_url(location.storage)
        except SQLAlchemyError as error:
            raise UsageError(
                "--storage is not the address of a database; expected for instance postgresql://USER:PASSWORD@HOST/NAME"
            ) from error
    address = url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")
    options: dict[str, Any] = {"pool_pre_ping": True}
    if url.get_backend_name() == "sqlite":
        options = {"connect_args": {"timeout": 120}}  # seconds to wait for other processes' writing

    # the study
    try:
        with no_experimental_warnings():
            heartbeat: dict[str, Any] = {"heartbeat_interval": HEARTBEAT_S, "grace_period": GRACE_S}
            heartbeat["heartbeat_stale_trial_callback"] = _retry_callback(MOST_RETRIES)
            storage = optuna.storages.RDBStorage(address, engine_kwargs=options, **heartbeat)
        study = optuna.create_study(
            storage=storage, study_name=location.name, direction="maximize", load_if_exists=True
        )
    except (SQLAlchemyError, ImportError, RuntimeError, optuna.exceptions.StorageInternalError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"the study's database {url.render_as_string()} cannot be used: {reason}") from error
    if not (location.out / STUDY_FILE).is_file():
        noted = _Noted(location.name, location.storage is not None)
        write_text(location.out / STUDY_FILE, msgspec.json.encode(noted).decode() + "\n")
    return study  # type: ignore[no-any-return]


def read_settings(study: optuna.Study) -> Settings | None:
    """Return what the study was begun with; None if it is new.

    Raises:
        UsageError: It is a study of something else.
    """
    noted = study.user_attrs.get("settings")
    if noted is None and any(trial.state.name != "WAITING" for trial in study.trials):
        raise UsageError(f"the study {study.study_name!r} was not made by detrkit tune; give another --study")
    return None if noted is None else Settings.from_dict(noted)


def begin_study(study: optuna.Study, settings: Settings) -> list[str]:
    """Note the settings, and queue the config's own values as the first trial; return what is to be said of it."""
    own, outside = settings.space.own_parameters(settings.config)
    study.enqueue_trial(own, skip_if_exists=True)
    study.set_user_attr("settings", settings.to_dict())
    return [
        f"the first trial cannot have the config's own {name}: it lies outside of the space" for name in outside
    ]


def set_up(study: optuna.Study, settings: Settings, begun: int, total: int) -> None:
    """Give the study its pruner, which judges AP by epoch, and the sampler of its next trial.

    Args:
        study: the study.
        settings: settings of the study.
        begun: trials begun; the sampler is seeded by it, or a restart would draw the first trials again.
        total: trials that there are to be.
    """
    optuna = import_optuna()
    every, epochs = settings.config.train.eval_every, settings.config.train.epochs
    if settings.pruner == "median":
        # the first third of a training says little: warm-up, and a high learning rate shows its worth late
        study.pruner = optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=max(every, epochs // 3))
    elif settings.pruner == "hyperband":
        study.pruner = optuna.pruners.HyperbandPruner(every, max(epochs, every + 1), reduction_factor=3)
    else:
        study.pruner = optuna.pruners.NopPruner()
    seed = int(np.random.SeedSequence((settings.config.train.seed, begun)).generate_state(1)[0])
    startup = min(10, max(4, total // 3))
    with no_experimental_warnings():
        study.sampler = optuna.samplers.TPESampler(
            multivariate=True, constant_liar=True, seed=seed, n_startup_trials=startup
        )


def first_trials(trials: Sequence[FrozenTrial]) -> list[int]:
    """Return Optuna's numbers of the trials that are no retry of another."""
    return [trial.number for trial in trials if "failed_trial" not in trial.system_attrs]


def number_of(trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> int:
    """Return the number of a trial as people know it: that of the trial that it retries, if it does."""
    return first_trials(trials).index(trial.system_attrs.get("failed_trial", trial.number))


def current_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials as people know them, in their order; one that was retried is its last retry."""
    trials = study.get_trials(deepcopy=False)
    retried = {number for trial in trials for number in trial.system_attrs.get("retry_history", ())}
    current = [trial for trial in trials if trial.number not in retried]
    return sorted(current, key=lambda trial: number_of(trial, trials))


def retry_dead_trials(study: optuna.Study, location: StudyLocation) -> None:
    """Fail the running trials whose process died, and queue them again. To be called under the study's lock."""
    optuna = import_optuna()
    with no_experimental_warnings():
        optuna.storages.fail_stale_trials(study)  # of any machine, after some time
    trials = study.get_trials(deepcopy=False)
    for trial in trials:
        is_here = trial.user_attrs.get("host", socket.gethostname()) == socket.gethostname()
        if trial.state.name == "RUNNING" and is_here:
            try:
                with location.trial_lock(number_of(trial, trials)).acquire(timeout=0):
                    study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            except Timeout:
                continue
            retry_trial(study, trial.number, MOST_RETRIES)


def retry_trial(study: optuna.Study, number: int, most: int | None = None) -> None:
    """Queue a failed trial again: same parameters, same run folder, its values so far."""
    _retry_callback(most)(study, study.trials[number])


def _retry_callback(most: int | None) -> Any:
    with no_experimental_warnings():
        callback = import_optuna().storages.RetryHeartbeatStaleTrialCallback
        return callback(max_retry=most, inherit_intermediate_values=True)
