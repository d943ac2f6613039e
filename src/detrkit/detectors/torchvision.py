"""torchvision's detectors: Faster R-CNN, Mask R-CNN, Keypoint R-CNN, RetinaNet, FCOS, SSD and SSDlite.

Their forward does everything at once. For the three stages, its image transform is taken out and done before.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torchvision
import torchvision.models.detection
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from detrkit.classes import SizeHW
from detrkit.config import Precision
from detrkit.detectors.detector import Detector
from detrkit.detectors.labels import class_map_of_labels, labelled_detections, to_device
from detrkit.detectors.stages import autocast
from detrkit.download import download_weights
from detrkit.errors import UsageError, WeightsError
from detrkit.families.build import CLASSES_SUFFIX, read_classes
from detrkit.files import read_facts
from detrkit.hardware import resolve_device
from detrkit.types import ImageDetections

KIND = "torchvision"
RANDOM = ("none", "random")

_FACTS = read_facts(__file__)
_HEAD_BIASES: tuple[str, ...] = tuple(_FACTS["head_biases"])
_ZERO_EPSILON: tuple[str, ...] = tuple(_FACTS["zero_epsilon"])


def torchvision_detector(spec: str, *, device: str = "auto", precision: Precision = "32") -> Detector:
    """Load one of torchvision's detectors.

    Args:
        spec: ``NAME`` with its published weights, ``NAME@random`` (or ``none``) with random ones, always the
            same, or ``NAME@FILE`` with a state dict. A file for other classes than COCO's needs FILE.classes.json.
        device: Device, as in :func:`detrkit.load`.
        precision: Precision, as in :func:`detrkit.load`.

    Raises:
        UsageError: torchvision has no such detector, or the names of a file's classes are not known.
        WeightsError: The weights cannot be fetched, or the file is damaged or of another model.
    """
    name, _, weights = spec.partition("@")
    known = torchvision.models.list_models(module=torchvision.models.detection)
    if name not in known:
        raise UsageError(f"torchvision has no detector {name!r}; it has: {', '.join(known)}")
    target = resolve_device(device)
    names = dict(enumerate(_default_weights(name).meta["categories"]))
    if not weights:
        network = _published(name)
    elif weights in RANDOM:
        network = _random(name)
    else:
        network, names = _from_file(name, Path(weights).expanduser(), names)
    class_map, classes = class_map_of_labels(names)
    stages = TorchvisionStages(network.to(target).eval(), classes, target, precision)
    settings = f"{KIND} {torchvision.__version__} {name} {stages.transform} {precision}"
    return Detector(stages, class_map, name=spec, kind=KIND, settings=settings)


class _Prepared(list[Tensor]):
    """Images that the transform has done already; the batch is what it made of them."""

    batch: ImageList


class _Ready(nn.Module):
    """Stands in the detector in place of its transform, which runs before and after it."""

    def forward(self, images: _Prepared, targets: None = None) -> tuple[ImageList, None]:
        """Return the batch as it is."""
        return images.batch, targets

    def postprocess(self, result: Any, _image_sizes: Any, _original_sizes: Any) -> Any:
        """Return detections as they are, in pixels of the resized images."""
        return result


class _Raw(NamedTuple):
    detections: list[dict[str, Tensor]]
    image_sizes: list[SizeHW]


class TorchvisionStages:
    """The stages of a torchvision detector; its non-maximum suppression is a part of ``forward``.

    Args:
        network: In evaluation mode, on ``device``; its transform is taken out.
        classes: Class id of each label, -1 for none.
        device: Device of the network.
        precision: Precision, as in :func:`detrkit.load`.
    """

    pads = False

    def __init__(self, network: nn.Module, classes: np.ndarray, device: torch.device, precision: Precision):
        self.network = network
        self.device = device
        self.transform: Any = network.transform
        self._classes = classes
        self._precision: Precision = precision
        network.transform = _Ready()

    def resize(self, image: Tensor) -> Tensor:
        """Leave the image as it is: the detector's own transform does all."""
        return image

    def preprocess(self, images: Sequence[Tensor]) -> _Prepared:
        """Make a batch, normalised, resized and padded as the detector's own transform does it."""
        scaled = [image.float() / 255 for image in to_device(images, self.device)]
        with torch.inference_mode():
            batch, _ = self.transform(scaled)
        prepared = _Prepared(
            batch.tensors[i, :, :height, :width] for i, (height, width) in enumerate(batch.image_sizes)
        )
        prepared.batch = batch
        return prepared

    def forward(self, inputs: _Prepared) -> _Raw:
        """Detect, in pixels of the resized images."""
        with torch.inference_mode(), autocast(self.device, self._precision):
            detections = self.network(inputs)
        return _Raw(detections, inputs.batch.image_sizes)

    def postprocess(self, outputs: _Raw, orig_sizes_hw: Sequence[SizeHW]) -> list[ImageDetections]:
        """Return detections in pixels of the images' files; masks and keypoints are left out."""
        kept = [{key: found[key] for key in ("boxes", "labels", "scores")} for found in outputs.detections]
        with torch.inference_mode():
            resized = self.transform.postprocess(kept, outputs.image_sizes, list(orig_sizes_hw))
        return [
            labelled_detections(found["boxes"], found["scores"], found["labels"], self._classes)
            for found in resized
        ]


def _published(name: str) -> nn.Module:
    weights = _default_weights(name)
    try:
        # torchvision takes what lies there already; its own download has no time limit and is not resumed
        download_weights(weights.url, folder=Path(torch.hub.get_dir()) / "checkpoints")
    except WeightsError as error:
        raise WeightsError(
            f"{error}. Without a network, fetch the file elsewhere and give torchvision:{name}@FILE, or "
            f"torchvision:{name}@random for random weights"
        ) from error
    try:
        network: nn.Module = torchvision.models.get_model(name, weights=weights)
    except (OSError, RuntimeError) as error:
        raise WeightsError(f"cannot load {weights.url}: {error}") from error
    return network


def _default_weights(name: str) -> Any:
    weights: Any = torchvision.models.get_model_weights(name)
    return weights.DEFAULT


def _random(name: str, num_classes: int | None = None) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network: nn.Module = torchvision.models.get_model(
            name, weights=None, weights_backbone=None, num_classes=num_classes
        )
    return network


def _from_file(name: str, path: Path, published: dict[int, str]) -> tuple[nn.Module, dict[int, str]]:
    state = _read_state(path)
    # the number of labels shows in the bias of the head
    network = _random(name)
    own = network.state_dict()
    head = next((key for key in _HEAD_BIASES if key in own), None)
    labels = len(published)
    if head is not None and head in state:
        labels = len(published) * state[head].numel() // own[head].numel()
    if labels != len(published):
        network = _random(name, labels)
    # the weights must be those of this model, all of them
    try:
        missing, unexpected = network.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise WeightsError(f"{path} does not fit torchvision's {name}: {str(error).splitlines()[-1]}") from error
    # Frozen batch norm, which published files were made with, has no such counter.
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise WeightsError(
            f"{path} does not fit torchvision's {name}: {len(missing)} tensors are missing {missing[:3]}, "
            f"{len(unexpected)} are unknown {unexpected[:3]}"
        )
    if path.name in _ZERO_EPSILON:
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 0.0
    return network, _names_beside(path, labels, published)


def _read_state(path: Path) -> Mapping[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UsageError(f"no weights file at {path}; expected torchvision:NAME@FILE or NAME@random") from error
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
        raise WeightsError(
            f"{path} cannot be read as tensors alone: {str(error).splitlines()[0]}; save it again with "
            'torch.save(model.state_dict(), "FILE.pth")'
        ) from error
    state = content.get("model", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path} holds no state dict; expected names and tensors, or those under 'model'")
    return state


def _names_beside(path: Path, labels: int, published: dict[int, str]) -> dict[int, str]:
    """Return the names of a file's labels: those beside it, else the published ones if there are as many."""
    beside = path.with_suffix(CLASSES_SUFFIX)
    if not beside.exists():
        if labels == len(published):
            return published
        raise UsageError(
            f"{path} has {labels} labels with the background, and no file says what they are; write {beside}, "
            'such as {"names": ["cat", "dog"], "category_ids": [1, 2], "slots": [1, 2], '
            f'"num_slots": {labels}}} where slots are the labels'
        )
    class_map = read_classes(beside, labels)
    names = dict.fromkeys(range(labels), "")
    return names | dict(zip(class_map.logit_index, class_map.names, strict=True))
