"""What differs from one model family to the next, resolved once and handed on together with the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from detrkit.classes import ClassMap, SizeHW
from detrkit.config import AidsConfig, Config
from detrkit.errors import WeightsError
from detrkit.families.postprocess import postprocess
from detrkit.families.weights import LoadReport, Weights
from detrkit.losses.criterion import Criterion
from detrkit.losses.scoring import SOFTMAX, ClassScoring
from detrkit.nn.backbones.resnet import fold_frozen_norms
from detrkit.types import ImageDetections, Outputs


@dataclasses.dataclass(frozen=True)
class WeightsLayouts:
    """Reader and writers of the layouts in which others publish a family's weights.

    Args:
        read: Reads a checkpoint, for a model section where the file alone cannot tell.
        write_published: Writes weights as the authors did.
        write_hub: Writes a folder for Hugging Face transformers, with the evaluation's short and longest side.
    """

    read: Callable[[str | Path, Any], Weights]
    write_published: Callable[[str | Path, dict[str, Tensor]], None]
    write_hub: Callable[[str | Path, Weights, int, int], None]


def build_criterion(config: Config, class_map: ClassMap, scoring: ClassScoring = SOFTMAX) -> Criterion:
    """Build the set prediction loss."""
    return Criterion(config.loss, class_map, config.model.num_queries, config.aids.dense, scoring)


def fold_backbone(model: Any) -> None:
    """Fold the frozen norms of a model's backbone into its convolutions, in place."""
    fold_frozen_norms(model.backbone[0])


@dataclasses.dataclass(frozen=True)
class Family:
    """The functions of a model family.

    Its config section and presets, which must be free of torch, are in :mod:`detrkit.families.configs` and
    :mod:`detrkit.families.presets`; its networks carry the rules by which their parts are named, see
    :func:`detrkit.families.parts.find_places`. What its class logits mean is known to ``scoring``, and to whatever
    here reads logits.

    Args:
        name: As in ``model.family``.
        build: Makes a network with random weights for so many labels.
        add_aids: Gives a network what it has in training only.
        layouts: Reads and writes published weights; None if nobody publishes any.
        scoring: What class logits mean.
        build_criterion: Makes the training loss.
        postprocess: Turns outputs into detections in pixels of the original images.
        prepare_inference: Changes a network in place so that it only detects, but faster.
    """

    name: str
    build: Callable[[Any, int], nn.Module]
    add_aids: Callable[[Any, Any, AidsConfig], None]
    layouts: WeightsLayouts | None = None
    scoring: ClassScoring = SOFTMAX
    build_criterion: Callable[[Config, ClassMap], Criterion] = build_criterion
    postprocess: Callable[[Outputs, Sequence[SizeHW], ClassMap], list[ImageDetections]] = postprocess
    prepare_inference: Callable[[Any], None] = fold_backbone

    def published_layouts(self, what: str) -> WeightsLayouts:
        """Return the layouts.

        Args:
            what: What cannot be done without them, to say so.

        Raises:
            WeightsError: There are none.
        """
        if self.layouts is None:
            raise WeightsError(
                f"{what}: a {self.name.replace('_', '-')} model has no published layout; "
                "pass on its run folder or a checkpoint of it instead"
            )
        return self.layouts


@dataclasses.dataclass(frozen=True)
class BuiltModel:
    """A model and all that belongs to it.

    Args:
        model: The network.
        family: Its family.
        config: Everything it was made from; preprocessing is read from here.
        class_map: The classes of its head.
        report: What became of the weights; None if they are random.
    """

    model: nn.Module
    family: Family
    config: Config
    class_map: ClassMap
    report: LoadReport | None = None
