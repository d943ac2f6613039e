"""Alarms: training that goes wrong in one of the known ways says so, and what to do about it.

All is judged by steps, never by log lines: ``log_every`` decides when an alarm is said, and hardly whether. The
thresholds were measured on sound and on spoiled trainings; docs/alarms.md has the figures.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from detrkit.config import Config
from detrkit.training.health import PROBE_EVERY, QueryUse
from detrkit.training.optim import count_warmup

BLOCK = PROBE_EVERY
"""Steps that are judged together."""

SPIKE_SIGMAS, SPIKE_RATIO = 8.0, 1.3
"""A spike lies so many standard deviations above the median of the last 100 steps, and at this factor of it."""

MANY_SPIKES = 3
"""So many spikes within four blocks, while the loss falls no more, tell of the learning rate, not of a batch."""

LEAST_SPREAD, LEAST_SPREAD_OF_ALL = 0.003, 0.01
"""Boxes that vary less over images, in shares of the image, are the same for every image; so are those that vary
less than the second over images and over queries."""

POOR_FIT = 0.4
"""GIoU loss above which boxes do not fit. Below it the same boxes for every image are right."""

SAME_STEPS, EMPTY_STEPS = 200, 300
"""Steps in a row that it takes to speak of the same boxes for every image, and of no objects."""

FEW_OBJECTS = 0.02
"""Queries that predict an object, as a share of those that should, which are as good as none."""

RISE, RISE_ERRORS = 1.12, 6.0
"""A loss that is higher by this factor, and by so many standard errors, than that of the best block has risen."""

FIRST_STEPS, JUDGED_STEPS = 10, 300
FELL_LITTLE, FALLS_LITTLE = 0.05, 0.25
"""A loss that fell from that of the first steps by less than the first share in so many steps, and would by less
than the second until the end of the training if it went on so, falls too slowly."""

POOR_CLASSES = 0.5
"""Share of wrong classes above which there is something left to learn."""

DEAD_SHARE = 0.5
"""Share of queries that were never matched which is worth a remark."""

SAY_AGAIN_AFTER = 1000
"""Steps after which an alarm that had gone may be said again; one that has not waits five times as long, at
least as many steps as the run was old when it was said."""


@dataclasses.dataclass(frozen=True)
class Progressed:
    """Facts known at a log line of the steps since the line before.

    Args:
        steps: Their numbers, from 1.
        losses: Weighted loss of each.
        image_ids: Images of each, on this process.
        total_steps: Steps of the whole training.
        terms: Mean of each unweighted term of the last layer.
        health: Figures of :meth:`detrkit.training.health.Health.figures`.
        use: Use of the queries, once known.
    """

    steps: Sequence[int]
    losses: Sequence[float]
    image_ids: Sequence[Sequence[int]]
    total_steps: int
    terms: Mapping[str, float]
    health: Mapping[str, float]
    use: QueryUse | None


class _History(msgspec.Struct, forbid_unknown_fields=True):
    """Memory of the alarms; primitives only.

    Attributes:
        recent: Losses of the last two blocks of steps.
        block: Losses of the block that is not full yet.
        first: Median loss of the first steps.
        former: Median loss of the block before.
        best: Least median loss of a block.
        is_unmoved: True while the loss is where it began, for all that is known.
        spikes: Steps of the last spikes.
        sums: Sums of figures times steps, since they were judged last; ``steps`` is how many.
        same_steps: Steps in a row with the same boxes for every image.
        empty_steps: Steps in a row without objects.
        said: By alarm: the step at which it was said last, and whether it has gone since.
    """

    recent: list[float] = []
    block: list[float] = []
    first: float = math.nan
    former: float = math.nan
    best: float = math.inf
    is_unmoved: bool = True
    spikes: list[int] = []
    sums: dict[str, int | float] = {}
    same_steps: int = 0
    empty_steps: int = 0
    said: dict[str, tuple[int, bool]] = {}


class Alarms:
    """Judges of what each log line brings, who say what is wrong.

    Args:
        config: Config of the run; the advice depends on it.
    """

    def __init__(self, config: Config):
        self._config = config
        self._past = _History()

    def look(self, line: Progressed) -> list[str]:
        """Take in the steps since the last log line; returns what there is to say, mostly nothing."""
        found: list[str] = []
        for step, loss, image_ids in zip(line.steps, line.losses, line.image_ids, strict=True):
            if not math.isfinite(loss):  # said elsewhere, and no weight has changed
                continue
            found += self._judge_spike(step, loss, image_ids)
            self._past.recent = [*self._past.recent[1 - 2 * BLOCK :], loss]
            self._past.block.append(loss)
            if len(self._past.block) == BLOCK:
                found += self._judge_block(step, line)
        if line.health and line.steps:
            found += self._judge_outputs(line)
        if line.use is not None and line.steps:
            found += self._judge_queries(line.steps[-1], line.use)
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return all that is remembered, primitives only."""
        return msgspec.to_builtins(self._past)  # type: ignore[no-any-return]

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave.

        Raises:
            ValueError: It is something else.
        """
        self._past = msgspec.convert(state, _History)
        if not all(map(math.isfinite, self._past.sums.values())):
            raise ValueError("the sums of its alarms are not finite")

    def _judge_spike(self, step: int, loss: float, image_ids: Sequence[int]) -> list[str]:
        """Return a message if the loss of one step stands out."""
        past = self._past
        if len(past.recent) < BLOCK or loss <= SPIKE_RATIO * min(past.recent):  # the second saves the medians
            return []
        usual, sigma = _center_and_sigma(past.recent)
        if loss <= max(usual + SPIKE_SIGMAS * sigma, SPIKE_RATIO * usual):
            return []
        if not past.spikes or step - past.spikes[-1] > 2 * BLOCK:
            self._say("loss_spike", step, None)
        past.spikes = [*past.spikes[1 - MANY_SPIKES :], step]
        shown = f"{', '.join(map(str, image_ids[:8]))}{' ...' if len(image_ids) > 8 else ''}"
        return self._say(
            "loss_spike",
            step,
            f"step {step:,} had a loss of {loss:.4g}, expected about {usual:.4g} as in the "
            f"{len(past.recent)} steps before; its images: {shown}. Look at their boxes with detrkit data check "
            "and detrkit data preview; if it comes again with other images, lower train.lr or train.clip_norm",
        )

    def _judge_block(self, step: int, line: Progressed) -> list[str]:
        """Return messages on where the loss is going, at the end of a block."""
        past = self._past
        center, sigma = _center_and_sigma(past.block)
        former, best = past.former, past.best
        past.block, past.former, past.best = [], center, min(best, center)
        if not math.isfinite(former):
            past.first = statistics.median(past.recent[:FIRST_STEPS])
            return []
        lately = (center + former) / 2
        fell = (past.first - lately) / past.first
        error = 1.25 * sigma / math.sqrt(BLOCK)  # of a median
        limit = max(RISE * best, best + RISE_ERRORS * error)
        swings = len(past.spikes) == MANY_SPIKES and step - past.spikes[0] <= 4 * BLOCK
        rose = (swings and center > 0.98 * best) or min(center, former) > limit
        too_high = self._too_high(step, center, best, swings) if rose else None
        poor = line.terms.get("giou", 0.0) > POOR_FIT or line.terms.get("class_error", 0.0) > POOR_CLASSES
        past.is_unmoved = abs(fell) < FELL_LITTLE and poor
        begun = step >= max(JUDGED_STEPS, count_warmup(line.total_steps, self._config.train) + 4 * BLOCK)
        falls_little = begun and past.is_unmoved and fell * line.total_steps / step < FALLS_LITTLE
        too_low = self._too_low(step, lately, line.total_steps) if falls_little else None
        return [*self._say("lr_too_high", step, too_high), *self._say("lr_too_low", step, too_low)]

    def _too_high(self, step: int, loss: float, best: float, swings: bool) -> str:
        config = self._config.train
        found = f"the loss rose to {loss:.4g} after it had come down to {best:.4g}"
        if swings:
            lately = step - self._past.spikes[0] + 1
            found = f"{MANY_SPIKES} of the last {lately} steps had a loss far above the others"
        clip = f", and train.clip_norm from {config.clip_norm:g}" if config.clip_norm > 1 else ""
        clip = ", and set train.clip_norm=0.1" if not config.clip_norm else clip
        return (
            f"{found} at step {step:,}; expected a loss that falls. Lower train.lr from "
            f"{config.lr:g}{clip}, or begin with train.warmup_steps; detrkit tune --lr-range finds a rate. Begin "
            "anew or from a checkpoint of before the rise: this one rarely recovers"
        )

    def _too_low(self, step: int, loss: float, total_steps: int) -> str:
        config, first = self._config.train, self._past.first
        end = first - (first - loss) * total_steps / step
        fell = f"fell only from {first:.4g} to {loss:.4g}" if loss < first else f"has not fallen from {first:.4g}"
        return (
            f"the loss {fell} in {step:,} steps, and would be {min(end, first):.4g} after all "
            f"{total_steps:,}; expected at most {1 - FELL_LITTLE:.0%} of the first by now. Raise train.lr from "
            f"{config.lr:g}, ten times at first; detrkit tune --lr-range finds a rate"
        )

    def _judge_outputs(self, line: Progressed) -> list[str]:
        """Return messages on what the network says of its images."""
        past = self._past
        steps = len(line.steps)
        values = {**line.health, "giou": line.terms.get("giou", math.nan)}
        values = {name: value for name, value in values.items() if math.isfinite(value)}
        for name, value in values.items():
            past.sums[name] = past.sums.get(name, 0.0) + steps * value
            past.sums[f"{name}_steps"] = past.sums.get(f"{name}_steps", 0) + steps
        if max(past.sums.get(f"{name}_steps", 0) for name in values) < BLOCK:
            return []
        means = {name: past.sums[name] / past.sums[f"{name}_steps"] for name in values}
        judged = int(past.sums["objects_share_steps"])
        past.sums = {}
        step = line.steps[-1]
        return [*self._judge_boxes(step, judged, means), *self._judge_classes(step, judged, means)]

    def _judge_boxes(self, step: int, judged: int, means: Mapping[str, float]) -> list[str]:
        """Return a message if every image gets the same boxes, and they do not fit."""
        past = self._past
        spread, giou = means.get("box_spread_images", math.nan), means.get("giou", math.nan)
        over_queries = means.get("box_spread_queries", math.nan)
        same = spread < LEAST_SPREAD or max(spread, over_queries) < LEAST_SPREAD_OF_ALL
        if not (same and giou > POOR_FIT and means["matched_share"]):
            past.same_steps = 0
            return self._say("same_boxes", step, None)
        past.same_steps += judged
        # a loss that does not move at all says more: then the boxes are still those of the beginning
        if past.same_steps < SAME_STEPS or past.is_unmoved:
            return []
        return self._say(
            "same_boxes",
            step,
            f"for {past.same_steps:,} steps every image has had the same boxes: they vary over "
            f"images by {spread:.2g} of a side and over queries by {over_queries:.2g}, expected above "
            f"{LEAST_SPREAD_OF_ALL:g}, and their GIoU loss is {giou:.2f}. "
            f"{self._advice_on_start()}; if that changes nothing, look with detrkit data preview whether images "
            "and boxes belong together",
        )

    def _judge_classes(self, step: int, judged: int, means: Mapping[str, float]) -> list[str]:
        """Return a message if no query predicts an object although there are some."""
        past = self._past
        share, wanted = means["objects_share"], means["matched_share"]
        if not wanted or share > FEW_OBJECTS * wanted:
            past.empty_steps = 0
            return self._say("no_objects", step, None)
        past.empty_steps += judged
        if past.empty_steps < EMPTY_STEPS:
            return []
        weight = self._config.loss.no_object_weight
        cause = f"Lower loss.no_object_weight from {weight:g} to 0.1. " if weight > 0.2 else ""
        return self._say(
            "no_objects",
            step,
            f"for {past.empty_steps:,} steps all queries have said no-object: {share:.2%} "
            f"predict an object, expected about {wanted:.1%}, as many as there are; mean probability of "
            f"an object {means['object_probability']:.1%}. {cause}{self._advice_on_start()}",
        )

    def _advice_on_start(self) -> str:
        """Return what to do about a network that has found one answer to everything."""
        config = self._config.train
        if self._past.spikes or "lr_too_high" in self._past.said:
            return f"The loss has jumped too: lower train.lr from {config.lr:g}"
        if config.init in ("none", "backbone"):
            return (
                "A DETR without pretrained transformer does so for hundreds to thousands of steps: train longer, "
                f"or begin with train.init=published; if it goes on, lower train.lr from {config.lr:g}"
            )
        return f"Pretrained weights do not do so: lower train.lr from {config.lr:g}"

    def _judge_queries(self, step: int, use: QueryUse) -> list[str]:
        """Return a remark if many queries are never used."""
        if use.dead < DEAD_SHARE * use.queries:
            return self._say("dead_queries", step, None)
        enough = math.ceil((use.queries - use.dead) / 10) * 10
        return self._say(
            "dead_queries",
            step,
            f"{use.dead} of {use.queries} queries were matched with no object of the last "
            f"{use.images:,} images, which have {use.objects_per_image:.1f} objects on average; expected fewer "
            f"than half. It costs time, not accuracy: in a new run model.num_queries={enough} would "
            "do, unless an image has more objects; published weights are best left with theirs",
            title="REMARK",
        )

    def _say(self, kind: str, step: int, message: str | None, title: str = "ALARM") -> list[str]:
        """Return the message of an alarm if it is to be said now, and note that; None notes that it has gone."""
        said, gone = self._past.said.get(kind, (None, True))
        if message is None:
            if said is not None:
                self._past.said[kind] = (said, True)
            return []
        if said is not None and step - said < (SAY_AGAIN_AFTER if gone else max(5 * SAY_AGAIN_AFTER, said)):
            return []
        self._past.said[kind] = (step, False)
        return [f"{title} {kind}: {message}"]


def _center_and_sigma(values: Sequence[float]) -> tuple[float, float]:
    """Return the median and the standard deviation that the median distance from it stands for."""
    center = statistics.median(values)
    distance = statistics.median([abs(value - center) for value in values])
    return center, max(1.4826 * distance, 1e-3 * abs(center))
