"""Checkpoints as people have them: the same model as transformers makes of the tensors, or refused by name."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from detrkit.classes import ClassMap
from detrkit.config import Config, update_config
from detrkit.errors import WeightsError
from detrkit.families.build import load_model, prepare_model, read_weights
from detrkit.families.detr.layouts import hub_to_published
from tests.unit.families.conftest import build, small_config
from tests.unit.families.test_hub import save_theirs

State = dict[str, Tensor]
SAID = "num_heads=4,dilation=false,activation=relu,norm_between=false"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, State]:
    """A small DETR of transformers, and its tensors by the names of its files."""
    from safetensors.torch import load_file

    folder = tmp_path_factory.mktemp("hub")
    theirs = save_theirs(folder, {}, {})
    return theirs, load_file(folder / "model.safetensors")


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def cast(state: State, dtype: torch.dtype) -> State:
    return {name: tensor.to(dtype) for name, tensor in state.items()}


SAME: dict[str, tuple[Callable[[State], Any], str]] = {
    "state dict alone": (lambda s: s, ""),
    "of DDP": (lambda s: {"model": prefixed(s, "module.")}, ""),
    "of DDP and torch.compile": (lambda s: {"model": prefixed(s, "_orig_mod.module.")}, ""),
    "of Lightning, with its criterion": (
        lambda s: {"state_dict": {**prefixed(s, "model."), "criterion.empty_weight": torch.ones(6)}, "epoch": 3},
        "criterion.empty_weight",
    ),
    "averages beside": (lambda s: {"model": s, "model_ema": cast(s, torch.float16)}, "under model_ema"),
    "averages alone": (lambda s: {"ema": {"module": s, "updates": 7}}, "under ema"),
    "in double precision": (lambda s: {"model_state_dict": cast(s, torch.float64)}, ""),
    "with an optimizer": (
        lambda s: {"model": s, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{}]}},
        "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("layout", ["published", pytest.param("hub", marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", SAME)
def test_what_wraps_the_tensors_changes_no_model(tmp_path: Path, hub: Any, case: str, layout: str):
    theirs, state = hub
    make, said = SAME[case]
    torch.save(make(state if layout == "hub" else hub_to_published(state)), tmp_path / "c.pth")
    assert_theirs(tmp_path / "c.pth", theirs)
    assert said in " ".join(read_weights(tmp_path / "c.pth", SAID)[0].notes)


def assert_theirs(source: Path, theirs: Any) -> None:
    """Compare a file's model with transformers' on random images."""
    images = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        got, expected = load_model(source, SAID).model.eval()(images), theirs(images)
    assert expected.logits.std() > 0.1
    torch.testing.assert_close(got.logits[-1], expected.logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(got.boxes_cxcywh[-1], expected.pred_boxes, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_tensors_of_half_precision_keep_their_values(tmp_path: Path, hub: Any, dtype: torch.dtype):
    _, state = hub
    torch.save(cast(hub_to_published(state), dtype), tmp_path / "c.pth")
    loaded = load_model(tmp_path / "c.pth", SAID).model.state_dict()
    for name, tensor in hub_to_published(state).items():
        assert torch.equal(loaded[name], tensor.to(dtype).float())


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "mine.safetensors"])
def test_tensors_of_the_hub_without_a_config_say_what_is_assumed(tmp_path: Path, hub: Any, name: str):
    theirs, state = hub
    (torch.save if name.endswith("bin") else save_file)(state, tmp_path / name)
    assert_theirs(tmp_path / name, theirs)
    notes = " ".join(read_weights(tmp_path / name)[0].notes)
    for fact in ("num_heads 1", "dilation False", "activation relu", "norm_between False"):
        assert fact in notes


def test_a_folder_of_older_versions_is_read(tmp_path: Path, hub: Any):
    theirs, state = hub
    save_theirs(tmp_path, {}, {})
    (tmp_path / "model.safetensors").unlink()
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert_theirs(tmp_path, theirs)


def test_heads_of_both_halves_by_their_defaults_and_other_names(tmp_path: Path):
    import json

    save_theirs(tmp_path, {}, {})
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    del config["decoder_attention_heads"]
    path.write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=r"encoder_attention_heads is 4.*8"):
        read_weights(tmp_path)
    config["num_attention_heads"] = 8  # transformers' other name goes over its own
    path.write_text(json.dumps(config))
    assert read_weights(tmp_path)[1].model.num_heads == 8


def without(state: State, part: str) -> State:
    return {name: tensor for name, tensor in state.items() if part not in name}


def changed(state: State, name: str, tensor: Tensor) -> State:
    return {**state, name: tensor}


ONE = torch.ones(1)
QUERIES = "query_embed.weight"
REFUSED: dict[str, tuple[Callable[[State], Any], str]] = {
    "optimizer alone": (lambda s: {"optimizer": {"state": {}, "lr": 1.0}, "epoch": 3}, "optimizer, epoch"),
    "two models": (lambda s: {"student": s, "teacher": s}, "student, teacher"),
    "two models in one": (lambda s: {**prefixed(s, "model."), **prefixed(s, "ema.")}, "ema., model."),
    "checkpoint of detrkit saved anew": (lambda s: {"format": "detrkit-checkpoint", "model": s}, "hash"),
    "no decoder": (lambda s: without(s, "transformer.decoder"), "decoder.layers.0"),
    "an encoder layer lost in part": (lambda s: without(s, "encoder.layers.0.linear1"), "linear1.bias is missing"),
    "a backbone block lost": (lambda s: without(s, "layer3.1.bn2"), "layer3.1.bn2.bias is missing"),
    "no box head": (lambda s: without(s, "bbox_embed"), "bbox_embed.layers.0.bias is missing"),
    "no biases of the head": (lambda s: without(s, "class_embed.bias"), "class_embed.bias is missing"),
    "no class head": (lambda s: without(s, "class_embed"), "missing class_embed"),
    "a head of no class": (
        lambda s: {**s, "class_embed.weight": torch.ones(1, 32), "class_embed.bias": ONE}, "class_embed.weight"),
    "a tensor more": (lambda s: changed(s, "patch2query.weight", ONE), "patch2query.weight is unknown"),
    "a tensor of another shape": (
        lambda s: changed(s, "input_proj.bias", ONE), r"input_proj.bias is \(1,\), expected \(32,\)"),
    "odd width": (lambda s: changed(s, QUERIES, torch.ones(10, 30)), "hidden_dim is 30"),
    "queries without width": (lambda s: changed(s, QUERIES, torch.ones(10)), QUERIES),
    "not a number": (lambda s: changed(s, "input_proj.bias", torch.full((32,), torch.nan)), "proj.bias.*NaN"),
    "whole numbers": (lambda s: changed(s, QUERIES, torch.ones(10, 32, dtype=torch.int8)), "torch.int8"),
    "eighths": (lambda s: changed(s, QUERIES, torch.ones(10, 32).to(torch.float8_e4m3fn)), "float8"),
    "sparse": (lambda s: changed(s, QUERIES, torch.ones(10, 32).to_sparse()), "plain numbers"),
    "stretched": (lambda s: changed(s, QUERIES, torch.ones(1, 1).expand(10**7, 10**7)), "plain numbers"),
    "Deformable DETR": (lambda s: changed(s, "transformer.encoder.layers.0.self_attn.sampling_offsets.bias", ONE),
                        "Deformable DETR"),
    "DINO": (lambda s: changed(s, "transformer.decoder.layers.0.cross_attn.sampling_offsets.bias", ONE), "DINO"),
    "DAB-DETR": (lambda s: {**without(s, "query_embed"), "refpoint_embed.weight": torch.ones(10, 4)}, "DAB-DETR"),
    "Conditional DETR": (
        lambda s: changed(s, "transformer.decoder.layers.0.ca_qcontent_proj.bias", ONE), "Conditional DETR"),
    "RT-DETR": (lambda s: {"ema": {"module": {"decoder.denoising_class_embed.weight": torch.ones(81, 256)}}},
                "RT-DETR"),
    "panoptic": (lambda s: {**prefixed(s, "detr."), "mask_head.lay1.weight": ONE}, "bbox_attention"),
    "masks in args": (lambda s: {"model": s, "args": {"masks": True}}, "args says masks True"),
    "args of another kind": (lambda s: {"model": s, "args": ["--nheads", "8"]}, "args of type list"),
    "args of a fork that counts otherwise": (lambda s: {"model": s, "args": {"num_classes": 91}}, "91 classes.*5"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_whole_detr_is_refused_in_one_line_that_names_it(tmp_path: Path, hub: Any, case: str):
    make, named = REFUSED[case]
    torch.save(make(hub_to_published(hub[1])), tmp_path / "c.pth")
    assert_refused(tmp_path / "c.pth", named)


def assert_refused(path: Path, named: str) -> None:
    with pytest.raises(WeightsError, match=named) as caught:
        load_model(path)
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_checkpoints_are_refused_in_one_line(tmp_path: Path, hub: Any):
    _, state = hub
    torch.save(state, tmp_path / "whole.pth")
    data = (tmp_path / "whole.pth").read_bytes()
    for size in (0, 1, 100, len(data) // 2, len(data) - 1):
        (tmp_path / "cut.pth").write_bytes(data[:size])
        assert_refused(tmp_path / "cut.pth", "damaged")
    with zipfile.ZipFile(tmp_path / "pictures.pth", "w") as archive:
        archive.writestr("cat.jpg", b"picture")
    assert_refused(tmp_path / "pictures.pth", "damaged or not a PyTorch file")
    save_file(state, tmp_path / "tensors.pth")  # of the wrong name
    assert_refused(tmp_path / "tensors.pth", "damaged")
    torch.save(state, tmp_path / "pickle.safetensors")
    assert_refused(tmp_path / "pickle.safetensors", "not a safetensors file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch means to do without TorchScript
        script = torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(2))  # type: ignore[no-untyped-call]
        torch.jit.save(script, tmp_path / "script.pth")  # type: ignore[no-untyped-call]
    assert_refused(tmp_path / "script.pth", "TorchScript")
    torch.save({"model": torch.nn.Linear(2, 2)}, tmp_path / "module.pth")
    assert_refused(tmp_path / "module.pth", "Linear")
    torch.save({"a": torch.ones(1)}, tmp_path / "protocol.pth", pickle_protocol=4)
    assert_refused(tmp_path / "protocol.pth", "protocol 4")


def test_a_head_counted_by_one_more_or_less_is_said(tmp_path: Path, hub: Any):
    for counted in (4, 6):
        torch.save({"model": hub_to_published(hub[1]), "args": {"num_classes": counted}}, tmp_path / "c.pth")
        weights, _ = read_weights(tmp_path / "c.pth")
        assert f"args says {counted} classes; the head has 5" in " ".join(weights.notes)
        assert len(weights.class_map) == 5


def test_weights_without_a_class_head_begin_a_training(tmp_path: Path, hub: Any):
    state = hub_to_published(hub[1])
    torch.save({"model": without(state, "class_embed")}, tmp_path / "no-class-head.pth")
    changes = {"model": small_config().model_dump(), "train.init": str(tmp_path / "no-class-head.pth")}
    built = prepare_model(update_config(Config(), changes), ClassMap(("cat", "dog"), (1, 2)))
    assert built.report is not None
    assert built.report.missing == ("class_embed.weight", "class_embed.bias")
    assert built.report.new_classes == ("cat", "dog")
    assert torch.equal(built.model.query_embed.weight, state["query_embed.weight"])


def test_a_training_normalises_as_its_starting_weights_do(tmp_path: Path):
    pixels = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.3, 0.25, 0.2]}
    save_theirs(tmp_path, {}, {**pixels, "size": {"shortest_edge": 96, "longest_edge": 150}})
    base = update_config(Config(), {"model": small_config().model_dump(), "train.init": str(tmp_path)})
    built = prepare_model(base, ClassMap(("cat",), (1,)))
    assert built.report is not None
    said = "\n".join(built.report.lines())
    assert (built.config.transforms.mean, built.config.transforms.std) == ((0.5, 0.4, 0.3), (0.3, 0.25, 0.2))
    for fact in (
        "transforms.mean is [0.5,0.4,0.3]",
        "--set transforms.eval_size=96",
        "--set transforms.max_size=150",
    ):
        assert fact in said
    # what a person has chosen stays, and is said
    chosen = update_config(base, {"transforms.mean": (0.1, 0.1, 0.1), "transforms.eval_size": 128})
    kept = prepare_model(chosen, ClassMap(("cat",), (1,)))
    assert kept.report is not None
    assert kept.config.transforms.mean == (0.1, 0.1, 0.1)
    said = "\n".join(kept.report.lines())
    assert "WARNING: the weights were trained with transforms.mean [0.5,0.4,0.3]" in said
    assert "eval_size" not in said


def test_a_run_of_the_same_preset_begins_a_training_without_a_word_on_pixels(tmp_path: Path):
    config = update_config(Config(), {"model": small_config().model_dump()})
    from detrkit.families.detr.export import write_published

    write_published(tmp_path / "c.pth", build(small_config(), 5).state_dict(), config)
    built = prepare_model(update_config(config, {"train.init": str(tmp_path / "c.pth")}), ClassMap(("a",), (1,)))
    assert built.report is not None
    assert "transforms" not in "\n".join(built.report.lines())
