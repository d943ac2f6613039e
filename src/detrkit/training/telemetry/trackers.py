"""Curves in Weights & Biases and MLflow, through the interface of Fabric's loggers.

Both are optional and none of them may cost a training: a package that is missing or a service that refuses is an
error before the first step, and a warning after it. Neither can be cut back to a checkpoint. Since a resumed run
repeats its steps bit for bit, leaving out what the service has already gives the same curves.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import queue
import threading
import time
import uuid
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning_fabric.loggers import Logger

from detrkit.errors import MissingExtraError, TrainingError
from detrkit.files import atomic_file

IDS_FILE = "trackers.json"
_EXTRA = "track"
_CLOSE_S = 30.0
"""Longest wait for a service at the end of a training."""

_SAVE_S = 5.0
"""Longest wait for a service at a checkpoint."""

_MOST_WAITING = 10_000
"""Log lines kept for a service that does not answer; more are dropped."""


class WandbTracker(Logger):
    """A run of Weights & Biases; WANDB_MODE=offline needs no network.

    Args:
        run_dir: The run folder; wandb's own files lie in its ``wandb/``.
        project: The project.
        run_id: Of the run to go on with; None begins one.
    """

    def __init__(self, run_dir: Path, project: str, run_id: str | None = None):
        import wandb

        self.id = run_id or uuid.uuid4().hex[:12]
        settings = wandb.Settings(
            silent=True,
            console="off",
            disable_git=True,
            save_code=False,
            finish_timeout=_CLOSE_S,
            finish_timeout_raises=False,
        )
        self._run: Any = wandb.init(
            project=project,
            name=run_dir.resolve().name,
            id=self.id,
            dir=str(run_dir),
            resume=None if run_id is None or _is_wandb_offline() else "allow",
            reinit="create_new",
            settings=settings,
        )
        self._image = wandb.Image
        # Of a resumed run: wandb refuses, with a warning for each, what comes before its last step.
        self._first_step = int(self._run.step)

    @property
    def name(self) -> str:
        """The project."""
        return str(self._run.project)

    @property
    def version(self) -> str:
        """Id of the run."""
        return self.id

    @property
    def place(self) -> str:
        """Where the run can be seen."""
        return str(Path(self._run.dir).parent if self._run.offline else self._run.url)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Send values of a step."""
        if (step or 0) >= self._first_step:
            self._run.log(dict(metrics), step=step)

    def log_images(self, images: Sequence[tuple[str, np.ndarray]], step: int) -> None:
        """Send pictures: (tag, uint8 ``[H, W, 3]`` RGB)."""
        if step >= self._first_step:
            self._run.log({tag: self._image(pixels, file_type="jpg") for tag, pixels in images}, step=step)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *_args: Any, **_kwargs: Any) -> None:
        """Send the config."""
        values = vars(params) if isinstance(params, Namespace) else params
        self._run.config.update(values, allow_val_change=True)

    def finalize(self, status: str) -> None:
        """End the session; waits for the network, but not for long."""
        self._run.finish(exit_code=0 if status == "success" else 1)


class MlflowTracker(Logger):
    """A run of MLflow, at MLFLOW_TRACKING_URI.

    A thread talks to the service, which repeats a request for minutes when nobody answers.

    Args:
        run_dir: The run folder.
        project: The experiment.
        run_id: Of the run to go on with; None begins one.
    """

    def __init__(self, run_dir: Path, project: str, run_id: str | None = None):
        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells how it makes its tables
        with warnings.catch_warnings(), _impatient():
            warnings.simplefilter("ignore")  # of its own libraries: outdated calls between them
            from mlflow.entities import Metric, Param
            from mlflow.tracking import MlflowClient

            self._client: Any = MlflowClient()
            self._metric, self._param = Metric, Param
            self._is_resumed = run_id is not None
            self._project = project
            self.id = run_id or self._begin(run_dir.resolve().name)
            if run_id is not None:
                self._client.update_run(run_id, status="RUNNING")
        self._last_steps: dict[str, int] = {}
        self._error: Exception | None = None
        self._lines: queue.Queue[tuple[dict[str, float], int, int] | None] = queue.Queue(_MOST_WAITING)
        self._thread = threading.Thread(target=self._send_all, name="mlflow", daemon=True)
        self._thread.start()

    def _begin(self, name: str) -> str:
        experiment = self._client.get_experiment_by_name(self._project)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(self._project)
        return str(self._client.create_run(experiment_id, run_name=name).info.run_id)

    @property
    def name(self) -> str:
        """The experiment."""
        return self._project

    @property
    def version(self) -> str:
        """Id of the run."""
        return self.id

    @property
    def place(self) -> str:
        """Where the run can be seen."""
        return f"run {self.id} in experiment {self._project} of {self._client.tracking_uri}"

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Send values of a step; raises what an earlier one failed with."""
        try:
            self._lines.put_nowait((dict(metrics), step or 0, int(time.time() * 1000)))
        except queue.Full:
            raise TrainingError("it does not answer, its curves have gaps") from None
        self._raise()

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *_args: Any, **_kwargs: Any) -> None:
        """Send the config, once: what is set stays."""
        values = vars(params) if isinstance(params, Namespace) else params
        if not self._is_resumed:
            listed = [self._param(key, str(value)[:6000]) for key, value in values.items()]
            for first in range(0, len(listed), 100):  # as many as MLflow takes at once
                self._client.log_batch(self.id, params=listed[first : first + 100])

    def save(self) -> None:
        """Wait, but not for long, until the service has everything: no gap if the process dies later."""
        with self._lines.all_tasks_done:
            self._lines.all_tasks_done.wait_for(lambda: not self._lines.unfinished_tasks, timeout=_SAVE_S)

    def finalize(self, status: str) -> None:
        """Send what waits, but not for long, and end the run."""
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait(None)
        self._thread.join(_CLOSE_S)
        if self._thread.is_alive():
            raise TrainingError(f"it does not answer, about {self._lines.qsize():,} log lines were not sent")
        endings = {"success": "FINISHED", "interrupted": "KILLED"}
        self._client.set_terminated(self.id, endings.get(status, "FAILED"))
        self._raise()

    def _raise(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _send_all(self) -> None:
        while (line := self._lines.get()) is not None:
            values, step, milliseconds = line
            try:
                fresh = {tag: value for tag, value in values.items() if not self._has(tag, step)}
                metrics = [self._metric(tag, value, milliseconds, step) for tag, value in fresh.items()]
                self._client.log_batch(self.id, metrics=metrics)
            except Exception as error:
                self._error = error
            finally:
                self._lines.task_done()

    def _has(self, tag: str, step: int) -> bool:
        """Whether the service has this value from before the run was resumed."""
        if not self._is_resumed:
            return False
        if tag not in self._last_steps:
            steps = [metric.step for metric in self._client.get_metric_history(self.id, tag)]
            self._last_steps[tag] = max(steps, default=-1)
        return step <= self._last_steps[tag]


_TRACKERS: dict[str, Callable[[Path, str, str | None], WandbTracker | MlflowTracker]] = {
    "wandb": WandbTracker,
    "mlflow": MlflowTracker,
}


class Trackers:
    """The services that a run reports to; never raises once they are open.

    Args:
        names: As in ``train.trackers``; TensorBoard is not one of them.
        run_dir: The run folder, which keeps the runs' ids for a resume.
        project: Project or experiment.
        params: The config, flat, sent when a run begins.
        say: Tells people.

    Raises:
        MissingExtraError: A package is not installed.
        TrainingError: A service refuses to begin a run. To go on with one is never refused: the training that
            is resumed at night by a machine shall not wait for somebody to mend the network.
    """

    def __init__(
        self,
        names: Sequence[str],
        run_dir: Path,
        *,
        project: str,
        params: Mapping[str, Any],
        say: Callable[[str], None],
    ):
        self._open: dict[str, WandbTracker | MlflowTracker] = {}
        self._say = say
        self._warned: set[str] = set()
        wanted = [name for name in dict.fromkeys(names) if name in _TRACKERS]
        check_trackers(wanted)
        ids = _read_ids(run_dir)
        for name in wanted:
            try:
                tracker = _TRACKERS[name](run_dir, project, ids.get(name))
                tracker.log_hyperparams(dict(params))
            except Exception as error:
                if name in ids:
                    self._warn(name, error)
                    continue
                self.finalize("failed")
                raise TrainingError(
                    f"{name} cannot begin a run: {_one_line(error)}; check its address and login, or leave it out "
                    f"of train.trackers{_ADVICE[name]}"
                ) from error
            self._open[name] = tracker
            if ids.get(name) != tracker.id:
                ids[name] = tracker.id
                _write_ids(run_dir, ids)
            say(f"{name}: {tracker.place}")

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Send values of a step."""
        for name, tracker in self._open.items():
            with self._guarded(name):
                tracker.log_metrics(metrics, step)

    def log_images(self, images: Sequence[tuple[str, np.ndarray]], step: int) -> None:
        """Send pictures to the services that show them."""
        for name, tracker in self._open.items():
            if isinstance(tracker, WandbTracker):
                with self._guarded(name):
                    tracker.log_images(images, step)

    def save(self) -> None:
        """Wait, but not for long, until the services have everything."""
        for name, tracker in self._open.items():
            with self._guarded(name):
                tracker.save()

    def finalize(self, status: str) -> None:
        """End the runs: success, interrupted or failed."""
        for name, tracker in self._open.items():
            with self._guarded(name):
                tracker.finalize(status)
        self._open.clear()

    @contextlib.contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._warn(name, error)

    def _warn(self, name: str, error: Exception) -> None:
        if name not in self._warned:
            self._warned.add(name)
            self._say(f"WARNING: {name} fails: {_one_line(error)}; training goes on, metrics.jsonl has all values")


_ADVICE = {
    "wandb": "; without a network: WANDB_MODE=offline",
    "mlflow": "; without a server: MLFLOW_TRACKING_URI=sqlite:///mlflow.db",
}


def check_trackers(names: Sequence[str]) -> None:
    """See whether the packages of the trackers are there.

    Raises:
        MissingExtraError: One is not installed.
    """
    for name in names:
        if name in _TRACKERS:
            spec = importlib.util.find_spec(name)
            if spec is None or spec.origin is None:  # a folder of that name, such as wandb makes, is no package
                raise MissingExtraError(name, _EXTRA)


def _read_ids(run_dir: Path) -> dict[str, str]:
    try:
        content = json.loads((run_dir / IDS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(name): str(run_id) for name, run_id in content.items()} if isinstance(content, dict) else {}


def _write_ids(run_dir: Path, ids: Mapping[str, str]) -> None:
    with atomic_file(run_dir / IDS_FILE) as file:
        json.dump(dict(ids), file, indent=1)
        file.write("\n")


def _is_wandb_offline() -> bool:
    """Offline, each session has a folder of its own, and wandb warns of a resume that it cannot make."""
    return os.environ.get("WANDB_MODE", "online") != "online"


@contextlib.contextmanager
def _impatient() -> Iterator[None]:
    """Before training, MLflow shall find out within a minute that nobody answers, not within ten."""
    patience = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
    added = {name: value for name, value in patience.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]} ..."
