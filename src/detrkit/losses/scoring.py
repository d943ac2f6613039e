"""How the columns of a class head are read and taught: a softmax with no-object, or a sigmoid of each class.

Targets are logit columns; the number of classes S stands for no object. Shapes: ``[...]`` any, S classes.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torch.nn import functional

# The logit of a class that shall not be found, against 0 of no-object.
_NEVER = -20.0


@dataclasses.dataclass(frozen=True)
class SoftmaxScoring:
    """A softmax over all classes and no-object, which is the last column (DETR, arXiv:2005.12872, equation 2).

    Args:
        matchability: Exponent of qualities; None = 1.
    """

    matchability: float | None = None
    extra_columns = 1
    """Columns of the class head beside those of the classes."""

    def scores(self, logits: Tensor) -> Tensor:
        """Return the probability of each class, float32 ``[..., S]``."""
        return logits.float().softmax(-1)[..., :-1]

    def object_scores(self, logits: Tensor) -> Tensor:
        """Return the probability of any object, float32 ``[...]``."""
        return 1 - logits.float().softmax(-1)[..., -1]

    def finds_object(self, logits: Tensor) -> Tensor:
        """Return whether an object is likelier than none, bool ``[...]``."""
        return logits[..., :-1].amax(-1) > logits[..., -1]

    def nothing(self, logits: Tensor) -> Tensor:
        """Return logits ``[S + extra_columns]`` that find no object, like those given in type and device."""
        return functional.pad(logits.new_full((logits.shape[-1] - 1,), _NEVER), (0, 1))

    def costs(self, logits: Tensor) -> Tensor:
        """Return the cost of matching with an object of each class, float32 ``[..., S]``: -p."""
        return -self.scores(logits)

    def losses(self, logits: Tensor, targets: Tensor, qualities: Tensor | None = None) -> Tensor:
        """Return the class loss of each prediction, neither weighted nor normalised.

        What a class is not to score, no-object is.

        Args:
            logits: ``[..., S + extra_columns]``.
            targets: int64 ``[...]``, S where there is no object.
            qualities: ``[...]``, what the target's class should score, 0 to 1; None = 1.

        Returns:
            float32 ``[...]``.
        """
        losses = functional.cross_entropy(logits.float().flatten(0, -2), targets.flatten(), reduction="none")
        losses = losses.view(targets.shape)
        if qualities is None:
            return losses
        qualities = qualities ** (self.matchability or 1.0)
        no_object = -functional.log_softmax(logits.float(), dim=-1)[..., -1]
        return qualities * losses + (1 - qualities) * no_object

    def no_object_weight(self, configured: float) -> float:
        """Return the weight of predictions without an object, others weighing 1, as configured."""
        return configured

    def normalizer(self, matched: float, unmatched: float, configured: float) -> float:
        """Return what the summed class loss of so many predictions is divided by: the sum of their weights."""
        return matched + configured * unmatched


@dataclasses.dataclass(frozen=True)
class SigmoidScoring:
    """A sigmoid of each class, taught by the focal loss (arXiv:1708.02002; in DETRs since arXiv:2010.04159).

    Where a quality is given, the loss is the varifocal one (arXiv:2008.13367), as in RT-DETR (arXiv:2304.08069),
    or the matchability-aware one of DEIM (arXiv:2412.04234): there an object weighs 1 however badly its box fits,
    and a class that is not there weighs p to the exponent that the quality has, without alpha.

    Args:
        alpha: Weight of an object's class, against 1 - alpha of others; in the varifocal loss, weight of others.
        gamma: Exponent by which what is known already weighs less.
        match_alpha: The same as ``alpha`` in the cost of matching; None = alpha.
        matchability: Exponent of the matchability-aware loss; None = varifocal.
    """

    alpha: float = 0.25
    gamma: float = 2.0
    match_alpha: float | None = None
    matchability: float | None = None
    extra_columns = 0

    def scores(self, logits: Tensor) -> Tensor:
        """See :class:`SoftmaxScoring`."""
        return logits.float().sigmoid()

    def object_scores(self, logits: Tensor) -> Tensor:
        """See :class:`SoftmaxScoring`; the best class's probability."""
        return self.scores(logits).amax(-1)

    def finds_object(self, logits: Tensor) -> Tensor:
        """See :class:`SoftmaxScoring`."""
        return logits.amax(-1) > 0

    def nothing(self, logits: Tensor) -> Tensor:
        """See :class:`SoftmaxScoring`."""
        return logits.new_full((logits.shape[-1],), _NEVER)

    def costs(self, logits: Tensor) -> Tensor:
        """See :class:`SoftmaxScoring`; the focal loss of the class as target minus that of it as none."""
        logits = logits.float()
        probability = logits.sigmoid()
        alpha = self.alpha if self.match_alpha is None else self.match_alpha
        as_target = alpha * (1 - probability) ** self.gamma * functional.softplus(-logits)
        as_none = (1 - alpha) * probability**self.gamma * functional.softplus(logits)
        return as_target - as_none

    def losses(self, logits: Tensor, targets: Tensor, qualities: Tensor | None = None) -> Tensor:
        """See :class:`SoftmaxScoring`."""
        logits = logits.float()
        classes = torch.arange(logits.shape[-1], device=logits.device)
        is_target = (targets[..., None] == classes).float()
        probability = logits.sigmoid()
        if qualities is None:
            wanted = is_target
            missed = torch.where(is_target > 0, 1 - probability, probability)
            weight = torch.where(is_target > 0, self.alpha, 1 - self.alpha) * missed**self.gamma
        else:
            known = probability.detach()
            if self.matchability is None:
                wanted = is_target * qualities[..., None]
                weight = torch.where(is_target > 0, wanted, self.alpha * known**self.gamma)
            else:
                wanted = is_target * qualities[..., None] ** self.matchability
                weight = torch.where(is_target > 0, 1.0, known**self.matchability)
        return (weight * functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")).sum(-1)

    def no_object_weight(self, configured: float) -> float:
        """See :class:`SoftmaxScoring`; alpha weighs already."""
        return 1.0

    def normalizer(self, matched: float, unmatched: float, configured: float) -> float:
        """See :class:`SoftmaxScoring`; the number of objects."""
        return matched


ClassScoring = SoftmaxScoring | SigmoidScoring
"""What criterion, matcher, query selection and postprocess need to know of class logits."""

SOFTMAX = SoftmaxScoring()
