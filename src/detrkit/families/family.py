"""What differs from one model family to the next, resolved once and handed on together with the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from detrkit.classes import ClassMap, SizeHW
from detrkit.config import AidsConfig, Config
from detrkit.errors import WeightsError
from detrkit.families.postprocess import postprocess, rank_detections
from detrkit.families.weights import LoadReport, Weights
from detrkit.losses.criterion import Criterion
from detrkit.losses.scoring import SOFTMAX, ClassScoring
from detrkit.types import ImageDetections, Outputs


def build_criterion(
    config: Config, class_map: ClassMap, scoring: ClassScoring = SOFTMAX, kind: type[Criterion] = Criterion
) -> Criterion:
    """Build the set prediction loss."""
    return kind(config.loss, class_map, config.model.num_queries, config.aids.dense, scoring)


def prepare_inference(model: Any) -> None:
    """Let a model change itself so that it only detects."""
    model.prepare_inference()


def keep_parts(model: Any, decoder_layers: int, queries: Sequence[int]) -> None:
    """Let a model change itself so that it has fewer decoder layers and queries."""
    model.keep(decoder_layers, queries)


def mask_graph(model: Any) -> nn.Module:
    """Return what makes masks in an exported graph of its own."""
    graph: nn.Module = model.mask_graph()
    return graph


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
        read_published: Reads published weights, for a model section where the file cannot tell, and fields that go
            over it; None if there are none.
        recognize: Tells from names of tensors whether weights are of this family; needed with ``read_published``.
        scoring: What class logits mean.
        build_criterion: Makes the training loss.
        postprocess: Turns outputs into detections in pixels of the original images.
        rank: The part of ``postprocess`` that works on tensors, from the last layer's logits and boxes to scores,
            class ids and boxes; what an exported graph holds.
        prepare_inference: Changes a network in place so that it only detects, but faster.
        keep_parts: Leaves a network, in place, its first decoder layers and some of its queries, for detection;
            before ``prepare_inference``.
        mask_graph: Makes, of a network with masks, a module from queries of one image ``[M, D]``, a first and a
            list of further maps ``[1, C, h, w]`` without padding to mask logits ``[M, h, w]`` of the last map's
            size; they are what :meth:`detrkit.types.QueryMasks.parts` gives.
        learned_queries: True if each query is one of the network's own, the same in every image; False if the
            best of each image are taken, so that the first are the best.
    """

    name: str
    build: Callable[[Any, int], nn.Module]
    add_aids: Callable[[Any, Any, AidsConfig], None]
    read_published: Callable[[str | Path, Any, Mapping[str, Any]], Weights] | None = None
    recognize: Callable[[Collection[str]], bool] = lambda _names: False
    scoring: ClassScoring = SOFTMAX
    build_criterion: Callable[[Config, ClassMap], Criterion] = build_criterion
    postprocess: Callable[[Outputs, Sequence[SizeHW], ClassMap], list[ImageDetections]] = postprocess
    rank: Callable[[Tensor, Tensor, Tensor, ClassScoring], tuple[Tensor, Tensor, Tensor]] = rank_detections
    prepare_inference: Callable[[Any], None] = prepare_inference
    keep_parts: Callable[[Any, int, Sequence[int]], None] = keep_parts
    mask_graph: Callable[[Any], nn.Module] = mask_graph
    learned_queries: bool = True

    def no_published_layout(self, what: str) -> WeightsError:
        """Return the error that there is no published layout, given what cannot be done without."""
        return WeightsError(
            f"{what}: a {self.name.replace('_', '-')} model has no published layout; "
            "pass on its run folder or a checkpoint of it instead"
        )


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
