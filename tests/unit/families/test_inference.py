"""What is folded and left out for detection changes no detection."""

import pytest
import torch

from tests.support.exporting import PRESETS, small_detector

CHANGES = [
    {},
    {"model.backbone_norm": "frozen"},
    {"model.pre_norm": False},
    {"model.norm_between": True},
    {"model.position_at_input": False, "model.pre_norm": False},
]


@pytest.mark.parametrize(
    ("preset", "changes"), [*((PRESETS[0], changes) for changes in CHANGES), (PRESETS[1], CHANGES[0])]
)
@pytest.mark.parametrize("padded", [False, True])
def test_the_last_layer_is_what_it_was_and_the_only_one(preset, changes, padded):
    model = small_detector(preset, **changes).model.eval()
    images = torch.randn(2, 3, 96, 80)
    mask = None
    if padded:
        mask = torch.zeros(2, 96, 80, dtype=torch.bool)
        mask[1, 50:] = mask[1, :, 60:] = True
        images = images.masked_fill(mask[:, None], 0)
    with torch.no_grad():
        before = model(images, mask)
        model.prepare_inference()
        after = model(images, mask)
        model.prepare_inference()
        again = model(images, mask)
    assert len(before.logits) == 2
    assert len(after.logits) == len(after.boxes_cxcywh) == 1
    for name in ("logits", "boxes_cxcywh"):
        assert torch.allclose(getattr(after, name)[0], getattr(before, name)[-1], atol=1e-4), name
        assert torch.equal(getattr(again, name), getattr(after, name)), name


def test_a_model_of_fewer_tokens_than_queries_gives_as_many_detections():
    model = small_detector(PRESETS[1], **{"model.num_queries": 200}).model.eval()
    with torch.no_grad():
        found = model(torch.randn(1, 3, 64, 64))
    assert found.logits.shape[2] == 200
    assert found.boxes_cxcywh.isfinite().all()
