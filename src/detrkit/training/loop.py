"""The training loop, from top to bottom: epochs, steps, evaluation, checkpoints.

A step is one change of the weights, from ``accumulate`` micro-batches on each process. It asks the device once
per micro-batch, for the matcher; values to log are read every ``log_every`` steps.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import signal
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from detrkit.checkpoint import CheckpointStore
from detrkit.config import Config, count_keys, write_config
from detrkit.data.loader import end_workers
from detrkit.errors import CheckpointError, DataError, DetrkitError
from detrkit.evaluation.coco import UNDEFINED
from detrkit.families.parts import find_places
from detrkit.training.alarms import Alarms, Progressed
from detrkit.training.ema import Ema
from detrkit.training.forward_backward import LAYER, Phase
from detrkit.training.health import Health, StepWindow
from detrkit.training.nonfinite.watch import check_previous_step
from detrkit.training.optim import build_optimizer, learning_rates, new_parameters
from detrkit.training.session import (
    DrawSamples,
    Evaluate,
    OnEvaluation,
    Progress,
    Run,
    TrainingSetup,
    TrainingState,
)
from detrkit.training.signals import StopRequest
from detrkit.training.step import sync_step_plan, train_step
from detrkit.training.telemetry.log import RunLog, StepRecord, best_metric, host_gib, memory_gib

# An epoch without evaluation is saved at its end if the last save is longer ago than this.
_SAVE_AFTER_S = 60.0

Ending = Literal["finished", "patience", "pruned", "interrupted"]


@dataclasses.dataclass(frozen=True)
class FitResult:
    """End of a training.

    Args:
        run_dir: Run folder.
        steps: Optimiser steps made since the beginning.
        epochs: Epochs completed.
        best: Highest AP of all evaluations, or PQ or AP of masks, see :func:`best_metric`; None if none could be
            measured.
        last_metrics: Numbers of the last evaluation.
        stopped: Reason why training ended; pruned: ``on_evaluation`` wanted it.
        signal_number: The signal that interrupted it, if one did; a shell expects exit code 128 + this.
    """

    run_dir: Path
    steps: int
    epochs: int
    best: float | None
    last_metrics: Mapping[str, float]
    stopped: Ending
    signal_number: int | None = None

    def __fspath__(self) -> str:
        """Return the run folder, so that a result can be given wherever a run is asked for."""
        return str(self.run_dir)


def fit(
    setup: TrainingSetup,
    run_dir: Path,
    fabric: Fabric,
    evaluate: Evaluate,
    *,
    draw_samples: DrawSamples | None = None,
    on_evaluation: OnEvaluation | None = None,
    resume: Mapping[str, Any] | None = None,
    phase: Phase = contextlib.nullcontext,
) -> FitResult:
    """Train a model; save, evaluate and log as it goes.

    Ctrl-C or SIGTERM finishes the step, saves and returns; a second one raises KeyboardInterrupt at once.

    Args:
        setup: Model, data and config.
        run_dir: Folder for metrics, events and checkpoints.
        fabric: Devices and precision.
        evaluate: Gives the metrics of a model, AP among them; called on every process, the first one's count.
        draw_samples: Gives pictures of the model's detections for TensorBoard; called on the first process.
        on_evaluation: Given epoch and metrics after each evaluation; True ends training. Called on every
            process, the first one's answer counts.
        resume: State to go on from, as :meth:`CheckpointStore.load_latest` returned it.
        phase: Names the parts of each step for whoever profiles.

    Raises:
        NonFiniteError: Too many losses or gradients in a row were NaN or infinite; they changed no weight.
        MemoryExhaustedError: Memory does not hold a training step of a single image.
        CheckpointError: A checkpoint cannot be written, or the one to resume from does not fit.
        DataError: The loader has no batch.
    """
    # the model and all that moves with it, as new or as it was saved
    config, first = setup.config, fabric.is_global_zero
    new = setup.new if resume is None else new_parameters(resume["optimizer"])
    state, wrapped = build_state(config, setup.model, fabric, new)
    log_position = resume_state(state, resume, fabric) if resume is not None else None

    # how long the training is
    batches, total_steps = setup.batches_per_epoch, setup.total_steps
    if batches == 0:
        raise DataError("the training data gives no batch; expected at least one image")

    # what a killed training left half done is ended before anything is written
    store = CheckpointStore(run_dir)
    if first:
        store.tidy_up()
    step = state.progress.step
    loading = getattr(setup.loader, "facts", None)
    log_settings: dict[str, Any] = {"start_step": step, "resume_at": log_position, "loading": loading}
    with RunLog(run_dir, total_steps, **log_settings, config=config, enabled=first) as log, StopRequest() as stop:
        run = Run(
            setup=setup,
            run_dir=run_dir,
            fabric=fabric,
            model=wrapped,
            evaluate=evaluate,
            draw_samples=draw_samples,
            on_evaluation=on_evaluation,
            phase=phase,
            state=state,
            log=log,
            store=store,
            stop=stop,
            batches_per_epoch=batches,
            total_steps=total_steps,
            host_group=torch.distributed.new_group(backend="gloo") if fabric.world_size > 1 else None,
            saved_at_s=time.monotonic(),
            saved_step=step,
        )
        if resume is not None:
            log.event(step, run.epoch, f"resumed at step {step}")
            if resume.get("config") != config.model_dump(mode="json"):
                save_last(run)  # or the next resume would know nothing of what was changed
                printout = run_dir / "config.yaml"
                if first and (count_keys(printout) or not printout.exists()):
                    write_config(config, printout, own_folder=True)

        # train; what was done is saved if something goes wrong
        try:
            stopped = _train(run)
        except DetrkitError:
            _save_what_is_done(run)
            raise
        finally:
            end_workers(setup.loader)
    progress = state.progress
    return FitResult(
        run_dir, progress.step, progress.epoch, progress.best, progress.metrics, stopped, stop.signal_number
    )


def build_state(
    config: Config, model: nn.Module, fabric: Fabric, new: Collection[str] = ()
) -> tuple[TrainingState, Any]:
    """Build the state of a training at its beginning, and Fabric's wrapper around the model."""
    # the layout that the fast convolutions want; the numbers stay the same
    model.to(memory_format=torch.channels_last)
    wrapped = fabric.setup_module(model)
    window, health = StepWindow(), Health()
    if fabric.world_size > 1:
        window = StepWindow(lambda rows: cast("Tensor", fabric.all_reduce(rows, reduce_op="mean")))
        health = Health(lambda rows: cast("Tensor", fabric.all_reduce(rows, reduce_op="sum")))
    state = TrainingState(
        module=model,
        optimizer=build_optimizer(model, config.train, find_places(model), new),
        scaler=getattr(fabric.strategy.precision, "scaler", None),
        ema=Ema(model, config.train.ema_decay) if config.train.ema_decay is not None else None,
        window=window,
        health=health,
        alarms=Alarms(config),
        progress=Progress(),
    )
    return state, wrapped


def resume_state(state: TrainingState, resume: Mapping[str, Any], fabric: Fabric) -> Mapping[str, Any]:
    """Restore a saved state; returns where its log ended, as :meth:`RunLog.position` told."""
    processes = resume.get("world_size")
    if processes != fabric.world_size:
        raise CheckpointError(
            f"the run was trained by {processes} processes and is resumed by {fabric.world_size}, which would "
            "repeat and leave out images; use as many, or begin a new run from its weights with train.init"
        )
    state.load_state_dict(resume)
    position: Mapping[str, Any] = resume.get("log") or {"records": resume.get("records", 0)}
    return position


def save_last(run: Run) -> None:
    """Save the state to resume from; all processes take part."""
    check_previous_step(run)
    saved = {**run.payload(), "log": run.log.position()}  # which waits until the log is on the disk
    if run.fabric.is_global_zero:
        run.store.save_last(saved)
    run.saved_at_s = time.monotonic()
    run.saved_step = run.state.progress.step


def _train(run: Run) -> Ending:
    """Go through the epochs that are left."""
    config, progress = run.config.train, run.state.progress
    run.model.train()
    while progress.epoch < config.epochs:
        if config.patience is not None and progress.evals_without_gain >= config.patience:
            name = best_metric(progress.metrics)
            message = f"no better {name} in {config.patience} evaluations, best {progress.best}: stopped early"
            run.log.event(progress.step, progress.epoch, message)
            return "patience"
        if not _train_epoch(run):
            return _interrupted(run)
        due = progress.epoch + 1 == config.epochs or (progress.epoch + 1) % config.eval_every == 0
        if due and run.fabric.world_size > 1:
            save_last(run)  # an evaluation by several processes cannot be interrupted, only killed
        if due and not _evaluate(run):
            return _interrupted(run)
        pruned = due and _is_pruned(run)
        progress.epoch += 1
        progress.batch = 0
        # epochs of a second would otherwise spend their time on checkpoints; processes cannot go by the clock
        if due or run.fabric.world_size > 1 or time.monotonic() - run.saved_at_s > _SAVE_AFTER_S:
            save_last(run)
        if pruned:
            run.log.event(progress.step, progress.epoch, "ended early, as its caller asked after the evaluation")
            return "pruned"
    return "finished"


def _is_pruned(run: Run) -> bool:
    """Tell whether whoever started the training wants no more of it."""
    pruned = False
    if run.on_evaluation is not None:
        pruned = run.on_evaluation(run.epoch, run.state.progress.metrics)
    return bool(run.fabric.broadcast(pruned)) if run.fabric.world_size > 1 else pruned


def _save_what_is_done(run: Run) -> None:
    """Save the steps since the last save before an error ends the run; several processes in trouble cannot."""
    if run.fabric.world_size > 1 or run.state.progress.step == run.saved_step:
        return
    with contextlib.suppress(CheckpointError):  # the disk may be what the error is about
        save_last(run)


def _train_epoch(run: Run) -> bool:
    """Make the steps of an epoch that are left; False if a signal asked to stop before its end."""
    progress, began_s, save_at_end = run.state.progress, time.monotonic(), False
    images_seen = progress.batch  # of an epoch that is resumed, the images before are not known
    if progress.batch >= run.batches_per_epoch:
        return True  # interrupted while it was being evaluated

    # the order of the images is a function of the epoch, begun where this process stopped
    sampler: Any = run.setup.loader.batch_sampler
    sampler.set_epoch(progress.epoch, progress.batch)
    batches = iter(run.setup.loader)
    run.stop.watch_no_workers()
    while progress.batch < run.batches_per_epoch:
        if run.stop.requested and run.fabric.world_size == 1:
            return False

        # the batches of a step
        start_s = time.monotonic()
        count = min(run.config.train.accumulate, run.batches_per_epoch - progress.batch)
        try:
            with run.phase("data"):
                fetched = [batch for batch in itertools.islice(batches, count) if batch is not None]
        except Exception:
            if not run.stop.requested or run.stop.insisted:
                raise
            if run.fabric.world_size == 1:  # the signal reached the loader's workers too
                return False
            fetched = []  # the others must hear of it before they wait for this process's gradients
        wait_s = time.monotonic() - start_s

        # the step, unless no process could read an image, or one was asked to stop
        plan = sync_step_plan(run, fetched)
        if plan.stop:
            return False
        images_seen += plan.images
        if plan.images:
            train_step(run, fetched, plan)
        progress.step += 1
        progress.batch += count

        # log and save
        run.state.window.add_time(time.monotonic() - start_s, wait_s)
        run.log.advance(progress.step, run.epoch)
        if progress.step % run.config.train.log_every == 0 or progress.step == run.total_steps:
            _log_window(run)
        save_at_end = plan.save and progress.batch >= run.batches_per_epoch
        if plan.save and not save_at_end:
            save_last(run)
    if not images_seen:
        raise DataError(
            f"not one training image could be read in epoch {run.epoch}; each is named in a warning above"
        )
    run.log.epoch(progress.step, run.epoch, time.monotonic() - began_s)
    if save_at_end:  # after the line of the epoch, which a run resumed from here does not write again
        save_last(run)
    return True


def _evaluate(run: Run) -> bool:
    """Evaluate the averaged weights, or the model's own; False if a signal asked to stop meanwhile."""
    state, progress = run.state, run.state.progress
    interruptible = run.fabric.world_size == 1  # other processes would wait for the result forever
    if run.stop.requested and interruptible:
        return False
    metrics: dict[str, float] = {}
    samples: Sequence[tuple[str, np.ndarray]] = ()
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(state.ema.applied() if state.ema is not None else contextlib.nullcontext())
            stack.enter_context(run.stop.immediate() if interruptible else contextlib.nullcontext())
            state.module.eval()
            metrics = {name: float(value) for name, value in run.evaluate(state.module).items()}
            metrics = {name: math.nan if value == UNDEFINED else value for name, value in metrics.items()}
            if run.draw_samples is not None and run.fabric.is_global_zero:
                samples = run.draw_samples(state.module)
    except KeyboardInterrupt:
        if run.stop.insisted or not run.stop.requested:
            raise
        return False
    except Exception:
        if run.stop.insisted:
            raise
        if run.stop.requested and interruptible:  # the signal reached the evaluation's workers too
            return False
        if interruptible:  # the epoch shall not be lost because an image to measure on is broken
            save_last(run)
            message = f"evaluation failed; step {progress.step} is saved: mend it, then go on with: detrkit resume"
            run.log.event(progress.step, run.epoch, f"{message} {run.run_dir}")
        raise
    finally:
        run.model.train()
    if not interruptible:
        metrics = run.fabric.broadcast(metrics)
    _take_metrics(run, metrics)
    run.log.images(progress.step, samples)
    return True


def _take_metrics(run: Run, metrics: dict[str, float]) -> None:
    """Note an evaluation; keep the model if it is the best so far, or the newest where no AP can be measured."""
    progress = run.state.progress
    former = progress.metrics, progress.evals_without_gain, progress.best
    value = metrics.get(best_metric(metrics), math.nan)
    is_measured = not math.isnan(value)
    better = progress.best is None or (is_measured and value > progress.best)
    progress.metrics = metrics
    if is_measured:
        progress.evals_without_gain = 0 if better else progress.evals_without_gain + 1
    if better:
        progress.best = value if is_measured else None
        try:
            check_previous_step(run)
            saved = run.payload()  # all processes take part: they add up what is in the window
            if run.fabric.is_global_zero:
                run.store.save_best(saved)
        except CheckpointError:  # a run resumed from here evaluates again, and keeps the best then
            progress.metrics, progress.evals_without_gain, progress.best = former
            raise
    run.log.evaluation(progress.step, run.epoch, metrics, best=better and is_measured)


def _log_window(run: Run) -> None:
    """Read and write the values of the steps since the last time."""
    window, progress = run.state.window, run.state.progress
    if not len(window):
        return
    values, images_per_s, data_wait = window.means()
    health = run.state.health
    figures = health.figures()
    terms, layers = _terms_and_layers(values)
    config, scaler = run.config.train, run.state.scaler
    norms = window.rows()[:, window.names.index("grad_norm")]
    run.log.step(
        StepRecord(
            step=progress.step,
            epoch=run.epoch,
            loss=values["loss"],
            terms=terms,
            lrs=learning_rates(run.state.optimizer),
            grad_norm=values["grad_norm"],
            images_per_s=images_per_s,
            data_wait=data_wait,
            memory_gib=memory_gib(run.fabric.device),
            layers=layers,
            clipped=float((norms > config.clip_norm).float().mean()) if config.clip_norm else None,
            loss_scale=scaler.get_scale() if scaler is not None else None,
            host_gib=host_gib() if run.fabric.device.type == "cuda" else None,
            micro_batch=run.micro_batch if run.micro_batch < config.batch_size else None,
            health=figures,
        )
    )
    health.clear()
    if run.config.train.alarms:
        _alarm(run, terms, figures)
    window.clear()


def _terms_and_layers(values: Mapping[str, float]) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Pick the terms of a step, and those of every layer, out of all its values."""
    terms: dict[str, float] = {}
    layers: dict[str, list[float]] = {}
    for name, value in values.items():
        if name.startswith(LAYER):
            layers.setdefault(name.split("/")[1], []).append(value)
        elif name not in ("loss", "grad_norm"):
            terms[name] = value
    return terms, layers


def _alarm(run: Run, terms: Mapping[str, float], figures: Mapping[str, float]) -> None:
    """Say what goes wrong, if something does."""
    window = run.state.window
    losses = window.rows()[:, window.names.index("loss")].tolist()
    use = run.state.health.last_use
    line = Progressed(window.steps, losses, window.image_ids, run.total_steps, terms, figures, use)
    for message in run.state.alarms.look(line):
        run.log.event(run.state.progress.step, run.epoch, message)


def _interrupted(run: Run) -> Ending:
    """Save, and say how to go on."""
    save_last(run)
    name = signal.Signals(run.stop.signal_number).name if run.stop.signal_number else "another process"
    step = run.state.progress.step
    run.log.ending = "interrupted"
    run.log.event(step, run.epoch, f"stopped by {name} at step {step}; go on with: detrkit resume {run.run_dir}")
    return "interrupted"
