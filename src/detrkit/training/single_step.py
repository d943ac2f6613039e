"""A step of training by itself: without run folder, log, schedule or recovery; for trying what a step does.

The gradient is that of :mod:`detrkit.training.step`, in the precision of the model, on one process.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import add

import torch
from torch import nn

from detrkit.config import TransformConfig
from detrkit.losses.criterion import Criterion, Normalizers
from detrkit.preprocess import model_inputs
from detrkit.training.optim import apply_gradients
from detrkit.types import Batch


@dataclasses.dataclass(frozen=True)
class SingleStep:
    """What a step gave.

    Args:
        loss: Weighted total; NaN if the model's outputs were not finite, and no weight has changed then.
        grad_norm: Before clipping; NaN where the loss is.
        terms: Unweighted value of each term.
    """

    loss: float
    grad_norm: float
    terms: Mapping[str, float]


def single_step(
    model: nn.Module,
    criterion: Criterion,
    optimizer: torch.optim.AdamW,
    batches: Sequence[Batch],
    transforms: TransformConfig,
    clip_norm: float,
) -> SingleStep:
    """Change the weights once, by the gradient of all batches together.

    Args:
        model: In training mode and channels-last.
        criterion: Of its training.
        optimizer: From :func:`detrkit.training.optim.build_optimizer`, its learning rates set.
        batches: On the model's device, after augmentation.
        transforms: Has mean and spread of the pixels.
        clip_norm: As for :func:`detrkit.training.optim.apply_gradients`.
    """
    normalizers = reduce(
        add, (criterion.normalizers(batch.truth.counts) for batch in batches), Normalizers(0.0, 0.0)
    )
    loss, terms = 0.0, dict[str, float]()
    for batch in batches:
        outputs = model(*model_inputs(batch, transforms), criterion.objects(batch.truth))
        # the matcher takes no numbers that are not finite
        if not all(bool(part.isfinite().all()) for part in (outputs.logits, outputs.boxes_cxcywh)):
            optimizer.zero_grad(set_to_none=True)
            return SingleStep(math.nan, math.nan, {})
        found = criterion(outputs, batch.truth, normalizers)
        found.total.backward()  # type: ignore[no-untyped-call]
        loss += float(found.total.detach())
        for name, value in found.terms.items():
            share = 1 / len(batches) if name.endswith("error") else 1.0
            terms[name] = terms.get(name, 0.0) + share * float(value)
    norm = apply_gradients(optimizer, clip_norm)
    optimizer.zero_grad(set_to_none=True)
    return SingleStep(loss, float(norm), terms)
