from __future__ import annotations

import argparse
import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from detrkit.api.export import export
from detrkit.classes import COCO_CATEGORY_IDS, ClassMap
from detrkit.config import Config
from detrkit.errors import UsageError, WeightsError
from detrkit.families.build import FAMILIES, get_family
from detrkit.families.configs import MODEL_CONFIGS
from detrkit.families.detr.export import write_hub, write_published
from detrkit.families.detr.layouts import hub_to_published
from detrkit.families.detr.model import Detr, build_detr
from detrkit.families.detr.weights import coco_class_map, coco_panoptic_class_map, infer_model_config, read_weights
from detrkit.families.presets import PRESETS
from detrkit.families.recipes import preset_config
from detrkit.families.transfer import load_exactly, match_logit_index, transfer
from detrkit.families.weights import Weights
from detrkit.families.writers import HUB_FILES
from detrkit.nn.backbones import SMALL_BACKBONES
from tests.unit.families.conftest import build, small_config


def equal_states(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_r50_has_the_458_tensors_and_the_parameters_of_the_published_file(detr_r50: Detr):
    state = detr_r50.state_dict()
    assert len(state) == 458
    assert state["class_embed.weight"].shape == (92, 256)
    assert state["query_embed.weight"].shape == (100, 256)
    assert state["input_proj.weight"].shape == (256, 2048, 1, 1)
    assert "transformer.decoder.layers.5.multihead_attn.in_proj_weight" in state
    assert not any("num_batches_tracked" in name or "encoder.norm" in name for name in state)
    assert sum(p.numel() for p in detr_r50.parameters()) == pytest.approx(41.5e6, rel=2e-3)


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_of_the_preset_are_what_models_says(name: str):
    config = preset_config(name).model
    with torch.device("meta"):
        count = sum(p.numel() for p in get_family(config).build(config, 91).parameters())
    assert count / 1e6 == pytest.approx(PRESETS[name].params_m, abs=0.15)


@pytest.mark.parametrize("backbone", SMALL_BACKBONES)
def test_a_small_backbone_is_told_by_its_stem(backbone: str, tmp_path: Path):
    config = small_config(backbone=backbone, backbone_norm="group", frozen_stages=0)
    state = build(config, 3).state_dict()
    write_published(tmp_path / "some.pth", state)
    assert infer_model_config(state).backbone == backbone
    with pytest.raises(WeightsError, match=f"--as detr-{backbone}"):  # its positions show in no shape
        read_weights(tmp_path / "some.pth")
    read = read_weights(tmp_path / "some.pth", config.model_copy(update={"query_init": "grid"}))
    assert (read.config.query_init, read.config.frozen_stages) == ("grid", 0)
    assert equal_states(read.state, state)
    other = "nano" if backbone == "tiny" else "tiny"
    with pytest.raises(WeightsError, match=f"holds a model with backbone {backbone}, but detr-r18 has {other}"):
        read_weights(tmp_path / "some.pth", config.model_copy(update={"backbone": other}))


def test_published_to_hub_and_back_is_bit_equal(tmp_path: Path, detr_r50: Detr):
    state = detr_r50.state_dict()
    write_published(tmp_path / "detr-r50-e632da11.pth", state)
    read = read_weights(tmp_path / "detr-r50-e632da11.pth")
    write_hub(tmp_path / "hub", read, Config())
    again = read_weights(tmp_path / "hub")
    assert equal_states(again.state, state)
    assert again.class_map == read.class_map
    assert again.config == read.config
    assert (read.config.preset, read.config.backbone, read.config.num_heads) == ("detr-r50", "resnet50", 8)
    write_published(tmp_path / "again.pth", again.state)
    assert equal_states(read_weights(tmp_path / "again.pth").state, state)


@pytest.mark.parametrize(
    "preset", ["detr-r50-panoptic", pytest.param("detr-r50-dc5-panoptic", marks=pytest.mark.slow)]
)
def test_published_masks_have_490_tensors_and_come_back_bit_equal(tmp_path: Path, preset: str):
    config = preset_config(preset).model.model_copy(update={"backbone_norm": "frozen", "frozen_stages": 2})
    state = build(config, 250).state_dict()
    published = PRESETS[preset].published
    assert published is not None
    file = tmp_path / published.url.rpartition("/")[2]
    write_published(file, state)
    written = torch.load(file, weights_only=True)["model"]
    assert len(written) == 490
    assert written["detr.class_embed.weight"].shape == (251, 256)
    assert {name.partition(".")[0] for name in written} == {"detr", "mask_head", "bbox_attention"}
    read = read_weights(file)
    assert equal_states(read.state, state)
    assert (read.config.preset, read.config.masks, read.config.dilation) == (preset, True, "dc5" in preset)
    assert len(read.class_map.stuff) == 53  # assumed by the rows, since the hash is another

    write_hub(tmp_path / "hub", dataclasses.replace(read, class_map=coco_panoptic_class_map()), Config())
    again = read_weights(tmp_path / "hub")
    assert equal_states(again.state, state)
    assert (again.class_map, again.config) == (coco_panoptic_class_map(), read.config)
    write_published(tmp_path / "again.pth", again.state)
    assert equal_states(torch.load(tmp_path / "again.pth", weights_only=True)["model"], written)


def test_stuff_of_other_classes_goes_to_the_hub_and_back(tmp_path: Path):
    config = small_config(masks=True)
    classes = ClassMap(("cat", "sky", "road"), (1, 2, 4), stuff=(1, 2))
    weights = Weights(build(config, 3).state_dict(), config, classes, "x")
    write_hub(tmp_path, weights, Config())
    read = read_weights(tmp_path)
    assert (read.class_map.names, read.class_map.stuff) == (classes.names, (1, 2))
    assert equal_states(read.state, weights.state)


def test_masks_start_anew_on_weights_of_boxes(tmp_path: Path):
    boxes, masks = (build(small_config(masks=masks), 3) for masks in (False, True))
    classes = ClassMap(("a", "b", "c"), (0, 1, 2))
    report = transfer(masks, Weights(boxes.state_dict(), small_config(), classes, "boxes"), classes)
    assert {name.partition(".")[0] for name in report.missing} == {"mask_head", "bbox_attention"}
    assert not report.replaced
    assert not report.left_over
    assert "mask_head" in "\n".join(report.lines())


def test_a_file_of_the_published_training_script_with_its_arguments_is_read(tmp_path: Path):
    model = build(small_config())
    arguments = argparse.Namespace(lr=1e-4, masks=False, output_dir="x")
    payload: dict[str, Any] = {"model": model.state_dict(), "optimizer": {}, "epoch": 3, "args": arguments}
    torch.save(payload, tmp_path / "checkpoint.pth")
    assert equal_states(read_weights(tmp_path / "checkpoint.pth").state, model.state_dict())


def test_official_slots_become_the_80_classes_of_coco():
    classes = coco_class_map()
    assert len(classes) == 80
    assert classes.num_labels == 91
    assert classes.logit_index == classes.category_ids == COCO_CATEGORY_IDS
    assert (classes.names[0], classes.category_ids[0]) == ("person", 1)
    assert (classes.names[-1], classes.category_ids[-1]) == ("toothbrush", 90)


def test_names_of_a_hub_config_become_the_classes(tmp_path: Path):
    config = small_config()
    classes = ClassMap(("cat", "dog"), (0, 2), logit_index=(0, 2), num_labels=3)
    write_hub(tmp_path, Weights(build(config, 3).state_dict(), config, classes, "x"), Config())
    assert json.loads((tmp_path / "config.json").read_text())["id2label"] == {"0": "cat", "1": "N/A", "2": "dog"}
    assert read_weights(tmp_path).class_map == classes


def test_export_for_transformers_replaces_no_file_of_the_user(tmp_path: Path):
    config = small_config()
    weights = Weights(build(config, 3).state_dict(), config, ClassMap(("a", "b", "c"), (0, 1, 2)), "x")
    write_hub(tmp_path / "model", weights, Config())
    assert {path.name for path in (tmp_path / "model").glob("[!.]*")} == set(HUB_FILES)
    for name in HUB_FILES:
        out = tmp_path / f"out {name}"
        out.mkdir()
        (out / name).write_bytes(b"precious")
        with pytest.raises(UsageError, match=name):
            export(tmp_path / "model", out, layout="hub")
        assert [path.read_bytes() for path in out.iterdir()] == [b"precious"]


@pytest.mark.parametrize("name", ["detr-r50-dc5-f0fb7ef5.pth", pytest.param("x.pth", marks=pytest.mark.slow)])
def test_only_the_name_or_the_caller_tells_dc5(tmp_path: Path, detr_r50: Detr, name: str):
    write_published(tmp_path / name, detr_r50.state_dict())
    assert read_weights(tmp_path / name).config.dilation == ("dc5" in name)
    told = read_weights(tmp_path / name, preset_config("detr-r50-dc5").model).config
    assert (told.dilation, told.preset, told.backbone_norm) == (True, "detr-r50-dc5", "frozen")
    with pytest.raises(WeightsError, match="backbone resnet50, but detr-r101 has resnet101"):
        read_weights(tmp_path / name, preset_config("detr-r101").model)


def test_names_of_transformers_own_resnet_are_read():
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

    backbone = ResNetConfig(
        out_features=["stage4"], depths=[2, 2, 2, 2], layer_type="basic", hidden_sizes=[64, 128, 256, 512]
    )
    theirs = DetrForObjectDetection(
        DetrConfig(
            backbone_config=backbone,
            d_model=32,
            encoder_layers=1,
            decoder_layers=2,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            num_queries=10,
            num_labels=91,
        )
    ).eval()
    state = hub_to_published(theirs.state_dict())
    ours = build(small_config(padding="published"))
    load_exactly(ours, Weights(state, small_config(), coco_class_map(), "x"))
    images = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs(images)
        got = ours(images)
    torch.testing.assert_close(got.logits[-1], expected.logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(got.boxes_cxcywh[-1], expected.pred_boxes, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"backbone": "nano", "backbone_norm": "batch", "frozen_stages": 0}, "the backbone nano"),
        ({"position_at_input": True, "query_reference": True}, "model.position_at_input, model.query_reference"),
        ({"pre_norm": True}, "model.pre_norm"),
        ({"backbone_norm": "group", "frozen_stages": 0}, "group norm in its backbone"),
    ],
)
def test_what_transformers_lacks_is_not_written_for_it(tmp_path: Path, changes: dict[str, object], named: str):
    config = small_config(**changes)
    weights = Weights(build(config).state_dict(), config, coco_class_map(), "x")
    with pytest.raises(WeightsError, match=rf"this model has .*{named}.*, which transformers' DETR does not have"):
        write_hub(tmp_path / "hub", weights, Config())
    assert not (tmp_path / "hub").exists()


def test_transformers_opens_what_we_write_and_gives_the_same(tmp_path: Path):
    from transformers import DetrForObjectDetection

    config = small_config(padding="published")
    ours = build(config)
    write_hub(tmp_path, Weights(ours.state_dict(), config, coco_class_map(), "x"), Config())
    theirs = DetrForObjectDetection.from_pretrained(tmp_path).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    assert equal_states(read_weights(tmp_path / "theirs").state, ours.state_dict())
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(images).logits[-1], theirs(images).logits, atol=1e-4, rtol=0)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("evil-was-run"),))


def test_a_pickle_that_would_run_code_is_refused_unopened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError, match=r"evil\.pth is refused"):
        read_weights(tmp_path / "evil.pth")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(WeightsError):
        read_weights(tmp_path / "raw.pth")
    assert not (tmp_path / "evil-was-run").exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_cut_off_file_is_called_damaged(tmp_path: Path, suffix: str):
    model = build(small_config())
    if suffix == ".pth":
        write_published(tmp_path / "x.pth", model.state_dict())
        whole = tmp_path / "x.pth"
    else:
        write_hub(tmp_path / "hub", Weights(model.state_dict(), small_config(), coco_class_map(), "x"), Config())
        whole = tmp_path / "hub" / "model.safetensors"
    cut = tmp_path / f"cut{suffix}"
    cut.write_bytes(whole.read_bytes()[:100_000])
    with pytest.raises(WeightsError, match=r"cut\..* (damaged|refused)"):
        read_weights(cut)


def test_files_of_other_models_are_refused_by_name(tmp_path: Path):
    for content, message in (
        ({"fc.weight": torch.zeros(2)}, "is not a DETR checkpoint"),
        ([1, 2], "holds no state dict"),
        ({"model": {"detr.query_embed.weight": torch.zeros(2), "mask_head.a": torch.zeros(2)}}, "is not a DETR"),
    ):
        torch.save(content, tmp_path / "other.pth")
        with pytest.raises(WeightsError, match=message):
            read_weights(tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="no weights file"):
        read_weights(tmp_path / "nowhere.pth")


def test_loading_exactly_names_what_does_not_fit():
    config = small_config()
    state = build(config).state_dict()
    del state["query_embed.weight"]
    state["surprise"] = torch.zeros(1)
    with pytest.raises(WeightsError, match=r"missing query_embed.weight; unknown surprise"):
        load_exactly(build(config), Weights(state, config, coco_class_map(), "x"))


def test_classes_that_share_a_name_carry_their_rows_over():
    config = small_config()
    old = build(config, 91, seed=1)
    classes = ClassMap(("zebra", "unicorn", "Person"), (5, 6, 9))
    new = build(config, 3, seed=2)
    before = new.class_embed.weight[1].clone()
    report = transfer(new, Weights(old.state_dict(), config, coco_class_map(), "old.pth"), classes)
    assert torch.equal(new.class_embed.weight[0], old.class_embed.weight[24])  # zebra is COCO's 24
    assert torch.equal(new.class_embed.weight[2], old.class_embed.weight[1])
    assert torch.equal(new.class_embed.weight[3], old.class_embed.weight[91])  # no-object
    assert torch.equal(new.class_embed.weight[1], before)
    assert (report.carried, report.new_classes) == (("zebra", "Person"), ("unicorn",))
    assert set(report.replaced) == {"class_embed.weight", "class_embed.bias"}
    assert len(report.loaded) == len(old.state_dict()) - 2
    assert "unicorn" in "\n".join(report.lines())


def test_the_same_classes_keep_the_published_head_whole():
    config = small_config()
    old = build(config, 91, seed=1)
    data = ClassMap(tuple(reversed(coco_class_map().names)), tuple(range(80)))
    classes = match_logit_index(data, coco_class_map())
    assert classes.num_labels == 91
    assert classes.logit_index[0] == 90  # toothbrush, first here
    assert classes.category_ids == data.category_ids
    new = build(config, 91, seed=2)
    report = transfer(new, Weights(old.state_dict(), config, coco_class_map(), "old.pth"), classes)
    assert report.complete
    assert equal_states(new.state_dict(), old.state_dict())


def test_what_is_left_over_and_missing_is_reported():
    deep, shallow = small_config(decoder_layers=3), small_config(decoder_layers=2, num_queries=12)
    weights = Weights(build(deep).state_dict(), deep, coco_class_map(), "deep.pth")
    report = transfer(build(shallow, seed=2), weights, coco_class_map())
    assert all("decoder.layers.2." in name for name in report.left_over)
    assert report.left_over
    assert "query_embed.weight" in report.replaced
    back = transfer(
        build(deep, seed=2), Weights(build(shallow).state_dict(), shallow, coco_class_map(), "s"), coco_class_map()
    )
    assert all("decoder.layers.2." in name for name in back.missing)
    assert not report.complete


def test_r101_from_r50_first_computes_what_the_r50_did(detr_r50: Detr):
    config = preset_config("detr-r101").model.model_copy(update={"backbone_norm": "frozen", "frozen_stages": 2})
    torch.manual_seed(5)
    deeper = build_detr(config, 91).eval()
    r50 = preset_config("detr-r50").model
    report = transfer(deeper, Weights(detr_r50.state_dict(), r50, coco_class_map(), "r50.pth"), coco_class_map())
    assert len(report.loaded) == 458
    assert len(report.missing) == 713 - 458
    assert not report.left_over
    assert report.notes == ("17 backbone blocks are new and start as the identity",)
    images = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(deeper(images).logits, detr_r50(images).logits, rtol=1e-4, atol=1e-4)
    new_block = deeper.backbone[0].body.layer3[10]
    deeper(images).logits.sum().backward()
    assert new_block.conv3.weight.grad.abs().sum() > 0  # an identity that can learn


def test_every_family_has_a_config_section_and_the_other_way_round():
    assert FAMILIES.keys() == MODEL_CONFIGS.keys()
