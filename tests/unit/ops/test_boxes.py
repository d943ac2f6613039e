from __future__ import annotations

import torch
from torchvision.ops import box_convert, generalized_box_iou

from detrkit.ops.boxes import broadcast_giou, cxcywh_to_xyxy, xyxy_to_cxcywh


def some_boxes(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=generator)
    return torch.cat((low, low + torch.rand(count, 2, generator=generator)), 1)


def test_conversions_equal_torchvision_and_invert_each_other():
    boxes = some_boxes(50, 0)
    centers = xyxy_to_cxcywh(boxes)
    torch.testing.assert_close(centers, box_convert(boxes, "xyxy", "cxcywh"))
    torch.testing.assert_close(cxcywh_to_xyxy(centers), boxes)


def test_giou_of_all_pairs_equals_torchvision():
    first, second = some_boxes(30, 1), some_boxes(20, 2)
    ours = broadcast_giou(first[:, None], second[None])
    torch.testing.assert_close(ours, generalized_box_iou(first, second), rtol=1e-5, atol=1e-6)


def test_giou_of_boxes_without_area_is_finite():
    point = torch.tensor([0.5, 0.5, 0.5, 0.5])
    assert broadcast_giou(point, point).item() == 0.0
    assert -1 <= broadcast_giou(point, torch.tensor([0.0, 0.0, 0.1, 0.1])).item() < 0
