"""The learning-rate range test: train with a rising rate until the loss rises too (Smith, arXiv:1506.01186)."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from matplotlib.figure import Figure

from detrkit.config import Config
from detrkit.data.loader import EpochBatchSampler, build_loader, end_workers, endless_batches
from detrkit.data.split import read_train_split
from detrkit.errors import TrainingError, UsageError
from detrkit.families.build import prepare_model
from detrkit.families.parts import find_places
from detrkit.files import make_folder, plain_value, write_json
from detrkit.hardware import resolve_device
from detrkit.training.forward_backward import single_passes, single_step
from detrkit.training.optim import build_optimizer, set_lr
from detrkit.training.run import Say, training_dataset
from detrkit.visual.picture import save_figure

LOWEST, HIGHEST = 1e-7, 1.0
SMOOTHING = 0.9
"""Share of the running mean kept at each step, by which divergence is seen while it comes."""
SPREAD = 0.5
"""Standard deviation in decades of the bell over which the curve is averaged afterwards: batches of a detector
differ by as much as its loss falls in the whole test, and a running mean would lag."""
DIVERGED = 1.5
"""A smoothed loss this much above its least value has left for good. Smith's classifiers explode; a detector's
boxes are bounded, and so is most of its loss, so that no greater factor is ever reached by some models."""
LEAST_FALL = 0.03
"""Share by which the loss must have fallen to speak of learning."""


@dataclasses.dataclass(frozen=True)
class LrRange:
    """Result of a range test.

    Args:
        rates: learning rate of each step, of everything but the backbone.
        losses: loss of each step; NaN where it was not finite.
        smoothed: losses averaged over neighbouring rates.
        steepest: rate at which the smoothed loss fell fastest per decade.
        lowest: rate at which it was least.
        diverged: rate at which it rose for good; None if it never did.
        configured: the config's rate.
        suggested: the steepest, or a tenth of the lowest if that is less: a rate may be held for some steps that
            would not do for thousands.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    steepest: float
    lowest: float
    diverged: float | None
    configured: float
    suggested: float

    def to_dict(self) -> dict[str, Any]:
        """Return the values for JSON; a loss that is not finite is None."""
        return msgspec.json.decode(msgspec.json.encode(self, enc_hook=plain_value))  # type: ignore[no-any-return]

    def lines(self) -> list[str]:
        """Return the lines for people."""
        end = f"{self.diverged:.1e}" if self.diverged is not None else f"never, up to {self.rates[-1]:.0e}"
        ratio = self.suggested / self.configured
        verdict = "the config's own is as good" if 1 / 3 <= ratio <= 3 else f"{ratio:.2g} times the config's own"
        return [
            f"fell fastest at {self.steepest:.1e}, least at {self.lowest:.1e}, diverged: {end}",
            f"suggested: train.lr={self.suggested:.1e} (config: {self.configured:.1e}; {verdict})",
        ]


def run_lr_range(config: Config, out: Path, *, steps: int = 120, say: Say = print) -> LrRange:
    """Train for some steps while the learning rate rises from 1e-7 to 1, and suggest one.

    In float32 and without schedule, averaged weights or evaluation; augmentation, batches, optimiser and clipping
    are those of training. The backbone's rate rises in its ratio to the other.

    Args:
        config: config of the training to come.
        out: folder for lr_range.json and lr_range.png.
        steps: steps from the lowest to the highest rate, if it does not diverge before.
        say: told how it goes.

    Raises:
        UsageError: No data is given, or the folder cannot be used.
        DataError: No image can be read.
        TrainingError: The loss fell at no rate.
    """
    if config.data.root is None and config.data.train_annotations is None:
        raise UsageError("no data given; give the folder of a data set: --data DATA")
    make_folder(out, "lr_range.json", "lr_range.png")
    rates = np.geomspace(LOWEST, HIGHEST, steps).tolist()
    losses: list[float] = []
    for rate, loss in _train(config, rates, say):
        losses.append(loss)
        means = running_means(losses)
        if len(losses) % max(1, steps // 10) == 0:
            say(f"step {len(losses)}/{steps}: train.lr={rate:.1e}, loss {means[-1]:.3f}")
        if has_diverged(means):
            break
    found = judge(rates[: len(losses)], losses, config.train.lr)
    write_json(out / "lr_range.json", found.to_dict())
    _write_plot(out / "lr_range.png", found)
    return found


def running_means(losses: Sequence[float]) -> list[float]:
    """Return running means without bias to the first value; infinite from the first loss that is not finite on."""
    means, mean = [], 0.0
    for count, loss in enumerate(losses, start=1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        means.append(mean / (1 - SMOOTHING**count) if math.isfinite(mean) else math.inf)
    return means


def has_diverged(means: Sequence[float]) -> bool:
    """Return True if the loss, by its running means, has left for good."""
    return not math.isfinite(means[-1]) or means[-1] > DIVERGED * min(means)


def smooth(rates: Sequence[float], losses: Sequence[float]) -> list[float]:
    """Average losses over neighbouring rates; those above the level of the beginning count as that level.

    Without that limit the losses of the last, diverging steps would bend the curve decades before them.
    """
    decades = np.log10(np.array(rates))
    beginning = [loss for loss in losses[: max(3, len(losses) // 5)] if math.isfinite(loss)]
    level = float(np.median(beginning or [math.inf]))
    values = np.array([min(loss, level) if math.isfinite(loss) else level for loss in losses])
    weights = np.exp(-0.5 * ((decades[:, None] - decades[None, :]) / SPREAD) ** 2)
    return [float(value) for value in weights @ values / weights.sum(axis=1)]


def judge(rates: Sequence[float], losses: Sequence[float], configured: float) -> LrRange:
    """Read a rate off the curve.

    Args:
        rates: learning rates, rising evenly in the logarithm.
        losses: loss of the step at each.
        configured: the config's rate.

    Raises:
        TrainingError: The loss fell at no rate.
    """
    smoothed = smooth(rates, losses)
    least = int(np.argmin(smoothed))
    if not math.isfinite(smoothed[0]) or smoothed[least] > (1 - LEAST_FALL) * smoothed[0]:
        raise TrainingError(
            f"the loss fell at no learning rate from {rates[0]:.0e} to {rates[-1]:.0e}: look for the cause with: "
            "detrkit preflight"
        )
    steepest = rates[int(np.argmin(np.gradient(np.array(smoothed[: least + 1]))))]
    diverged = rates[-1] if has_diverged(running_means(losses)) else None
    suggested = float(f"{min(steepest, rates[least] / 10):.1e}")
    curves = tuple(rates), tuple(losses), tuple(smoothed)
    return LrRange(*curves, steepest, rates[least], diverged, configured, suggested)


def _train(config: Config, rates: Sequence[float], say: Say) -> Iterator[tuple[float, float]]:
    """Yield rate and loss of each step."""
    train = read_train_split(config)
    built = prepare_model(config, train.index.class_map)
    config, model = built.config, built.model
    device = resolve_device(config.train.device)
    say(f"{len(train.index)} images of {train.files.annotations}, at most {len(rates)} steps on {device}")
    passes = single_passes(config, model, built.family.build_criterion(config, built.class_map), device)
    optimizer = build_optimizer(model, config.train, find_places(model))
    dataset = training_dataset(config, train, None, device.type)
    sampler = EpochBatchSampler(len(dataset), config.train.batch_size, seed=config.train.seed, shuffle=True)
    loader = build_loader(dataset, sampler, config.data, pin=device.type == "cuda")
    batches = (batch for batch in endless_batches(loader, sampler) if batch is not None)
    try:
        for step, rate in enumerate(rates):
            parts = list(itertools.islice(batches, config.train.accumulate))
            set_lr(optimizer, rate / config.train.lr)
            yield rate, single_step(passes, optimizer, parts, step).loss
    finally:
        end_workers(loader)


def _write_plot(path: Path, found: LrRange) -> None:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(found.rates, found.losses, ".", ms=3, color="#868e96", label="of each step")
    axes.plot(found.rates, found.smoothed, color="#3b82f6", lw=2, label="smoothed")
    marks = {"config": (found.configured, "#868e96", ":"), "suggested": (found.suggested, "#e8710a", "-")}
    for name, (rate, color, style) in marks.items():
        axes.axvline(rate, color=color, ls=style, lw=1.5, label=f"{name}: {rate:.1e}")
    finite = [value for value in found.smoothed if math.isfinite(value)]
    axes.set(xscale="log", xlabel="train.lr", ylabel="loss", ylim=(0, 1.3 * max(finite)))
    axes.legend(fontsize=8)
    axes.grid(alpha=0.2)
    save_figure(figure, path)
