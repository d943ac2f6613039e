"""Folders of transformers: read and written with all that they say, refused where detrkit has no such thing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import detrkit
from detrkit.config import Config
from detrkit.errors import WeightsError
from detrkit.families.build import load_model, read_weights
from detrkit.families.detr.export import write_hub
from detrkit.families.weights import Weights
from tests.parity.conftest import randomize
from tests.unit.families.conftest import build, small_config

NAMES = ("cat", "dog", "owl", "cow", "hen")
SMALL: dict[str, Any] = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_queries": 10, "backbone": "resnet18",
}  # fmt: skip
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}

# What a model says and what its preprocessing says are two things: most folders have one of both.
FOLDERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gelu, sizes": ({"activation_function": "gelu"}, {"size": {"shortest_edge": 96, "longest_edge": 150}}),
    "gelu_new, pixels": (
        {"activation_function": "gelu_new", "dropout": 0.0},
        {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.3, 0.25, 0.2]},
    ),
    "silu, factor": (
        {"activation_function": "swish", "encoder_attention_heads": 2, "decoder_attention_heads": 2},
        {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3},
    ),
    "learned, plain": (
        {"position_embedding_type": "learned", "num_queries": 7},
        {"do_normalize": False, "do_pad": False},
    ),
    "auxiliary, bytes": ({"auxiliary_loss": True}, {"do_rescale": False, "image_mean": 120.0, "image_std": 60.0}),
    "dilated": ({"dilation": True, "backbone": "resnet50"}, {}),
    "own_resnet": ({"backbone_config": "basic"}, {}),
}


def save_theirs(folder: Path, model: dict[str, Any], processor: dict[str, Any], **how: Any) -> Any:
    """Save a folder as transformers does, random weights; the model."""
    from transformers import DetrConfig, DetrForObjectDetection, DetrImageProcessor, ResNetConfig

    torch.manual_seed(0)
    model = {**SMALL, "id2label": dict(enumerate(NAMES)), **model}
    if "backbone_config" in model:
        model["backbone_config"] = ResNetConfig(
            out_features=["stage4"], depths=[2, 2, 2, 2], layer_type="basic", hidden_sizes=[64, 128, 256, 512]
        )
    theirs = DetrForObjectDetection(DetrConfig(**model)).eval()
    randomize(theirs)
    with torch.no_grad():  # a new model of transformers hardly tells queries apart
        for name, parameter in theirs.named_parameters():
            if "backbone" not in name and parameter.dim() == 2:
                torch.nn.init.normal_(parameter, std=1.0 if "embed" in name else 0.4)
    theirs.save_pretrained(folder, **how)
    size = {"shortest_edge": 64, "longest_edge": 96}
    DetrImageProcessor(**{"size": size, **processor}).save_pretrained(folder)
    return theirs


def picture(folder: Path) -> Image.Image:
    """Return a picture with structure; 3:4, and larger than what the models see."""
    rows, columns = np.mgrid[0:150, 0:200]
    waves = [128 + 100 * np.sin(rows / (7 + step) + columns / (11 - step)) for step in range(3)]
    image = Image.fromarray(np.stack(waves, -1).astype(np.uint8))
    image.save(folder / "picture.png")
    return image


def assert_same(folder: Path, theirs: Any, image: Image.Image) -> None:
    """Compare end to end, each with its own preprocessing and reading out, on one picture."""
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(folder)
    with torch.no_grad():
        outputs = theirs(**processor(images=image, return_tensors="pt"))
    (expected,) = processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=[(150, 200)])
    found = detrkit.load(folder, device="cpu").predict(image, threshold=0.0)
    order = expected["scores"].argsort(descending=True, stable=True)
    assert np.allclose(found.confidence, expected["scores"][order].numpy(), atol=1e-4)
    assert np.ptp(found.confidence) > 1e-3
    assert np.allclose(found.xyxy, expected["boxes"][order].numpy(), atol=1e-4 * 200)
    assert list(found.data["class_name"]) == [NAMES[label] for label in expected["labels"][order]]


RARE = ("gelu, sizes", "gelu_new, pixels", "silu, factor", "auxiliary, bytes")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in RARE else name for name in FOLDERS]
)
def test_a_folder_gives_transformers_detections_and_comes_back_equal(tmp_path: Path, name: str):
    from transformers import DetrForObjectDetection

    theirs = save_theirs(tmp_path / "theirs", *FOLDERS[name], max_shard_size="20MB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").is_file()
    image = picture(tmp_path)
    assert_same(tmp_path / "theirs", theirs, image)
    # written again it is the same, for transformers and for detrkit
    detrkit.export(tmp_path / "theirs", tmp_path / "again", layout="hub")
    again, report = DetrForObjectDetection.from_pretrained(tmp_path / "again", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert_same(tmp_path / "again", again.eval(), image)
    (before, config), (after, config_again) = (read_weights(tmp_path / part) for part in ("theirs", "again"))
    assert config == config_again
    assert before.class_map == after.class_map
    assert all(torch.equal(tensor, after.state[key]) for key, tensor in before.state.items())
    # and as one file in the published layout
    detrkit.export(tmp_path / "again", tmp_path / "again.pth", layout="published")
    _, config_of_file = read_weights(tmp_path / "again.pth")
    assert config_of_file == config


def save_ours(folder: Path, changes: dict[str, Any] | None = None) -> Path:
    """Write a small folder; change keys of its two configs."""
    config = small_config()
    write_hub(folder, Weights(build(config, 5).state_dict(), config, class_map(), "x"), Config())
    for file in ("config.json", "preprocessor_config.json"):
        content = json.loads((folder / file).read_text())
        content |= {key.partition(":")[2]: value for key, value in (changes or {}).items() if key.startswith(file)}
        (folder / file).write_text(json.dumps({key: value for key, value in content.items() if value != "gone"}))
    return folder


def class_map() -> Any:
    from detrkit.classes import ClassMap

    return ClassMap(NAMES, tuple(range(5)))


REFUSED: list[tuple[str, Any, str]] = [
    ("config.json:activation_function", "quick_gelu", "activation is 'quick_gelu'"),
    ("config.json:backbone", "convnext_tiny", "backbone is 'convnext_tiny'"),
    ("config.json:backbone", "resnet50", "backbone 'resnet50'.*resnet18"),
    ("config.json:backbone_config", {"model_type": "swin"}, "swin"),
    ("config.json:backbone_config", {"model_type": "resnet", "depths": [3, 8, 36, 3]}, "backbone_config"),
    ("config.json:backbone_config", {"backbone": "resnet18", "output_stride": 8}, "output_stride is 8"),
    ("config.json:num_channels", 1, "num_channels is 1"),
    ("config.json:dilation", True, "dilation.*resnet18"),
    ("config.json:decoder_attention_heads", 8, "encoder_attention_heads is 4"),
    ("config.json:position_embedding_type", "learned", "position_embedding_type 'learned'"),
    ("config.json:num_queries", 100, "num_queries 100.*num_queries 10"),
    ("config.json:encoder_attention_heads", 3, "3"),
    ("config.json:model_type", "conditional_detr", "conditional_detr"),
    ("config.json:id2label", {"0": "cat", "1": "dog"}, "2 classes.*5"),
    ("config.json:id2label", {"zero": "cat"}, "zero"),
    ("preprocessor_config.json:do_resize", False, "do_resize is False"),
    ("preprocessor_config.json:resample", 3, "resample is 3"),
    ("preprocessor_config.json:pad_size", {"height": 64, "width": 64}, "pad_size"),
    ("preprocessor_config.json:size", {"height": 64, "width": 64}, "size is .*height"),
    ("preprocessor_config.json:size", {"longest_edge": 64}, "size is .*longest_edge"),
    ("preprocessor_config.json:size", {"max_height": 64, "max_width": 64}, "size is .*max_height"),
    ("preprocessor_config.json:do_resize", None, "do_resize is None"),
    ("preprocessor_config.json:resample", None, "resample is None"),
    ("preprocessor_config.json:image_std", [0.0, 1.0, 1.0], "std"),
    ("preprocessor_config.json:image_mean", [0.5], "mean"),
    ("preprocessor_config.json:image_processor_type", "YolosImageProcessor", "YolosImageProcessor"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value", "named"), REFUSED)
def test_what_cannot_be_honoured_is_refused_by_name(tmp_path: Path, key: str, value: Any, named: str):
    folder = save_ours(tmp_path / "hub", {key: value, **({"config.json:decoder_attention_heads": 3} if value == 3
                                                         and "heads" in key else {})})  # fmt: skip
    with pytest.raises(WeightsError, match=named):
        load_model(folder)


def test_what_older_versions_of_transformers_wrote_is_read(tmp_path: Path):
    old = {
        "size": 480, "max_size": 700, "image_processor_type": "gone",
        "feature_extractor_type": "DetrFeatureExtractor", "do_rescale": "gone", "rescale_factor": "gone",
        "do_pad": "gone", "resample": "gone",
    }  # fmt: skip
    folder = save_ours(tmp_path, {f"preprocessor_config.json:{key}": value for key, value in old.items()})
    transforms = load_model(folder).config.transforms
    assert (transforms.eval_size, transforms.max_size) == (480, 700)


def test_learned_positions_under_the_names_of_transformers_4_are_read(tmp_path: Path):
    from safetensors.torch import load_file, save_file

    save_theirs(tmp_path, {"position_embedding_type": "learned"}, {})
    state = load_file(tmp_path / "model.safetensors")
    moved = {name.replace("model.position", "model.backbone.position"): value for name, value in state.items()}
    assert moved.keys() != state.keys()
    save_file(moved, tmp_path / "model.safetensors")
    assert load_model(tmp_path).config.model.position == "learned"


def test_shards_that_are_lost_or_elsewhere_are_named(tmp_path: Path):
    save_theirs(tmp_path, {}, {}, max_shard_size="20MB")
    index = tmp_path / "model.safetensors.index.json"
    whole = json.loads(index.read_text())
    shard = sorted(set(whole["weight_map"].values()))[1]
    for change, named in (
        ({"model.more": shard}, "model.more"),
        ({"model.more": "../../secret.safetensors"}, "outside"),
        ({"model.more": "model-00009-of-00009.safetensors"}, "model-00009-of-00009.safetensors"),
    ):
        index.write_text(json.dumps({"weight_map": {**whole["weight_map"], **change}}))
        with pytest.raises(WeightsError, match=named):
            read_weights(tmp_path)
    for text in ("{}", "[1]", '{"weight_map": 3}', "{"):
        index.write_text(text)
        with pytest.raises(WeightsError, match="weight_map"):
            read_weights(tmp_path)


def test_a_folder_without_a_preprocessor_config_says_what_is_assumed(tmp_path: Path):
    (save_ours(tmp_path) / "preprocessor_config.json").unlink()
    weights, config = read_weights(tmp_path)
    assert "ImageNet" in " ".join(weights.notes)
    assert list(config.transforms.mean) == IMAGENET["image_mean"]
