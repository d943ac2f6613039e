"""Curves in Weights & Biases and MLflow.

Both are optional and neither may cost a training: a package that is missing or a service that refuses is an error
before the first step, and a warning after it. Neither can be cut back to a checkpoint. Since a resumed run repeats
its steps bit for bit, leaving out what the service has already gives the same curves.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import time
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detrkit.errors import MissingExtraError, TrainingError
from detrkit.files import atomic_file, parse_json

IDS_FILE = "trackers.json"
_PAUSE_S = 60.0
"""Time without a try after a failure; doubled after each more. A service may take long to fail."""

_ADVICE = {
    "wandb": "without a network: WANDB_MODE=offline",
    "mlflow": "without a server: MLFLOW_TRACKING_URI=sqlite:///mlflow.db",
}


class WandbTracker:
    """A run of Weights & Biases; WANDB_MODE=offline needs no network.

    Args:
        run_dir: run folder; wandb's own files lie in its ``wandb/``.
        project: name of the project.
        run_id: id of the run to go on with; None begins one.
        params: flat config.
    """

    def __init__(self, run_dir: Path, project: str, run_id: str | None, params: Mapping[str, Any]):
        import wandb

        self.id = run_id or uuid.uuid4().hex[:12]
        # offline, each session has a folder of its own, and wandb warns of a resume that it cannot make
        is_online = os.environ.get("WANDB_MODE", "online") == "online"
        quiet = {"silent": True, "console": "off", "disable_git": True, "save_code": False}
        self._run: Any = wandb.init(
            project=project,
            name=run_dir.resolve().name,
            id=self.id,
            dir=str(run_dir),
            resume="allow" if run_id is not None and is_online else None,
            reinit="create_new",
            settings=wandb.Settings(**quiet, finish_timeout=30.0, finish_timeout_raises=False),
        )
        self._run.config.update(dict(params), allow_val_change=True)  # type: ignore[no-untyped-call]
        self._image = wandb.Image
        self._first_step = int(self._run.step)  # wandb refuses earlier ones, with a warning for each
        self.place = str(Path(self._run.dir).parent if self._run.offline else self._run.url)

    def log_values(self, values: Mapping[str, float], step: int) -> None:
        """Send the values of a step."""
        if step >= self._first_step:
            self._run.log(dict(values), step=step)

    def log_images(self, images: Sequence[tuple[str, np.ndarray]], step: int) -> None:
        """Send pictures: (tag, uint8 ``[H, W, 3]`` RGB)."""
        if step >= self._first_step:
            self._run.log({tag: self._image(pixels, file_type="jpg") for tag, pixels in images}, step=step)

    def close(self, ending: str) -> None:
        """End the session."""
        self._run.finish(exit_code=0 if ending == "success" else 1)


class MlflowTracker:
    """A run of MLflow, at MLFLOW_TRACKING_URI; arguments are those of :class:`WandbTracker`."""

    def __init__(self, run_dir: Path, project: str, run_id: str | None, params: Mapping[str, Any]):
        # it shall find out within a minute that nobody answers, not within ten
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells how it makes its tables
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its own libraries: outdated calls between them
            from mlflow.entities import Metric, Param
            from mlflow.tracking import MlflowClient

            self._client: Any = MlflowClient()
            self._metric = Metric
            self._sent: dict[str, int] | None = None if run_id is None else {}
            if run_id is None:
                found = self._client.get_experiment_by_name(project)
                experiment = found.experiment_id if found else self._client.create_experiment(project)
                run_id = str(self._client.create_run(experiment, run_name=run_dir.resolve().name).info.run_id)
                listed = [Param(key, str(value)[:6000]) for key, value in params.items()]
                for first in range(0, len(listed), 100):  # as many as MLflow takes at once
                    self._client.log_batch(run_id, params=listed[first : first + 100])
            else:
                self._client.update_run(run_id, status="RUNNING")
        self.id = run_id
        self.place = f"run {run_id} in experiment {project} of {self._client.tracking_uri}"

    def log_values(self, values: Mapping[str, float], step: int) -> None:
        """Send the values of a step, but those that the service has from before the run was resumed."""
        now = int(time.time() * 1000)
        fresh = [
            self._metric(tag, value, now, step) for tag, value in values.items() if step > self._last_step(tag)
        ]
        self._client.log_batch(self.id, metrics=fresh)

    def log_images(self, images: Sequence[tuple[str, np.ndarray]], step: int) -> None:
        """Send no pictures: MLflow keeps them as files, not beside the curves."""

    def close(self, ending: str) -> None:
        """End the run."""
        status = {"success": "FINISHED", "interrupted": "KILLED"}.get(ending, "FAILED")
        self._client.set_terminated(self.id, status)

    def _last_step(self, tag: str) -> int:
        """Return the last step of a tag that was sent before the run was resumed."""
        if self._sent is None:
            return -1
        if tag not in self._sent:
            steps = [metric.step for metric in self._client.get_metric_history(self.id, tag)]
            self._sent[tag] = max(steps, default=-1)
        return self._sent[tag]


_TRACKERS: dict[str, type[WandbTracker | MlflowTracker]] = {"wandb": WandbTracker, "mlflow": MlflowTracker}


class Trackers:
    """Services that a run reports to; nothing raises once they are open.

    Args:
        names: names as in ``train.trackers``; TensorBoard is not one of them.
        run_dir: run folder, which keeps the runs' ids for a resume.
        project: project or experiment.
        params: flat config, sent when a run begins.
        say: receiver of messages for people.

    Raises:
        MissingExtraError: A package is not installed.
        TrainingError: A service refuses to begin a run. To go on with one is never refused: a training that a
            machine resumes at night shall not wait for somebody to mend the network.
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
        self._pauses: dict[str, tuple[float, float]] = {}  # by service: its end, and how long it was
        check_trackers(names)
        ids = _read_ids(run_dir)
        for name in dict.fromkeys(name for name in names if name in _TRACKERS):
            try:
                tracker = _TRACKERS[name](run_dir, project, ids.get(name), params)
            except Exception as error:
                if name in ids:
                    self._failed(name, error)
                    continue
                self.close("failed")
                raise TrainingError(
                    f"{name} cannot begin a run: {_one_line(error)}; check its address and login, or leave it out "
                    f"of train.trackers; {_ADVICE[name]}"
                ) from error
            self._open[name] = tracker
            if ids.get(name) != tracker.id:
                ids[name] = tracker.id
                with atomic_file(run_dir / IDS_FILE, own_folder=True) as file:
                    file.write(json.dumps(ids, indent=1) + "\n")
            say(f"{name}: {tracker.place}")

    def log_values(self, values: Mapping[str, float], step: int) -> None:
        """Send the values of a step."""
        self._each(lambda tracker: tracker.log_values(values, step))

    def log_images(self, images: Sequence[tuple[str, np.ndarray]], step: int) -> None:
        """Send pictures to the services that show them."""
        self._each(lambda tracker: tracker.log_images(images, step))

    def close(self, ending: str) -> None:
        """End the runs: success, interrupted or failed."""
        self._pauses = dict.fromkeys(self._pauses, (0.0, 0.0))
        self._each(lambda tracker: tracker.close(ending))
        self._open.clear()

    def _each(self, send: Callable[[WandbTracker | MlflowTracker], None]) -> None:
        """Do something with every service that has not just failed."""
        for name, tracker in self._open.items():
            if time.monotonic() >= self._pauses.get(name, (0.0, 0.0))[0]:
                try:
                    send(tracker)
                except Exception as error:
                    self._failed(name, error)

    def _failed(self, name: str, error: Exception) -> None:
        if name not in self._pauses:
            self._say(f"WARNING: {name} fails: {_one_line(error)}; training goes on, metrics.jsonl has all values")
        pause = 2 * self._pauses[name][1] if name in self._pauses else _PAUSE_S
        self._pauses[name] = (time.monotonic() + pause, pause)


def check_trackers(names: Sequence[str]) -> None:
    """Check that the packages of the trackers are there.

    Raises:
        MissingExtraError: One is not installed.
    """
    for name in names:
        if name in _TRACKERS:
            spec = importlib.util.find_spec(name)
            if spec is None or spec.origin is None:  # a folder of that name, such as wandb makes, is no package
                raise MissingExtraError(name, "track")


def _read_ids(run_dir: Path) -> dict[str, str]:
    try:
        content = parse_json((run_dir / IDS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(name): str(run_id) for name, run_id in content.items()} if isinstance(content, dict) else {}


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]} ..."
