"""The study: where trials are kept, who works on which, and which comes next.

Optuna holds parameters and values. What it lacks is kept beside them in attributes: who runs a trial (host,
process and its start), so that a trial whose process died goes on under its number instead of being lost.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

from detrkit.errors import MissingExtraError, TrainingError, UsageError
from detrkit.files import atomic_file, make_folder
from detrkit.tuning.settings import Pruner, Settings

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

STUDY_FILE = "study.json"
BEAT_S = 10.0
"""Between signs of life of a running trial, for other machines to see."""
GRACE_S = 90.0
"""Without a sign of life another machine's trial is dead. Counted here, so that clocks need not agree."""
MOST_DEATHS = 5
"""Of processes over one trial, after which it has failed."""
FIRST_FAILURES = 3
"""Trials that all fail before any succeeds: then something is wrong with all of them."""

_SETTINGS, _TOTAL = "settings", "trials"


def import_optuna() -> Any:
    """The optional package, quiet.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise MissingExtraError("optuna", "tune") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a study lies.

    Args:
        out: Its folder, with the runs of its trials.
        storage: Address of a database; None: ``study.db`` in the folder.
        name: Of the study in the database.
    """

    out: Path
    storage: str | None
    name: str

    def run_dir(self, number: int) -> Path:
        """Run folder of a trial."""
        return self.out / "trials" / f"{number:04d}"

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Inside, no other process claims, begins or thins out trials."""
        from filelock import FileLock

        with FileLock(self.out / ".lock"):
            yield


def find_place(out: Path, storage: str | None, name: str | None) -> Place:
    """The place of a new or former study; what a former call said of it need not be said again.

    Raises:
        UsageError: The folder cannot be used, holds another study, or its study lies in a database not given.
    """
    make_folder(out)
    path = out / STUDY_FILE
    if not path.is_file():
        if any(part.name != ".lock" and not part.name.startswith("worker-") for part in out.iterdir()):
            raise UsageError(f"{out} is not empty and holds no study; give another --out")
        return Place(out, storage, name or out.resolve().name)
    noted = json.loads(path.read_text(encoding="utf-8"))
    if name is not None and name != noted["study"]:
        raise UsageError(f"{out} holds the study {noted['study']!r}, asked for is {name!r}; give another --out")
    if noted["database"] and storage is None:
        raise UsageError(f"the study of {out} lies in a database; give its address again: --storage URL")
    if not noted["database"] and storage is not None:
        raise UsageError(f"the study of {out} lies in its study.db; leave out --storage, or give another --out")
    return Place(out, storage, noted["study"])


def open_study(place: Place) -> optuna.Study:
    """The study, made if it is not there.

    Raises:
        UsageError: The database cannot be opened.
        MissingExtraError: Optuna is not installed.
    """
    optuna = import_optuna()
    from sqlalchemy.engine import URL, make_url
    from sqlalchemy.exc import SQLAlchemyError

    if place.storage is None:
        url = URL.create("sqlite", database=str((place.out / "study.db").resolve()))
    else:
        try:
            url = make_url(place.storage)
        except SQLAlchemyError as error:
            raise UsageError(
                "--storage is not the address of a database; expected for instance postgresql://USER:PASSWORD@HOST/NAME"
            ) from error
    options: dict[str, Any] = {"pool_pre_ping": True}
    if url.get_backend_name() == "sqlite":
        options = {"connect_args": {"timeout": 120}}  # seconds to wait for other processes' writing
    address = url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")
    try:
        storage = optuna.storages.RDBStorage(address, engine_kwargs=options)
        study = optuna.create_study(
            storage=storage, study_name=place.name, direction="maximize", load_if_exists=True
        )
    except (SQLAlchemyError, ImportError, RuntimeError, optuna.exceptions.StorageInternalError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"the study's database {url.render_as_string()} cannot be used: {reason}") from error
    with atomic_file(place.out / STUDY_FILE) as file:
        file.write(json.dumps({"study": place.name, "database": place.storage is not None}) + "\n")
    return study  # type: ignore[no-any-return]


def read_settings(study: optuna.Study) -> Settings | None:
    """What the study was begun with; None if it is new.

    Raises:
        UsageError: It is a study of something else.
    """
    noted = study.user_attrs.get(_SETTINGS)
    if noted is None and any(trial.state.name != "WAITING" for trial in study.trials):
        raise UsageError(f"the study {study.study_name!r} was not made by detrkit tune; give another --study")
    return None if noted is None else Settings.from_dict(noted)


def begin_study(study: optuna.Study, settings: Settings) -> list[str]:
    """Note the settings, and let the config's own values be the first trial; gives what is to be said of it."""
    own, outside = settings.space.own_parameters(settings.config)
    study.enqueue_trial(own, skip_if_exists=True)
    study.set_user_attr(_SETTINGS, settings.to_dict())
    return [
        f"the first trial cannot have the config's own {name}: it lies outside of the space" for name in outside
    ]


def total_trials(study: optuna.Study, asked: int | None, default: int) -> int:
    """How many trials the study is to have; what was asked last counts."""
    total = asked or study.user_attrs.get(_TOTAL) or default
    if study.user_attrs.get(_TOTAL) != total:
        study.set_user_attr(_TOTAL, total)
    return int(total)


def set_up_pruner(study: optuna.Study, settings: Settings) -> None:
    """Give the study its pruner, which judges AP by epoch."""
    optuna = import_optuna()
    every, epochs = settings.config.train.eval_every, settings.config.train.epochs
    kinds: dict[Pruner, Any] = {
        # the first third of a training says little: warm-up, and a high learning rate shows its worth late
        "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=max(every, epochs // 3)),
        "hyperband": lambda: optuna.pruners.HyperbandPruner(every, max(epochs, every + 1), reduction_factor=3),
        "none": optuna.pruners.NopPruner,
    }
    study.pruner = kinds[settings.pruner]()


class Watch:
    """Tells which running trials have lost their process."""

    def __init__(self) -> None:
        self._beats: dict[int, tuple[Any, float]] = {}

    def is_dead(self, trial: FrozenTrial, place: Place) -> bool:
        """Whether nobody works on a running trial any more.

        A process of this machine is asked for; that of another is dead if its trial gave no sign of life for
        ``GRACE_S`` seconds under our eyes. Without its run folder here the trial is none of ours.
        """
        owner = trial.user_attrs.get("owner")
        if owner is None:
            return True
        if owner["machine"] == _machine():
            return not _is_alive(owner)
        if not place.run_dir(trial.number).is_dir():
            return False
        beat = trial.user_attrs.get("beat")
        former = self._beats.get(trial.number)
        if former is None or former[0] != beat:
            self._beats[trial.number] = (beat, time.monotonic())
            return False
        return time.monotonic() - former[1] > GRACE_S


def claim_trial(
    study: optuna.Study, settings: Settings, place: Place, watch: Watch, since: datetime.datetime
) -> optuna.Trial | None:
    """The next trial of this process: one whose process died, else a new one; None if there is nothing to do.

    Args:
        study: The study.
        settings: Of it.
        place: Of it.
        watch: Of this process.
        since: When the command began, for failures to count from.

    Raises:
        TrainingError: The first trials all failed.
    """
    optuna = import_optuna()
    with place.lock():
        trials = study.get_trials(deepcopy=False)
        _check_failures(trials, since)
        for frozen in trials:
            if frozen.state.name == "RUNNING" and watch.is_dead(frozen, place):
                # the constructor for a trial that is there already; only Optuna's own loop has no use for it
                trial = optuna.trial.Trial(study, frozen._trial_id)
                if not _has_died_too_often(study, trial, frozen):
                    return _own(_suggested(trial, settings))
        begun = [frozen for frozen in trials if frozen.state.name != "WAITING"]
        if len(begun) >= study.user_attrs[_TOTAL]:
            return None
        # seeded by the number, not once: a restart would draw the first random trials again
        seed = int(np.random.SeedSequence((settings.config.train.seed, len(begun))).generate_state(1)[0])
        startup = min(10, max(4, study.user_attrs[_TOTAL] // 3))
        study.sampler = optuna.samplers.TPESampler(
            multivariate=True, constant_liar=True, seed=seed, n_startup_trials=startup
        )
        trial = study.ask()
        place.run_dir(trial.number).mkdir(parents=True, exist_ok=True)
        return _own(_suggested(trial, settings))


def release_trial(trial: optuna.Trial, facts: dict[str, Any]) -> None:
    """Let another process, or the next start, go on with a trial."""
    note_facts(trial, facts)
    trial.set_user_attr("owner", None)


def note_facts(trial: optuna.Trial, facts: dict[str, Any]) -> None:
    """Note what is known of a trial besides its APs: seconds, epochs, steps, best_ap, reason."""
    trial.set_user_attr("facts", facts)


def read_facts(trial: optuna.Trial | FrozenTrial) -> dict[str, Any]:
    """What :func:`note_facts` noted last."""
    return dict(trial.user_attrs.get("facts", {}))


@contextlib.contextmanager
def signs_of_life(trial: optuna.Trial) -> Iterator[None]:
    """Note one now and then while inside."""
    ended = threading.Event()

    def beat() -> None:
        count = 0
        while not ended.wait(BEAT_S):
            count += 1
            # a database that is away for a moment shall not end the training
            with contextlib.suppress(Exception):
                trial.storage.set_trial_user_attr(trial._trial_id, "beat", f"{os.getpid()}-{count}")

    thread = threading.Thread(target=beat, name="signs of life", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _suggested(trial: optuna.Trial, settings: Settings) -> optuna.Trial:
    """The trial with all its parameters; those that it had stay."""
    from optuna import distributions

    for name, distribution in settings.space.distributions().items():
        if isinstance(distribution, distributions.CategoricalDistribution):
            trial.suggest_categorical(name, distribution.choices)
        elif isinstance(distribution, distributions.IntDistribution):
            trial.suggest_int(
                name, distribution.low, distribution.high, step=distribution.step, log=distribution.log
            )
        else:
            trial.suggest_float(
                name, distribution.low, distribution.high, step=distribution.step, log=distribution.log
            )
    return trial


def _own(trial: optuna.Trial) -> optuna.Trial:
    process = psutil.Process()
    trial.set_user_attr("owner", {"machine": _machine(), "process": process.pid, "started": process.create_time()})
    return trial


def _is_alive(owner: Mapping[str, Any]) -> bool:
    try:
        process = psutil.Process(owner["process"])
        # numbers of processes come again; a zombie has ended
        return abs(process.create_time() - owner["started"]) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _machine() -> str:
    """Host, and where processes have names of their own (containers), which namespace."""
    try:
        namespace = os.stat("/proc/self/ns/pid").st_ino  # noqa: PTH116
    except OSError:
        namespace = 0
    return f"{socket.gethostname()}/{namespace}"


def _has_died_too_often(study: optuna.Study, trial: optuna.Trial, frozen: FrozenTrial) -> bool:
    if frozen.user_attrs.get("owner") is None:
        return False
    deaths = int(frozen.user_attrs.get("deaths", 0)) + 1
    trial.set_user_attr("deaths", deaths)
    if deaths < MOST_DEATHS:
        return False
    reason = f"its process died {deaths} times; was it killed for the memory it took?"
    note_facts(trial, {**read_facts(frozen), "reason": reason})
    study.tell(trial, state=import_optuna().trial.TrialState.FAIL)
    return True


def _check_failures(trials: list[FrozenTrial], since: datetime.datetime) -> None:
    """A fault of data or settings fails every trial: say so instead of failing the rest."""
    if any(trial.state.name in ("COMPLETE", "PRUNED") for trial in trials):
        return
    failed = [
        trial
        for trial in trials
        if trial.state.name == "FAIL" and trial.datetime_complete is not None and trial.datetime_complete >= since
    ]
    if len(failed) >= FIRST_FAILURES:
        raise TrainingError(
            f"the first {len(failed)} trials all failed, the last with: {read_facts(failed[-1]).get('reason')}; "
            "mend it, then begin anew in another --out, or go on with the same command"
        )
