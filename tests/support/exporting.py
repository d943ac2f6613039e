"""Models with random weights that are sure enough of what they see to be compared, and the comparison."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from detrkit.classes import ClassMap
from detrkit.config import Config, update_config
from detrkit.detections import ImageDetections
from detrkit.detectors.detector import Detector
from detrkit.detectors.load import make_detector
from detrkit.families.build import build_model
from detrkit.families.recipes import preset_config
from detrkit.families.two_stage import model as two_stage_model
from detrkit.nn.selection import best_tokens
from detrkit.ops.images import decode_pixels
from detrkit.runtimes.compare import Difference, Tolerance, compare_detections
from detrkit.runtimes.predictor import Predictor

CLASSES = ClassMap(("cat", "dog", "gnu"), (17, 18, 44), logit_index=(2, 0, 3), num_labels=5)
PRESETS = ("detr-tiny", "detr-tiny-two-stage")
REALTIME = [pytest.param(name, marks=pytest.mark.slow) for name in ("rtdetr-nano", "dfine-n")]
_SIZES = {
    "model.hidden_dim": 32,
    "model.num_heads": 2,
    "model.ffn_dim": 32,
    "model.num_queries": 12,
    "model.encoder_layers": 1,
    "model.decoder_layers": 2,
    "model.backbone": "tiny",
    "model.backbone_norm": "batch",
}


def small_detector(preset: str, **changes: object) -> Detector:
    """A model of a preset's family with random weights, of few features and layers."""
    config = preset_config(preset)
    inner = {f"model.{name}": 32 for name in ("encoder_dim", "encoder_ffn_dim") if hasattr(config.model, name)}
    if inner:  # a wide image is squeezed, but not in these tests, which are of batches of all sizes
        inner["transforms.keep_aspect"] = True
    return random_detector(update_config(config, {**_SIZES, **inner, **changes}))


def random_detector(config: Config, classes: ClassMap = CLASSES, logit_std: float = 5.0) -> Detector:
    """A model with random weights whose detections are as unlike each other as trained ones'.

    A head's own first weights give every query the same score and box, which a wrong graph would give too. A class
    head whose logits have a deviation of ``logit_std``, queries and a box head of some size, and norms that do
    something, spread scores over 0 to 1 and boxes over the image.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built = build_model(config, classes)
        for name, parameter in built.model.named_parameters():
            if "class_embed" in name and parameter.ndim == 2:
                nn.init.normal_(parameter, std=logit_std / parameter.shape[1] ** 0.5)
            if "bbox_embed" in name and parameter.ndim == 2:
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)  # more makes it chaotic
            if "query_embed" in name:
                nn.init.normal_(parameter, std=8.0)
        for module in built.model.modules():
            if hasattr(module, "running_var"):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
            if isinstance(module, (BasicBlock, Bottleneck)):  # or a hundred layers make much of a last digit
                last = module.bn3 if isinstance(module, Bottleneck) else module.bn2
                last.weight.data.mul_(0.2)
    return make_detector(built, device="cpu")


def real_pictures(shared_data: Path, count: int = 44) -> list[np.ndarray]:
    """Real pictures of many sizes, and the odd ones: of one pixel, of 20 to 1, gray."""
    files = sorted((shared_data / "coco_mini").rglob("*.jpg"))[: count - 4]
    files += sorted((shared_data / "bccd_voc").rglob("*.jpg"))[:4]
    found = [decode_pixels(file, None)[0] for file in files]
    gray = np.array(Image.fromarray(found[0]).convert("L").convert("RGB"))
    return [*found, found[1][:1, :1], found[2][:20, :400], found[3][:400, :20], gray]


def detect_alone(detector: Detector, pictures: Sequence[np.ndarray]) -> list[ImageDetections]:
    """What torch finds in each picture by itself."""
    tensors = [torch.from_numpy(picture).permute(2, 0, 1) for picture in pictures]
    return [detector.predict_batch([tensor])[0] for tensor in tensors]


def near_ties(detector: Detector, pictures: Sequence[np.ndarray]) -> dict[int, ImageDetections]:
    """What torch finds alone with the other choice, where the choice of queries hangs on a last digit.

    A two-stage model takes the tokens of the best scores as queries. Where the score of the last one taken and
    that of the first one left out lie within two steps of float32, the order in which sums are made decides which
    is taken, and every query sees the difference. The choice that torch did not make is as right.
    """
    found = {}

    def choose(scores: Tensor, valid: Tensor, count: int) -> tuple[Tensor, Tensor]:
        chosen, real = best_tokens(scores, valid, count + 1)
        last, left_out = scores.gather(1, chosen)[0, -2:].tolist()
        if real.all() and last - left_out <= 2 * last * torch.finfo(torch.float32).eps:
            close.append(True)
            chosen[:, -2] = chosen[:, -1]
        return chosen[:, :-1], real[:, :-1]

    two_stage = isinstance(detector.model, two_stage_model.TwoStageDetr)
    with patch.object(two_stage_model, "best_tokens", choose):
        for row, picture in enumerate(pictures if two_stage else ()):
            close: list[bool] = []
            [detections] = detect_alone(detector, [picture])
            if close:
                found[row] = detections
    return found


def differences(
    expected: Sequence[ImageDetections],
    predictor: Predictor,
    pictures: Sequence[np.ndarray],
    tolerance: Tolerance,
    *,
    ties: Mapping[int, ImageDetections] | None = None,
    batch: int = 4,
    say: Callable[[str], None] = lambda _: None,
) -> Difference:
    """Compare a bundle with torch, alone and in batches of whatever sizes; ``ties`` are those of near_ties."""
    total = Difference()
    for start in range(0, len(pictures), batch):
        rows = slice(start, start + batch)
        alone = predictor.detect(pictures[rows])
        sizes = [picture.shape[:2] for picture in pictures[rows]]
        together = predictor.detect_together([predictor.resize(picture) for picture in pictures[rows]], sizes)
        for row, one, *others in zip(range(len(pictures))[rows], expected[rows], alone, together, strict=True):
            for other in others:
                found = compare_detections(one, other, tolerance)
                if found.missing and ties and row in ties:
                    found = compare_detections(ties[row], other, tolerance)
                total += found
        say(f"{start + batch} {total}")
    return total
