"""Training on a handful of small images for some steps: does the loss fall, and at which learning rate?

Shapes: B images, Q queries.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from detrkit.config import Config, update_config
from detrkit.data.coco import CocoDataset, SampleKey
from detrkit.data.index import CocoIndex
from detrkit.data.loader import collate
from detrkit.data.transforms import ResizeShortSide
from detrkit.detectors.stages import evaluation_mode
from detrkit.errors import DataError
from detrkit.families.family import BuiltModel
from detrkit.families.parts import find_places
from detrkit.preprocess import model_inputs
from detrkit.training.forward_backward import single_passes, single_step
from detrkit.training.optim import build_optimizer
from detrkit.types import Batch

HANDFUL = 4
MOST_PIXELS = 160 * 160 * 4
"""Of all images together: a step of the paper's model then takes half a second on two cores."""
MOST_OBJECTS = 12
LEAST_STEPS, MOST_STEPS = 12, 120
LEAST_TRIAL_STEPS, MOST_TRIAL_STEPS = 8, 20
_AVERAGED = 4
LEARNT, LOST = 0.9, 1.5
"""Shares of the loss at the beginning: what may be left of a handful of images after some steps, and what is so
far above it that more steps would say nothing new."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """Some steps at one learning rate.

    Args:
        lr: Learning rate of everything but the backbone.
        losses: Weighted total of each step; NaN where it was not finite.
        terms: First and last value of each term of the last layer.
        gradient_norms: Before clipping, of each step.
        box_spread: Standard deviation of the boxes' coordinates over queries and over images afterwards, 0 to 1.
    """

    lr: float
    losses: tuple[float, ...]
    terms: Mapping[str, tuple[float, float]]
    gradient_norms: tuple[float, ...]
    box_spread: tuple[float, float]

    @property
    def finite(self) -> bool:
        """Whether every loss and gradient was finite."""
        return all(map(math.isfinite, self.losses)) and all(map(math.isfinite, self.gradient_norms))

    def loss_at(self, step: int) -> float:
        """Return the mean of the few losses up to a step, or up to the last; infinite where one is not finite."""
        step = min(step, len(self.losses) - 1)
        mean = float(np.mean(self.losses[max(0, step - _AVERAGED + 1) : step + 1]))
        return mean if math.isfinite(mean) else math.inf

    @property
    def share_left(self) -> float:
        """Loss at the end over loss at the beginning."""
        return self.loss_at(len(self.losses) - 1) / max(self.losses[0], 1e-9)


@dataclasses.dataclass(frozen=True)
class OverfitTest:
    """The outcome of training on a handful of images.

    Args:
        main: At the learning rate of the config.
        slower: At a tenth and a hundredth of it, with fewer steps, from the same weights.
        before_spread: Standard deviation of the boxes' coordinates over queries and over images before it, 0 to 1.
        batch: The handful.
        class_moves: True if what a class should score rises as boxes fit better, and its loss may with it.
    """

    main: Trial
    slower: tuple[Trial, ...]
    before_spread: tuple[float, float]
    batch: Batch
    class_moves: bool = False


def run_overfit_test(built: BuiltModel, handful: Batch, device: torch.device, budget_s: float) -> OverfitTest:
    """Over-fit a handful of images.

    Args:
        built: Model with its starting weights, not changed, and the config of the training to come; its optimiser
            settings count, its schedule does not.
        handful: From :func:`gather_handful`.
        device: To train on.
        budget_s: Seconds for the steps at the config's learning rate; the two slower trials take less together.
            Where the loss of random weights has not fallen by then, it gets all :data:`MOST_STEPS`: a model that
            chooses its queries among tokens needs 30 to 50 until its loss falls at all.
    """
    batch = handful.to(device)
    built.model.to(device)
    before = _box_spread(built.model, built.config, batch)
    learnt = LEARNT if built.report is None else math.inf
    main = _train(built, 1.0, batch, (LEAST_STEPS, MOST_STEPS), budget_s, learnt)
    few = (LEAST_TRIAL_STEPS, MOST_TRIAL_STEPS)
    slower = tuple(_train(built, factor, batch, few, budget_s / 3) for factor in (0.1, 0.01))
    return OverfitTest(main, slower, before, handful, built.config.loss.class_targets != "hard")


def gather_handful(config: Config, index: CocoIndex, dataset: CocoDataset, seed: int) -> Batch:
    """Gather a few images with objects, of as many classes as possible, resized to a small size.

    Args:
        config: Its evaluation size bounds the size.
        index: Of the data set, for choosing.
        dataset: Read without augmentation.
        seed: Of the choice.

    Raises:
        DataError: No image with an object can be read.
    """
    short = min(round(math.sqrt(MOST_PIXELS / HANDFUL)), config.transforms.eval_size)
    resize = ResizeShortSide([short], round(short * 1.5))
    masks = config.model.masks
    small = CocoDataset(index, dataset.images, resize, pixel_range=dataset.pixel_range, masks=masks)
    samples = []
    for row in _spread_over_classes(index, seed):
        sample = small[SampleKey(0, row)]
        if sample is not None and len(sample[1]["labels"]):
            samples.append(sample)
        if len(samples) == HANDFUL:
            break
    batch = collate(samples) if samples else None
    if batch is None:
        raise DataError("no image with an object can be read; run: detrkit data check")
    return batch


def _spread_over_classes(index: CocoIndex, seed: int) -> Sequence[int]:
    """Return rows of images with few objects, those first that bring a class not seen yet; then the others."""
    counts = np.diff(index.offsets)
    random = np.random.Generator(np.random.PCG64(seed))
    order = random.permutation(np.flatnonzero((counts > 0) & (counts <= MOST_OBJECTS)))
    if not len(order):
        order = np.flatnonzero(counts > 0)[np.argsort(counts[counts > 0], kind="stable")]
    seen: set[int] = set()
    first: list[int] = []
    rest: list[int] = []
    for row in order.tolist():
        classes = set(index.labels[index.annotation_rows(row)].tolist())
        (rest if classes <= seen else first).append(row)
        seen |= classes
    return first + rest


def _train(
    built: BuiltModel,
    factor: float,
    batch: Batch,
    least_and_most: tuple[int, int],
    budget_s: float,
    learnt: float = math.inf,
) -> Trial:
    """Train a copy of the model on always the same batch, in float32, at a share of the learning rates.

    It takes longer than its budget while more of the loss is left than ``learnt``, unless it has risen far.
    """
    model = copy.deepcopy(built.model)
    rates = {name: getattr(built.config.train, name) * factor for name in ("lr", "backbone_lr")}
    # the batch is augmented already
    config = update_config(built.config, {"train": rates, "transforms.on_device": False})
    criterion = built.family.build_criterion(config, built.class_map)
    passes = single_passes(config, model, criterion, batch.images.device)
    optimizer = build_optimizer(model, config.train, find_places(model))
    losses: list[float] = []
    norms: list[float] = []
    terms: list[dict[str, float]] = []
    begin = time.monotonic()
    for step in range(least_and_most[1]):
        if step >= least_and_most[0] and time.monotonic() - begin > budget_s:
            share = np.mean(losses[-_AVERAGED:]) / max(losses[0], 1e-9)
            if not learnt < share < LOST:
                break
        made = single_step(passes, optimizer, [batch], step)
        losses.append(made.loss)
        norms.append(made.grad_norm)
        if not math.isfinite(made.loss):
            break
        terms.append({name: value for name, value in made.terms.items() if not name.endswith("error")})
    changes = {name: (terms[0][name], terms[-1][name]) for name in terms[0]} if terms else {}
    spread = _box_spread(model, config, batch)
    return Trial(config.train.lr, tuple(losses), changes, tuple(norms), spread)


def _box_spread(model: nn.Module, config: Config, batch: Batch) -> tuple[float, float]:
    """Return the standard deviation of the last layer's boxes over queries and over images, averaged."""
    with evaluation_mode(model), torch.inference_mode():
        boxes = model(*model_inputs(batch, config.transforms)).boxes_cxcywh[-1]
    over_images = float(boxes.std(dim=0, correction=0).mean()) if len(boxes) > 1 else math.nan
    return float(boxes.std(dim=1, correction=0).mean()), over_images
