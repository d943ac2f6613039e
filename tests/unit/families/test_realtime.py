"""Real-time DETRs by themselves: padding, what inference folds, reading of what is no such model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from detrkit.classes import ClassMap
from detrkit.config import Config, update_config
from detrkit.errors import ConfigError, WeightsError
from detrkit.families.build import build_model, get_family, read_weights
from detrkit.families.recipes import preset_config
from detrkit.nn.deformable import DeformableAttention
from detrkit.nn.hybrid import RepBlock
from detrkit.preprocess import Preprocessing
from tests.parity.conftest import padded_batch
from tests.parity.test_realtime import randomize

CLASSES = ClassMap(("a", "b", "c"), (1, 2, 3))
SIZES = [(70, 90), (45, 63), (33, 97)]
SMALL = {
    "hidden_dim": 32,
    "encoder_dim": 48,
    "ffn_dim": 32,
    "encoder_ffn_dim": 32,
    "num_heads": 4,
    "num_queries": 12,
}
FAMILIES = pytest.mark.parametrize("preset", ["rtdetr-nano", "rtdetr-r18", "dfine-n"])


def make_config(preset: str, **model: Any) -> Config:
    return update_config(preset_config(preset), {"model": {**SMALL, **model}})


def make_model(preset: str, **model: Any) -> Any:
    torch.manual_seed(0)
    built = build_model(make_config(preset, **model), CLASSES)
    randomize(built.model)
    return built.model.eval()


@FAMILIES
@pytest.mark.parametrize(("norm", "levels"), [("batch", 3), ("group", 2), ("group", 1)])
def test_padding_changes_no_detection(preset: str, norm: str, levels: int):
    model = make_model(preset, backbone_norm=norm, feature_levels=levels, points=(4,) * levels, expansion=0.72)
    images, mask = padded_batch(SIZES, extra=13)
    with torch.no_grad():
        together = model(images, mask)
        for row, (height, width) in enumerate(SIZES):
            alone = model(images[row : row + 1, :, :height, :width].contiguous())
            for own, other in zip(alone[:2], together[:2], strict=True):
                torch.testing.assert_close(other[:, row : row + 1], own, rtol=1e-4, atol=1e-4)


@FAMILIES
def test_what_inference_folds_changes_nothing(preset: str):
    model = make_model(preset)
    images, mask = padded_batch(SIZES, extra=5)
    folded = copy.deepcopy(model)
    get_family(make_config(preset).model).prepare_inference(folded)
    blocks = [part for part in folded.modules() if isinstance(part, RepBlock)]
    assert blocks
    assert all(block.conv2 is None for block in blocks)
    assert not any("running_var" in name for name in folded.state_dict())
    with torch.no_grad():
        before, after = model(images, mask), folded(images, mask)
    torch.testing.assert_close(after.logits[-1], before.logits[-1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(after.boxes_cxcywh[-1], before.boxes_cxcywh[-1], rtol=1e-4, atol=1e-4)


def test_a_discrete_attention_reads_single_cells():
    attention = DeformableAttention(8, 2, 1, 1, discrete=True)
    torch.nn.init.zeros_(attention.sampling_offsets.bias)
    for projection in (attention.value_proj, attention.output_proj):
        projection.weight.data.copy_(torch.eye(8))
    values = torch.arange(12.0)[:, None].expand(12, 8)[None]  # 3 x 4 cells
    queries = torch.zeros(1, 2, 8)
    boxes = torch.tensor([[[0.3, 0.5, 0.1, 0.1], [1.0, 1.0, 0.1, 0.1]]])
    found = attention(queries, boxes, values, [(3, 4)])
    assert found[0, :, 0].tolist() == [2 * 4 + 1, 11]


def test_a_square_rule_forgets_the_aspect():
    rule = Preprocessing.from_config(make_config("rtdetr-nano").transforms)
    assert {rule.resized_size_hw(size) for size in ((10, 900), (320, 320), (50, 20))} == {(320, 320)}


def test_wrong_files_are_refused_with_what_is_wrong(tmp_path: Path):
    model = make_model("rtdetr-r18", num_queries=300)
    from detrkit.families.rtdetr.layouts import RTDETR_LAYOUTS

    native = RTDETR_LAYOUTS.from_own(model.state_dict(), "native")
    torch.save({"model": native}, tmp_path / "whole.pth")
    weights, _ = read_weights(tmp_path / "whole.pth")
    assert weights.class_map.names == ("class_0", "class_1", "class_2")
    assert "class_0" in weights.class_map.guessed
    with pytest.raises(WeightsError, match="ffn_dim 32, but rtdetr-r50 has 1024"):
        read_weights(tmp_path / "whole.pth", "rtdetr-r50,encoder_dim=48,hidden_dim=32")
    lacking = {name: tensor for name, tensor in native.items() if "pan_blocks.0.conv1" not in name}
    torch.save({"model": lacking}, tmp_path / "lacking.pth")
    with pytest.raises(WeightsError, match=r"missing pyramid\.pan_blocks\.0\.conv1"):
        read_weights(tmp_path / "lacking.pth")
    broken = {**native, "encoder.input_proj.0.conv.weight": native["encoder.input_proj.0.conv.weight"] * torch.nan}
    torch.save({"model": broken}, tmp_path / "broken.pth")
    with pytest.raises(WeightsError, match="NaN"):
        read_weights(tmp_path / "broken.pth")


def test_points_are_those_of_the_levels():
    with pytest.raises(ConfigError, match="expected 1 or more for each of 2 levels"):
        make_config("rtdetr-nano", feature_levels=2)


def test_a_token_at_the_edge_proposes_no_place_of_its_own():
    anchors = torch.tensor([[[0.005, 0.5, 0.05, 0.05], [0.5, 0.5, 0.05, 0.05]]])
    found = make_model("rtdetr-nano")._propose(torch.zeros(1, 2, SMALL["hidden_dim"]), anchors)
    assert torch.isfinite(found).all()
    assert (found.sigmoid() == 1).all(-1).tolist() == [[True, False]]
