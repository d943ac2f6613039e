"""The peers, and their settings: the other table to edit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.convergence import peer_models
from benchmarks.convergence.peer_models import PeerNetwork
from detrkit.classes import SizeHW


@dataclasses.dataclass(frozen=True)
class Peer:
    """Another toolkit's detector, trained on the same images.

    Args:
        build: Makes it for so many classes, and images of at least a size.
        changes: Config values over :data:`COMMON`, dotted.
    """

    build: Callable[[int, SizeHW], PeerNetwork]
    changes: Mapping[str, Any]


COMMON: dict[str, Any] = {
    "transforms.recipe": "resize",
    "train.init": "none",
    "train.batch_size": 8,
    "train.schedule": "cosine",
    "train.warmup_steps": 100,
    "train.weight_decay": 1e-4,
    "train.ema_decay": 0.999,
}
"""Of all peers; the loop of the peers knows only what is named here, size, data, rates and clipping."""


def _rates(lr: float, clip_norm: float) -> dict[str, Any]:
    return {"train.lr": lr, "train.backbone_lr": lr, "train.clip_norm": clip_norm}


PEERS: dict[str, Peer] = {
    "dfine-n": Peer(peer_models.dfine_nano, _rates(1e-3, 5.0)),
    "dfine-n-clip0.1": Peer(peer_models.dfine_nano, _rates(5e-4, 0.1)),
    "rtdetrv2-n": Peer(peer_models.rtdetrv2_nano, _rates(1e-3, 5.0)),
    "rtdetrv2-n-clip0.1": Peer(peer_models.rtdetrv2_nano, _rates(5e-4, 0.1)),
    "fcos-mobilenet": Peer(peer_models.fcos_mobilenet, _rates(1e-3, 5.0)),
    "fcos-r18": Peer(peer_models.fcos_resnet18, _rates(1e-3, 5.0)),
    "retinanet-r18": Peer(peer_models.retinanet_resnet18, _rates(1e-3, 5.0)),
}
