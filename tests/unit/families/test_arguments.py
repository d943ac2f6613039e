"""Files of the authors' training script: ``args`` beside the tensors make the model that they describe."""

from __future__ import annotations

import argparse
import logging
import os
import pathlib
import pickle
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import detrkit
from detrkit.classes import ClassMap, take_names
from detrkit.config import Config, update_config
from detrkit.errors import DataError, DetrkitError, WeightsError
from detrkit.families.build import build_model, load_model, read_weights
from detrkit.families.detr.export import write_published
from tests.parity.conftest import randomize
from tests.unit.families.conftest import build, small_config

VARIANTS: list[dict[str, Any]] = [
    {},
    {"backbone": "resnet34"},
    {"backbone": "resnet50", "dilation": True},
    {"num_heads": 1},
    {"num_heads": 2, "position": "learned"},
    {"hidden_dim": 48, "num_heads": 8},
    {"position": "learned", "pre_norm": True},
    {"pre_norm": True, "num_heads": 8, "dropout": 0.0},
    {"num_queries": 23, "num_heads": 16},
    {"encoder_layers": 3, "decoder_layers": 1},
    {"ffn_dim": 96, "num_heads": 2},
    {"backbone": "resnet50", "dilation": True, "num_heads": 2, "pre_norm": True, "position": "learned"},
]


def write(path: Path, changes: dict[str, Any], num_labels: int = 20, **sections: Any) -> tuple[Any, Config]:
    """Write a file of the training script with random weights; its model and config."""
    config = update_config(Config(), {"model": small_config(**changes).model_dump(), **sections})
    model = build(config.model, num_labels)
    write_published(path, model.state_dict(), config)
    return model, config


def rewrite(path: Path, **arguments: Any) -> None:
    """Change arguments of a file; what is None goes."""
    content = torch.load(path, weights_only=True)
    content["args"] |= arguments
    content["args"] = argparse.Namespace(
        **{name: value for name, value in content["args"].items() if value is not None}
    )
    torch.save(content, path)


# the others change sizes alone
@pytest.mark.parametrize(
    "changes",
    [*VARIANTS[:7], *(pytest.param(some, marks=pytest.mark.slow) for some in VARIANTS[7:-1]), VARIANTS[-1]],
)
def test_the_file_alone_gives_the_model_that_its_args_describe(tmp_path: Path, changes: dict[str, Any]):
    model, config = write(tmp_path / "checkpoint.pth", changes)
    loaded = load_model(tmp_path / "checkpoint.pth")
    images = torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(2, 96, 128, dtype=torch.bool)
    mask[1, 64:] = mask[1, :, 100:] = True
    with torch.no_grad():
        got, expected = loaded.model.eval()(images * ~mask[:, None], mask), model(images * ~mask[:, None], mask)
    assert torch.equal(got.logits, expected.logits)
    assert torch.equal(got.boxes_cxcywh, expected.boxes_cxcywh)
    assert loaded.config.model.model_copy(update={"preset": "", "padding": "exact"}) == config.model.model_copy(
        update={"preset": ""}
    )


def test_a_file_of_the_script_itself_is_read_by_its_own_argument_names(tmp_path: Path):
    model = build(small_config(num_heads=2, dropout=0.3))
    arguments = argparse.Namespace(
        lr=1e-4, backbone="resnet18", dilation=False, position_embedding="v2", enc_layers=1, dec_layers=2,
        dim_feedforward=64, hidden_dim=32, dropout=0.3, nheads=2, num_queries=10, pre_norm=False, masks=False,
        aux_loss=False, dataset_file="coco", frozen_weights=None, device="cuda",
        output_dir=pathlib.PosixPath("/checkpoint/me/experiments"), job_dir=pathlib.PurePosixPath("/j"),
    )  # fmt: skip
    torch.save({"model": model.state_dict(), "optimizer": {}, "epoch": 3, "args": arguments}, tmp_path / "c.pth")
    weights, config = read_weights(tmp_path / "c.pth")
    assert (config.model.num_heads, config.model.dropout, config.model.position) == (2, 0.3, "sine")
    assert not config.loss.aux
    assert not weights.notes


class Calls:
    """Pickled as a call; whoever opens the file carelessly makes it."""

    def __init__(self, function: Any, *arguments: Any):
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


SUBMITIT = {
    "nheads": 2, "dist_url": "file:///checkpoint/me/1a2b_init", "gpu": 0, "rank": 0, "world_size": 8,
    "timeout": 60, "partition": "learnfair", "comment": "", "distributed": True, "ngpus": 8, "nodes": 1,
}  # fmt: skip


@pytest.mark.parametrize("zipped", [True, False])
def test_paths_in_args_of_any_system_are_read(tmp_path: Path, zipped: bool):
    _, config = write(tmp_path / "c.pth", {"num_heads": 2})
    content = torch.load(tmp_path / "c.pth", weights_only=True)
    content["args"] = argparse.Namespace(
        **{**content["args"], **SUBMITIT},
        output_dir=pathlib.PosixPath("/checkpoint/me/experiments/123"),
        job_dir=Calls(pathlib.WindowsPath, "C:\\", "runs", "%j"),  # as Windows pickles it; cannot be made here
    )
    torch.save(content, tmp_path / "c.pth", _use_new_zipfile_serialization=zipped)
    assert b"WindowsPath" in (tmp_path / "c.pth").read_bytes()
    assert load_model(tmp_path / "c.pth").config.model == config.model.model_copy(update={"padding": "exact"})


@pytest.mark.parametrize("layout", ["zip", "old", "raw", "raw 0"])
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("system", (os.system, "touch ran")),
        ("eval", (eval, "open('ran', 'w')")),
        ("getattr", (getattr, Calls(__import__, "os"), "system")),
        ("Popen", (subprocess.Popen, ["touch", "ran"])),
        ("system", (pathlib.PosixPath, Calls(os.system, "touch ran"))),
        ("load", (torch.load, "ran")),
        ("numpy", (np.float64(2.5).__reduce__()[0], np.dtype("f8"), b"12345678")),
        ("Linear", (torch.nn.Linear, 2, 2)),
    ],
)
def test_what_could_run_code_is_named_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, call: tuple[Any, ...], layout: str
):
    monkeypatch.chdir(tmp_path)
    content = {"model": {"a": torch.zeros(2)}, "args": argparse.Namespace(nheads=8, job_dir=Calls(*call))}
    if "raw" in layout:
        Path("c.pth").write_bytes(pickle.dumps(content["args"].job_dir, protocol=0 if "0" in layout else 4))
    else:
        torch.save(content, "c.pth", _use_new_zipfile_serialization=layout == "zip")
    with pytest.raises(WeightsError) as caught:
        read_weights("c.pth")
    assert re.search(rf"it holds [\w.]*{name}\b", str(caught.value))
    assert not re.search("weights_only|safe_globals|trust", str(caught.value))
    assert "\n" not in str(caught.value)
    assert not Path("ran").exists()


def test_what_detrkit_adds_to_a_model_comes_back_too(tmp_path: Path):
    changes = {
        "backbone": "tiny", "backbone_norm": "group", "frozen_stages": 0, "query_init": "grid",
        "activation": "silu", "position_temperature": 20.0, "position_at_input": True,
        "query_reference": True, "preset": "detr-tiny",
    }  # fmt: skip
    transforms = {"eval_size": 96, "max_size": 160, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.3)}
    _, config = write(tmp_path / "c.pth", changes, transforms=transforms)
    read = load_model(tmp_path / "c.pth").config
    assert read.model == config.model
    assert {name: getattr(read.transforms, name) for name in transforms} == transforms


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"hidden_dim": 64}, ("hidden_dim 64", "hidden_dim 32")),
        ({"enc_layers": 6}, ("enc_layers 6", "encoder_layers 1")),
        ({"dec_layers": 6}, ("dec_layers 6", "decoder_layers 2")),
        ({"dim_feedforward": 2048}, ("dim_feedforward 2048", "ffn_dim 64")),
        ({"num_queries": 100}, ("num_queries 100", "num_queries 10")),
        ({"pre_norm": True}, ("pre_norm True", "pre_norm False")),
        ({"position_embedding": "learned"}, ("position_embedding 'learned'", "position 'sine'")),
        ({"backbone": "resnext50_32x4d"}, ("backbone 'resnext50_32x4d'", "backbone 'resnet18'")),
        ({"num_classes": 91}, ("91 classes", "20")),
        ({"nheads": 5}, ("num_heads 5", "hidden_dim 32")),
        ({"nheads": "many"}, ("num_heads is 'many'",)),
        ({"dilation": True}, ("dilation", "resnet18")),
        ({"masks": True}, ("args says masks True", "masks False")),
        ({"model.activation": "glu"}, ("activation", "glu")),
    ],
)
def test_args_that_contradict_the_tensors_or_cannot_be_honoured_are_named(
    tmp_path: Path, arguments: dict[str, Any], told: tuple[str, ...]
):
    write(tmp_path / "c.pth", {})
    rewrite(tmp_path / "c.pth", **arguments)
    with pytest.raises(WeightsError) as caught:
        load_model(tmp_path / "c.pth")
    for fact in ("c.pth", *told):
        assert fact in str(caught.value)


def test_what_nothing_tells_is_assumed_aloud_and_can_be_said(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    model = build(small_config(num_heads=4), 3)
    write_published(tmp_path / "c.pth", model.state_dict())
    with caplog.at_level(logging.WARNING):
        assumed = load_model(tmp_path / "c.pth")
    assert assumed.config.model.num_heads == 1
    for fact in ("num_heads 1, dilation False", "--as num_heads=VALUE,dilation=VALUE", "class_0"):
        assert fact in caplog.text
    caplog.clear()
    told = load_model(tmp_path / "c.pth", "num_heads=4,dilation=false", classes=_names(tmp_path, "a", "b", "c"))
    assert not caplog.text
    assert told.class_map.names == ("a", "b", "c")
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(told.model.eval()(images).logits, model(images).logits)


def _names(folder: Path, *names: str) -> Path:
    (folder / "names.txt").write_text("\n".join(names))
    return folder / "names.txt"


def test_a_word_of_the_caller_goes_over_args_and_a_preset_that_contradicts_them_is_an_error(tmp_path: Path):
    write(tmp_path / "c.pth", {"backbone": "resnet50", "dilation": True})
    assert not load_model(tmp_path / "c.pth", "dilation=false").config.model.dilation
    with pytest.raises(DetrkitError, match="nheads"):
        load_model(tmp_path / "c.pth", "nheads=3")
    with pytest.raises(DetrkitError, match="hidden_dim 32, but detr-r50 has 256"):
        load_model(tmp_path / "c.pth", "detr-r50")


@pytest.mark.parametrize("dataset", [None, "coco", "mine"])
def test_no_trained_label_of_a_head_with_91_rows_is_impossible(tmp_path: Path, dataset: str | None):
    config = update_config(Config(), {"model": small_config().model_dump()})
    model = build(config.model, 91)
    with torch.no_grad():
        model.class_embed.weight.zero_()
        model.class_embed.bias.zero_()[12] = 9.0
    write_published(tmp_path / "c.pth", model.state_dict(), config)
    rewrite(tmp_path / "c.pth", dataset_file=dataset)
    detector = detrkit.load(tmp_path / "c.pth", device="cpu")
    found = detector.predict(np.zeros((8, 64, 3), dtype=np.uint8))
    assert set(found.data["class_name"]) == {"class_12"}
    assert detector.class_map.logit_index == tuple(range(91))
    assert detector.class_map.names[1] == ("class_1" if dataset == "mine" else "person")
    assert ("as COCO's" in detector.class_map.guessed) == (dataset != "mine")


def test_the_name_of_a_published_file_alone_takes_no_class_away(tmp_path: Path):
    write_published(tmp_path / "detr-r50-e632da11.pth", build(small_config(), 91).state_dict())
    classes = read_weights(tmp_path / "detr-r50-e632da11.pth")[0].class_map
    assert classes.logit_index == tuple(range(91))
    assert [classes.names[row] for row in (0, 1, 12, 26, 90)] == [
        *("class_0", "person", "class_12", "class_26", "toothbrush")
    ]
    assert "as many as COCO's" in classes.guessed


@pytest.mark.parametrize(
    ("categories", "names"),
    [
        ({1: "person", 3: "car"}, {1: "person", 3: "car", 12: "class_12", 90: "toothbrush"}),
        ({1: "tank", 12: "jeep"}, {1: "tank", 12: "jeep", 3: "class_3"}),
        ({1: "person", 2: "car"}, None),
        ({0: "tank", 1: "bird"}, None),
        ({400: "tank"}, {1: "person"}),
    ],
)
def test_guessed_names_give_way_to_the_datas(
    tmp_path: Path, categories: dict[int, str], names: dict[int, str] | None
):
    write_published(tmp_path / "c.pth", build(small_config(), 91).state_dict())
    guessed = load_model(tmp_path / "c.pth").class_map
    data = ClassMap(tuple(categories.values()), tuple(categories))
    if names is None:  # by name and by id they are different rows: only a person knows
        with pytest.raises(DataError, match="classes=coco"):
            take_names(guessed, data)
        return
    taken = take_names(guessed, data)
    assert {number: taken.names[number] for number in names} == names
    assert taken.logit_index == guessed.logit_index


def test_fine_tuning_takes_the_rows_of_its_own_ids_from_a_head_without_names(tmp_path: Path):
    from detrkit.families.build import prepare_model

    model, config = write(tmp_path / "c.pth", {}, num_labels=13)
    config = update_config(config, {"train.init": str(tmp_path / "c.pth")})
    built = prepare_model(config, ClassMap(("jeep", "tank"), (12, 4)))
    assert built.report is not None
    assert built.report.carried == ("jeep", "tank")
    assert torch.equal(built.model.class_embed.weight[0], model.class_embed.weight[12])
    assert "category id" in "\n".join(built.report.lines())


def test_build_model_knows_each_activation(tmp_path: Path):
    outputs = []
    for activation in ("relu", "gelu", "gelu_tanh", "silu", "mish", "relu6", "leaky_relu", "tanh"):
        torch.manual_seed(0)
        config = update_config(Config(), {"model": small_config(activation=activation).model_dump()})
        model = build_model(config, ClassMap(("a",), (1,))).model.eval()
        randomize(model)
        with torch.no_grad():
            outputs.append(model(torch.ones(1, 3, 64, 64)).logits)
    assert (
        len({tuple(output.flatten().tolist()) for output in outputs}) == len(outputs) - 1
    )  # relu6 is relu so low
