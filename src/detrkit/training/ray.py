"""Training on a Ray cluster: Ray starts the processes, again when one fails; the loop is detrkit's.

Each worker does what a process under torchrun does. Ray's process group is taken as it is, and a restarted
training goes on from the last checkpoint of the run folder, which all machines must share.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detrkit.config import Config
from detrkit.errors import MissingExtraError, TrainingError, UsageError
from detrkit.training.loop import FitResult
from detrkit.training.resuming import absolute_paths
from detrkit.training.run import Drawings, Say, start_run


def train_on_ray(
    config: Config,
    run_dir: str | Path,
    *,
    num_workers: int,
    resources: Mapping[str, float] | None = None,
    max_failures: int = 3,
    go_on: bool = False,
    asked: Mapping[str, Any] | None = None,
    drawings: Drawings | None = None,
    say: Say = print,
) -> FitResult:
    """Train on a Ray cluster; the same run folder comes out as of any training.

    Joins the Ray session of this process or, by ``RAY_ADDRESS``, a running cluster; if there is neither, Ray is
    started on this machine.

    Args:
        config: Config of the training; ``train.devices`` and ``train.num_nodes`` do not count.
        run_dir: Run folder, on a disk that all machines share.
        num_workers: Processes; each has a GPU if the config allows CUDA and the cluster has one, else a CPU,
            unless ``resources`` says otherwise.
        resources: Resources of each worker, as Ray counts them: ``{"CPU": 4}``.
        max_failures: Starts after a failure; -1 without end.
        go_on: If the run folder holds a training already, go on with that one.
        asked: As for :func:`detrkit.training.run.start_run`.
        drawings: Functions that draw curves and samples, from the top of a module.
        say: Receives messages for people.

    Raises:
        MissingExtraError: Ray is not installed.
        UsageError: There is no worker to be, or the folder holds another run.
        TrainingError: Training failed more often than allowed; says how.
    """
    ray, torch_trainer = _import_ray()
    if num_workers < 1:
        raise UsageError(f"{num_workers} Ray workers were asked for, expected at least 1")
    run_dir = Path(run_dir).expanduser().resolve()
    if not go_on and run_dir.is_dir() and any(run_dir.iterdir()):
        raise UsageError(f"{run_dir} is not empty; give another --run, or go on with it: --resume")
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=True)
    use_gpu = config.train.device != "cpu" and ray.cluster_resources().get("GPU", 0) > 0
    place = run_dir.with_name(f"{run_dir.name}-ray")
    say(f"training with {num_workers} Ray workers{', a GPU each' if use_gpu else ''}; Ray's own records: {place}")
    trainer = torch_trainer(
        _train_worker,
        train_loop_config={
            "config": absolute_paths(config).model_dump(mode="json"),
            "run_dir": str(run_dir),
            "asked": dict(asked or {}),
            "drawings": drawings,
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=num_workers,
            use_gpu=use_gpu,
            resources_per_worker=dict(resources) if resources is not None else None,
        ),
        run_config=ray.train.RunConfig(
            name=uuid.uuid4().hex[:8],  # Ray would go on with records of the same name
            storage_path=str(place),
            failure_config=ray.train.FailureConfig(max_failures=max_failures),
        ),
    )
    try:
        result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise TrainingError(
            f"training with Ray failed: {_cause(error)}; what was saved last is whole: go on with the same "
            "command and --resume"
        ) from error
    ended: dict[str, Any] = result.return_value
    return FitResult(**{**ended, "run_dir": run_dir})


def _train_worker(arguments: dict[str, Any]) -> dict[str, Any]:
    """Train as one worker; after a failure Ray calls it again."""
    import ray.train

    def report(epoch: int, metrics: Mapping[str, float]) -> bool:
        ray.train.report({"epoch": epoch, **metrics})  # on every worker: Ray waits for all of them
        return False

    config = Config.model_validate(arguments["config"])
    result = start_run(
        config,
        Path(arguments["run_dir"]),
        _say_on_first,
        drawings=arguments["drawings"],
        on_evaluation=report,
        go_on=True,
        asked=arguments["asked"],
    )
    return {**dataclasses.asdict(result), "run_dir": str(result.run_dir)}


def _say_on_first(message: str) -> None:
    import ray.train

    if ray.train.get_context().get_world_rank() == 0:
        print(message, flush=True)


def _cause(error: BaseException) -> str:
    """Return the last line of what the first failed worker said."""
    failures: Mapping[int, BaseException] = getattr(error, "worker_failures", None) or {}
    first = next(iter(failures.values()), error)
    return (str(first).strip() or type(first).__name__).splitlines()[-1]


def _import_ray() -> tuple[Any, Any]:
    """Import Ray with Ray Train, and its trainer for torch."""
    try:
        import ray
        import ray.train
        import ray.train.torch
    except ImportError as error:
        raise MissingExtraError("ray[train]", "ray") from error
    return ray, ray.train.torch.TorchTrainer
