"""The peers' networks from random weights, behind one interface: a loss, and detections.

Images come normalised and padded to a multiple of :data:`MULTIPLE`; boxes are in pixels of these. transformers'
models are built from configs, never from the hub.

Shapes: B images, n objects of one, K detections of one.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_convert
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from detrkit.classes import SizeHW

MULTIPLE = 32
"""Sides of the input are a multiple of it: the coarsest level is twice upsampled onto finer ones."""

SCORE = 0.01
"""Least score; torchvision's 0.05 to 0.2 are for pictures to look at, and cost AP."""

PRIOR = 0.01
"""Score that heads begin with: few of all places hold an object."""


class Objects(NamedTuple):
    """Boxes XYXY ``[n, 4]`` in pixels of the padded image, and class ids ``[n]``, of one image."""

    boxes_xyxy: Tensor
    labels: Tensor


class Found(NamedTuple):
    """Boxes XYXY ``[K, 4]`` in pixels of the padded image, scores and class ids ``[K]``, of one image."""

    boxes_xyxy: Tensor
    scores: Tensor
    labels: Tensor


class PeerNetwork(nn.Module):
    """What every peer can do."""

    def loss(self, images: Tensor, objects: Sequence[Objects]) -> Tensor:
        """The loss of a batch, in training mode."""
        raise NotImplementedError

    def detect(self, images: Tensor) -> list[Found]:
        """Detections of a batch, in evaluation mode."""
        raise NotImplementedError


class _Prepared(nn.Module):
    """Stands in place of torchvision's own transform: images are normalised, resized and padded already."""

    def forward(self, images: Tensor, targets: Any = None) -> tuple[ImageList, Any]:
        return ImageList(images, [(images.shape[-2], images.shape[-1])] * len(images)), targets

    def postprocess(self, result: Any, _image_sizes: Any, _original_sizes: Any) -> Any:
        return result


class TorchvisionPeer(PeerNetwork):
    """A one-stage detector of torchvision.

    Args:
        detector: Its labels are class ids, since a sigmoid needs no background.
    """

    def __init__(self, detector: FCOS | RetinaNet):
        super().__init__()
        self.detector = detector
        detector.transform = _Prepared()

    def loss(self, images: Tensor, objects: Sequence[Objects]) -> Tensor:
        targets = [{"boxes": each.boxes_xyxy, "labels": each.labels} for each in objects]
        losses: Mapping[str, Tensor] = self.detector(images, targets)
        return torch.stack(list(losses.values())).sum()

    def detect(self, images: Tensor) -> list[Found]:
        return [Found(found["boxes"], found["scores"], found["labels"]) for found in self.detector(images)]


class TransformersPeer(PeerNetwork):
    """A detection transformer of transformers whose classes have a sigmoid each.

    Args:
        detector: Its loss is its own.
    """

    def __init__(self, detector: nn.Module):
        super().__init__()
        self.detector = detector
        # autocast would hand bfloat16 to the matcher, which NumPy does not know
        detector.loss_function = _InFloat32(detector.loss_function)

    def loss(self, images: Tensor, objects: Sequence[Objects]) -> Tensor:
        scale = _scale(images)
        labels = [
            {"class_labels": each.labels, "boxes": box_convert(each.boxes_xyxy, "xyxy", "cxcywh") / scale}
            for each in objects
        ]
        loss: Tensor = self.detector(pixel_values=images, labels=labels).loss
        return loss

    def detect(self, images: Tensor) -> list[Found]:
        outputs = self.detector(pixel_values=images)
        scores = outputs.logits.float().sigmoid()
        boxes = box_convert(outputs.pred_boxes.float(), "cxcywh", "xyxy") * _scale(images)
        num_queries, num_classes = scores.shape[1:]
        best = scores.flatten(1).topk(min(num_queries, 300), dim=1)
        queries, labels = best.indices // num_classes, best.indices % num_classes
        return [Found(boxes[i, queries[i]], best.values[i], labels[i]) for i in range(len(images))]


class _InFloat32:
    """A loss function of transformers that is always computed in float32."""

    def __init__(self, function: Any):
        self.function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = _to_float32(args), _to_float32(kwargs)
        with torch.autocast(next(arg.device.type for arg in args if isinstance(arg, Tensor)), enabled=False):
            return self.function(*args, **kwargs)


def _to_float32(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {name: _to_float32(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_to_float32(inner) for inner in value)
    return value


def _scale(images: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    return torch.tensor([width, height, width, height], device=images.device)


def fcos_resnet18(num_classes: int, _least_hw: SizeHW) -> PeerNetwork:
    """FCOS (arXiv:1904.01355) on ResNet-18 and a feature pyramid of 128 channels."""
    return TorchvisionPeer(FCOS(_resnet18_pyramid(), num_classes, score_thresh=SCORE, center_sampling_radius=1.5))


def fcos_mobilenet(num_classes: int, _least_hw: SizeHW) -> PeerNetwork:
    """FCOS on MobileNetV3-small and a feature pyramid of 96 channels: the smallest."""
    # its own momentum of 0.01 is for long trainings: in short ones evaluation would see statistics of long ago
    norm = functools.partial(nn.BatchNorm2d, eps=0.001, momentum=0.1)
    body = torchvision.models.mobilenet_v3_small(weights=None, norm_layer=norm).features
    # outputs of strides 8, 16 and 32, before the next downsampling
    backbone = BackboneWithFPN(body, {"3": "0", "8": "1", "12": "2"}, [24, 48, 576], 96, LastLevelP6P7(96, 96))
    return TorchvisionPeer(FCOS(backbone, num_classes, score_thresh=SCORE))


def retinanet_resnet18(num_classes: int, _least_hw: SizeHW) -> PeerNetwork:
    """RetinaNet (arXiv:1708.02002) on the same, its anchors half as large: so are the images."""
    sizes = tuple(
        (size, round(size * 2 ** (1 / 3)), round(size * 2 ** (2 / 3))) for size in (16, 32, 64, 128, 256)
    )
    anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
    return TorchvisionPeer(
        RetinaNet(_resnet18_pyramid(), num_classes, anchor_generator=anchors, score_thresh=SCORE)
    )


def _resnet18_pyramid() -> BackboneWithFPN:
    body = torchvision.models.resnet18(weights=None)
    return BackboneWithFPN(
        body, {"layer2": "0", "layer3": "1", "layer4": "2"}, [128, 256, 512], 128, LastLevelP6P7(128, 128)
    )


_HGNET_B0 = {
    "model_type": "hgnet_v2",
    "stem_channels": [3, 16, 16],
    "stage_in_channels": [16, 64, 256, 512],
    "stage_mid_channels": [16, 32, 64, 128],
    "stage_out_channels": [64, 256, 512, 1024],
    "hidden_sizes": [64, 256, 512, 1024],
    "depths": [1, 1, 2, 1],
    "stage_num_blocks": [1, 1, 2, 1],
    "stage_numb_of_layers": [3, 3, 3, 3],
    "use_learnable_affine_block": True,
    "out_indices": [3, 4],
}
"""HGNetV2-B0, the backbone of the smallest published D-FINE."""

_NANO: dict[str, Any] = {
    "freeze_backbone_batch_norms": False,
    "initializer_bias_prior_prob": PRIOR,
    "encoder_in_channels": [512, 1024],
    "feat_strides": [16, 32],
    "encode_proj_layers": [1],
    "encoder_hidden_dim": 128,
    "encoder_ffn_dim": 512,
    "hidden_expansion": 0.34,
    "d_model": 128,
    "decoder_in_channels": [128, 128],
    "decoder_ffn_dim": 512,
    "num_feature_levels": 2,
    "decoder_layers": 3,
}
"""D-FINE-N as published: two levels of 128 channels, three decoder layers."""


def dfine_nano(num_classes: int, least_hw: SizeHW) -> PeerNetwork:
    """D-FINE-N (arXiv:2410.13842), the smallest published."""
    from transformers import DFineConfig, DFineForObjectDetection

    config = DFineConfig(**_nano(num_classes, least_hw), depth_mult=0.5, decoder_n_points=[6, 6])
    return TransformersPeer(DFineForObjectDetection(config))


def rtdetrv2_nano(num_classes: int, least_hw: SizeHW) -> PeerNetwork:
    """RT-DETRv2 (arXiv:2407.17140) in the size of D-FINE-N; the smallest published has 20 million parameters."""
    from transformers import RTDetrV2Config, RTDetrV2ForObjectDetection

    config = RTDetrV2Config(**_nano(num_classes, least_hw), decoder_n_levels=2)
    return TransformersPeer(RTDetrV2ForObjectDetection(config))


def _nano(num_classes: int, least_hw: SizeHW) -> dict[str, Any]:
    """Not more queries than the smallest image has places for."""
    from transformers import HGNetV2Config

    height, width = (-(-side // MULTIPLE) for side in least_hw)
    backbone = HGNetV2Config(**{name: value for name, value in _HGNET_B0.items() if name != "model_type"})
    places = 4 * height * width + height * width
    return {**_NANO, "backbone_config": backbone, "num_labels": num_classes, "num_queries": min(300, places)}
