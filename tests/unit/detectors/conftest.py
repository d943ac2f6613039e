"""A model small enough to be checked by hand."""

import pytest
import torch
from torch import nn

from detrkit.classes import ClassMap
from detrkit.config import Config, update_config
from detrkit.detectors.detector import Detector
from detrkit.detectors.stages import ModelStages
from detrkit.preprocess import Preprocessing
from detrkit.types import ImageDetections, Outputs

QUERIES = 6
CLASS_MAP = ClassMap(names=("cat", "dog", "gnu"), category_ids=(17, 18, 44))


class FakeModel(nn.Module):
    """Scores that depend on an image's own pixels, on nothing in its padding; boxes that stay the same."""

    def __init__(self):
        super().__init__()
        self.frozen = nn.BatchNorm2d(3).eval()
        self.weight = nn.Parameter(torch.ones(1))
        self.calls = []

    def forward(self, images, padding_mask=None):
        self.calls.append((tuple(images.shape), padding_mask is not None, self.training))
        own = torch.ones_like(images[:, 0]) if padding_mask is None else (~padding_mask).float()
        color = (images * own[:, None]).sum((2, 3)) / own.sum((1, 2))[:, None]
        query = torch.arange(QUERIES, device=images.device)[None, :, None]
        logits = torch.cat([color[:, None] * (1 + query), 2.0 * query.expand(len(images), -1, 1)], dim=-1)
        box = torch.tensor([0.5, 0.5, 0.5, 1.1], device=images.device)
        boxes = box.expand(len(images), QUERIES, 4)
        return Outputs((logits * self.weight)[None], boxes[None])


def fake_postprocess(outputs, orig_sizes_hw, class_map):
    assert outputs.logits.dtype == torch.float32
    found = []
    for logits, boxes, (height, width) in zip(
        outputs.logits[-1], outputs.boxes_cxcywh[-1], orig_sizes_hw, strict=True
    ):
        scores, class_ids = logits.softmax(-1)[:, : len(class_map)].max(-1)
        order = scores.argsort(descending=True, stable=True)
        x, y, w, h = (boxes * torch.tensor([width, height, width, height]))[order].unbind(-1)
        corners = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], dim=-1)
        found.append(ImageDetections(corners.numpy(), scores[order].numpy(), class_ids[order].numpy()))
    return found


@pytest.fixture
def config():
    return update_config(Config(), {"transforms.eval_size": 32, "transforms.max_size": 64})


@pytest.fixture
def model():
    return FakeModel()


@pytest.fixture
def detector(model, config):
    preprocessing = Preprocessing.from_config(config.transforms)
    return Detector(ModelStages(model, CLASS_MAP, preprocessing, fake_postprocess, torch.device("cpu")), CLASS_MAP)
