"""One change of the weights, from ``accumulate`` batches on each process.

What memory does not hold at once goes through the network in micro-batches; the gradient stays that of all images.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detrkit.distributed import ProcessGroup, average_gradients, exchanges_late
from detrkit.losses.criterion import Losses, Normalizers
from detrkit.training.forward_backward import add_normalizers, layer_values, summed_values
from detrkit.training.health import PROBE_EVERY, probe_boxes
from detrkit.training.memory import free_memory, halved, is_out_of_memory
from detrkit.training.nonfinite.watch import check_bad_steps, check_previous_step, damaged_boxes, note_step
from detrkit.training.optim import apply_gradients, box_steps_of, set_step_lr, train_mode
from detrkit.training.session import Run
from detrkit.types import Batch, GroundTruth


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """Common knowledge of all processes before a step: its normalisers and images, and whether to stop or save."""

    normalizers: Normalizers
    images: int
    stop: bool
    save: bool


def sync_step_plan(run: Run, batches: Sequence[Batch]) -> StepPlan:
    """Add up over batches and processes, on the host, so that no device is waited for.

    Gradients are averaged over processes while losses are to be summed, therefore the normalisers are divided
    by the number of processes: the step is that of all images as one batch.

    Raises:
        NonFiniteError: Too many steps in a row were not finite.
    """
    check_bad_steps(run)
    normalizers = add_normalizers(run.setup.criterion, batches)
    images = sum(len(batch.truth.counts) for batch in batches)
    config = run.config.train
    save = time.monotonic() - run.saved_at_s > 60 * config.save_every_min
    if config.save_every_steps is not None:
        save |= (run.state.progress.step + 1) % config.save_every_steps == 0
    processes = run.fabric.world_size
    if processes == 1:
        return StepPlan(normalizers, images, stop=False, save=save)
    save &= run.fabric.is_global_zero  # the first one's clock counts
    own = (normalizers.num_boxes, normalizers.class_weight, images, run.stop.requested, save)
    num_boxes, class_weight, images_of_all, stops, saves = _sum_on_hosts(run, own)
    shared = Normalizers(num_boxes / processes, class_weight / processes)
    return StepPlan(shared, int(images_of_all), stop=stops > 0, save=saves > 0)


def train_step(run: Run, batches: Sequence[Batch], plan: StepPlan) -> None:
    """Change the weights once, by the gradient of all images together.

    Raises:
        MemoryExhaustedError: Memory does not hold a single image.
    """
    config, state = run.config.train, run.state
    step = state.progress.step

    # learning rates of this step, and the mode of what learns and what rests
    if config.box_epochs and step == box_steps_of(run.total_steps, config):
        if state.ema is not None:
            state.ema.adopt()  # masks are learned on the boxes that are evaluated and saved
        if run.fabric.world_size > 1:
            ProcessGroup.share_statistics(state.module)
    set_step_lr(state.optimizer, step, run.total_steps, config)
    train_mode(run.model, state.optimizer)

    # forward, losses, backward; a process without images takes part with a loss of zero: the others wait for it
    share = 1.0 if batches else 0.0
    damage = next(iter(damaged_boxes(batches)), "")
    statistics = _MovingStatistics(state.module)
    batches = batches or [_blank_batch()]
    found, own_norm = _gradients_in_memory(run, batches, plan.normalizers, share, damage, statistics)

    # figures of the outputs, for the alarms
    for losses in found:
        state.health.observe(losses.last, share)
    if config.alarms and (step + 1) % PROBE_EVERY == 0:
        state.health.observe_boxes(probe_boxes(run.passes, state.module, batches, step, run.micro_batch), share)
    state.health.end_step()

    # the matcher has waited for the device, so the step before is over; its weights are still here
    check_previous_step(run)

    # clip and step, unless the gradient is not finite; torch gives the scale without waiting only in this way
    scale = state.scaler._get_scale_async() if state.scaler is not None else None
    scale = None if scale is None else scale.clone()
    with run.phase("optimiser"):
        norm = apply_gradients(state.optimizer, config.clip_norm, state.scaler)
        state.optimizer.zero_grad(set_to_none=True)
    statistics.restore(where=~norm.isfinite())  # a skipped step moves nothing
    if state.ema is not None:
        with run.phase("EMA"):
            state.ema.update()

    # values for the log, and all that it takes to repeat the step should they not be finite
    values = {**{name: value * share for name, value in summed_values(found).items()}, "grad_norm": norm}
    layers = {name: value * share for name, value in layer_values(found).items()}
    image_ids = tuple(itertools.chain.from_iterable(batch.image_ids for batch in batches))
    row = state.window.add(step + 1, {**values, **layers}, image_ids, plan.images)[: len(values)]
    facts = {
        "step": step + 1,
        "epoch": run.epoch,
        "batches": batches,
        "normalizers": plan.normalizers,
        "share": share,
        "micro_batch": run.micro_batch,
        "training": tuple(part.training for part in state.module.modules()),
        "frozen": tuple(name for name, weight in state.module.named_parameters() if not weight.requires_grad),
        "damage": damage,
    }
    others = {"own_grad_norm": own_norm, "scale": scale}
    note_step(run, facts, tuple(values), row, {name: value for name, value in others.items() if value is not None})


class _MovingStatistics:
    """Buffers that a forward pass changes, those of batch norms that are trained, and how they were before it."""

    def __init__(self, module: nn.Module):
        norms = (part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm))
        self._live = [buffer for norm in norms if norm.training for buffer in norm.buffers()]
        self._before = [buffer.clone() for buffer in self._live]

    def restore(self, where: Tensor | None = None) -> None:
        """Bring them back; with a flag on the device, only if it is set."""
        for live, before in zip(self._live, self._before, strict=True):
            live.copy_(before if where is None else torch.where(where, before, live))


def _gradients_in_memory(
    run: Run,
    batches: Sequence[Batch],
    normalizers: Normalizers,
    share: float,
    damage: str,
    statistics: _MovingStatistics,
) -> tuple[list[Losses], Tensor | None]:
    """Make the gradients of a step; where memory runs out, again with half as many images on all processes.

    Returns:
        The losses, and the norm of this process' gradient before it is averaged; None where that is not known.
    """
    recovers = run.config.train.on_oom == "halve"
    while True:
        # one try; the error itself is not kept, its traceback holds all activations
        problem, found = "", []
        try:
            found = run.passes.gradients(
                batches, normalizers, run.state.progress.step, run.micro_batch, share=share, damage=damage
            )
        except Exception as error:
            if not recovers or not is_out_of_memory(error):
                raise
            problem = str(error).split("\n")[0]

        # a failure on one process is one on all
        failed = bool(problem)
        if recovers and run.fabric.world_size > 1:
            failed = _sum_on_hosts(run, (failed,))[0] > 0
        if not failed:
            if run.fabric.world_size == 1 or not exchanges_late(run.config.train):
                return found, None
            parameters = list(run.state.module.parameters())
            own_norm = nn.utils.get_total_norm([part.grad for part in parameters if part.grad is not None])
            average_gradients(parameters, run.fabric.world_size)
            return found, own_norm

        # back to where the step began, with half the micro-batch
        run.state.optimizer.zero_grad(set_to_none=True)
        statistics.restore()
        del found
        free_memory()
        problem = problem or "of another process"
        former = run.micro_batch
        run.state.progress.micro_batch = halved(former, problem)
        step = run.state.progress.step + 1
        run.log.event(
            step,
            run.epoch,
            f"memory ran out at step {step} ({problem}): from here on {run.micro_batch} images at once instead of "
            f"{former}; the step is repeated, and the gradient stays that of all images",
        )


def _sum_on_hosts(run: Run, values: Sequence[float]) -> list[float]:
    """Sum each value over the processes, without a device."""
    summed = torch.tensor(values, dtype=torch.float64)
    torch.distributed.all_reduce(summed, group=run.host_group)
    return summed.tolist()


def _blank_batch() -> Batch:
    """Return one small black image without objects."""
    truth = GroundTruth(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), (0,))
    mask = torch.zeros(1, 64, 64, dtype=torch.bool)
    return Batch(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), mask, truth, ((64, 64),))
