"""RT-DETRv2 against Hugging Face transformers' independent implementation, float32, the same random weights.

transformers departs from the authors' code in one thing that this page puts right: its boxes of a layer give no
gradient to the layer before (the authors' and DINO's "look forward twice").
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from detrkit.classes import COCO_CATEGORY_IDS, COCO_NAMES, ClassMap
from detrkit.config import update_config
from detrkit.families import two_stage
from detrkit.families.build import build_model, read_weights
from detrkit.families.family import BuiltModel
from detrkit.families.recipes import preset_config
from detrkit.families.two_stage.model import TwoStageDetr
from detrkit.families.weights import Weights
from detrkit.families.writers import get_writers
from detrkit.preprocess import Preprocessing, normalize_images, pad_images
from detrkit.types import GroundTruth
from tests.parity.test_detr_transformers import make_truth

CLASSES = ClassMap(COCO_NAMES, COCO_CATEGORY_IDS)
SIZE = (2, 3, 64, 96)
PRESETS = [
    "rtdetr-r18",
    *(pytest.param(f"rtdetr-{name}", marks=pytest.mark.slow) for name in ("r34", "r50-m", "r50", "r101")),
]


def randomize(model: nn.Module) -> None:
    """Random weights whose norms and heads do something, as trained ones' would."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif name.endswith(("running_mean", "sampling_offsets.bias")):
                tensor.normal_(0, 0.1, generator=generator)
            elif tensor.ndim == 1 and name.endswith("weight"):  # small where a branch ends: or rounding grows
                low, high = (0.1, 0.25) if name.endswith(("bn3.weight", "bn2.weight")) else (0.7, 1.1)
                tensor.uniform_(low, high, generator=generator)
            elif tensor.ndim > 1 and not tensor.any():
                tensor.normal_(0, 0.02, generator=generator)
            elif "class_embed" in name and tensor.ndim == 2:
                tensor.normal_(0, 0.1, generator=generator)


def make_ours(preset: str, **changes: Any) -> BuiltModel:
    torch.manual_seed(0)
    model = {"padding": "published", "num_queries": 30, "eval_layers": None, **changes}
    built = build_model(update_config(preset_config(preset), {"model": model}), CLASSES)
    randomize(built.model)
    return built


def make_theirs(built: BuiltModel, folder: Path) -> Any:
    from transformers import AutoModelForObjectDetection

    state = {name: tensor for name, tensor in built.model.state_dict().items() if not name.startswith("aids.")}
    weights = Weights(state, built.config.model, CLASSES, "random")
    get_writers(built.family, "").hub(folder, weights, built.config)
    theirs, report = AutoModelForObjectDetection.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    return theirs


@pytest.fixture(scope="module", params=PRESETS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[BuiltModel, Any, Path]:
    built = make_ours(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    return built, make_theirs(built, folder), folder


def their_labels(truth: GroundTruth) -> list[dict[str, Tensor]]:
    parts = zip(truth.labels.split(list(truth.counts)), truth.boxes_cxcywh.split(list(truth.counts)), strict=True)
    return [{"class_labels": labels, "boxes": boxes} for labels, boxes in parts]


def test_every_layer_gives_transformers_logits_and_boxes(pair: tuple[BuiltModel, Any, Path]):
    built, theirs, _ = pair
    images = torch.rand(SIZE, generator=torch.Generator().manual_seed(1))
    padding = torch.zeros(2, *SIZE[2:], dtype=torch.bool)
    padding[1, :, 70:] = True  # as published, what lies there counts
    with torch.no_grad():
        ours = built.model.eval()(images, padding)
        other = theirs.eval()(images)
    assert other.logits.std() > 0.1
    assert other.pred_boxes.std() > 0.1
    layers = theirs.config.decoder_layers
    theirs_logits, their_boxes = (
        part.transpose(0, 1)[-layers:] for part in (other.intermediate_logits, other.intermediate_reference_points)
    )
    ours_logits, our_boxes = (part[-len(theirs_logits) :] for part in (ours.logits, ours.boxes_cxcywh))
    torch.testing.assert_close(ours_logits, theirs_logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(our_boxes, their_boxes, atol=1e-4, rtol=0)


def look_twice(module: Any) -> Callable[..., Any]:
    """The decoder of transformers with gradients as in the authors' code."""

    def forward(self: Any, inputs_embeds: Tensor, reference_points: Tensor, **others: Any) -> Any:
        hidden, kept = inputs_embeds, reference_points.sigmoid()
        detached, boxes, logits = kept, [], []
        for layer, box_head, class_head in zip(self.layers, self.bbox_embed, self.class_embed, strict=True):
            position = self.query_pos_head(detached)
            references = detached.unsqueeze(2)
            hidden = layer(
                hidden, object_queries_position_embeddings=position, reference_points=references, **others
            )
            boxes.append((box_head(hidden) + module.inverse_sigmoid(kept)).sigmoid())
            kept = (box_head(hidden) + module.inverse_sigmoid(detached)).sigmoid()
            detached = kept.detach()
            logits.append(class_head(hidden))
        return module.RTDetrV2DecoderOutput(
            last_hidden_state=hidden,
            intermediate_hidden_states=torch.stack([hidden], dim=1),
            intermediate_logits=torch.stack(logits, dim=1),
            intermediate_reference_points=torch.stack(boxes, dim=1),
        )

    return forward


class SameNoise:
    """Lets transformers' queries of noised objects be those that detrkit drew."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: Any):
        draw = two_stage.model.noise_objects

        def keep(*args: Any, **kwargs: Any) -> Any:
            self.noised = draw(*args, **kwargs)
            return self.noised

        monkeypatch.setattr(two_stage.model, "noise_objects", keep)
        monkeypatch.setattr(module, "get_contrastive_denoising_training_group", self.give)

    def give(self, targets: Any, class_embed: nn.Embedding, num_queries: int, **_: Any) -> tuple[Any, ...]:
        noised, count = self.noised, self.noised.objects.shape[1]
        blocks = torch.cat((noised.blocks, torch.full((num_queries,), -1)))
        seen = (blocks[:, None] == blocks) | (blocks == -1)
        meta = {
            "dn_positive_idx": [(row >= 0).nonzero()[:, 0] for row in noised.objects],
            "dn_num_group": noised.copies,
            "dn_num_split": [count, num_queries],
        }
        boxes = noised.boxes_cxcywh.logit(eps=1e-4)
        return class_embed(noised.logit_index), boxes, torch.where(seen, 0.0, -torch.inf), meta


@pytest.mark.parametrize("denoising", [0, 100])
def test_losses_and_gradients_are_those_of_transformers(
    pair: tuple[BuiltModel, Any, Path], denoising: int, monkeypatch: pytest.MonkeyPatch
):
    from transformers.models.rt_detr_v2 import modeling_rt_detr_v2 as module

    built, theirs = pair[0], copy.deepcopy(pair[1])
    model: Any = copy.deepcopy(built.model).train()
    aids = built.config.aids.model_copy(update={"denoising": denoising})
    built.family.add_aids(model, built.config.model, aids)
    if not denoising:
        model.aids = None
    theirs.train().config.num_denoising = denoising
    noise = SameNoise(monkeypatch, module)
    monkeypatch.setattr(module.RTDetrV2Decoder, "forward", look_twice(module))
    criterion = built.family.build_criterion(built.config, CLASSES)
    truth = make_truth((3, 3))
    images = torch.rand(SIZE, generator=torch.Generator().manual_seed(1))

    found = criterion(model(images, None, criterion.objects(truth)), truth)
    found.total.backward()
    if denoising:
        assert noise.noised.copies == 33
    other = theirs(images, labels=their_labels(truth))
    other.loss.backward()

    assert_same_terms(built, found, other.loss_dict)
    torch.testing.assert_close(found.total, other.loss, rtol=1e-4, atol=0)
    gradients = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    assert_same_gradients(model, gradients)


def assert_same_terms(built: BuiltModel, found: Any, others: dict[str, Tensor]) -> None:
    names = {"class": ("vfl", 1.0), "l1": ("bbox", 5.0), "giou": ("giou", 2.0)}
    for name, (theirs, weight) in names.items():
        first, *layers, last = found.layer_terms[name] * weight
        wanted = [others[f"loss_{theirs}_aux_{number}"] for number in range(len(layers) + 1)]
        expected = torch.stack([*wanted[:-1], others[f"loss_{theirs}"], wanted[-1]]).detach()
        torch.testing.assert_close(torch.stack([*layers, last, first]), expected, rtol=1e-4, atol=0)
    denoised = [value for name, value in others.items() if "_dn_" in name]
    if denoised:
        torch.testing.assert_close(
            found.terms["denoising"], torch.stack(denoised).sum().detach(), rtol=1e-4, atol=0
        )


def assert_same_gradients(model: TwoStageDetr, theirs: dict[str, Tensor]) -> None:
    from detrkit.families.rtdetr.layouts import RTDETR_LAYOUTS

    named = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    ours = RTDETR_LAYOUTS.from_own({**named}, "own")
    expected = RTDETR_LAYOUTS.to_own(
        {**theirs, "model.enc_score_head.weight": theirs["model.enc_score_head.weight"]}
    )
    assert ours.keys() == expected.keys()
    assert len(ours) > 150
    scale = torch.stack([gradient.norm() for gradient in expected.values()]).max()
    for name, gradient in ours.items():
        difference = (gradient - expected[name]).norm()
        assert difference <= 1e-3 * expected[name].norm() + 1e-6 * scale, (
            f"{name}: {difference} of {expected[name].norm()}"
        )


def test_files_of_both_layouts_are_read_and_written_bit_equal(pair: tuple[BuiltModel, Any, Path], tmp_path: Path):
    built, theirs, _ = pair
    theirs.save_pretrained(tmp_path / "theirs")
    weights, config = read_weights(tmp_path / "theirs")
    assert weights.config.preset == built.config.model.preset
    same_model(weights, built)
    assert not config.transforms.keep_aspect

    writers = get_writers(built.family, "")
    writers.hub(tmp_path / "ours", weights, config)
    same_tensors(
        load_file(tmp_path / "ours" / "model.safetensors"), load_file(tmp_path / "theirs" / "model.safetensors")
    )
    again, config = read_weights(tmp_path / "ours")
    same_model(again, built)
    assert again.class_map.names == COCO_NAMES
    usual = built.config.transforms
    assert (config.transforms.eval_size, config.transforms.mean) == (usual.eval_size, usual.mean)

    writers.published(tmp_path / "native.pth", weights.state, config)
    native = torch.load(tmp_path / "native.pth", weights_only=True)["model"]
    assert any(name.startswith("decoder.decoder.layers.0.cross_attn.num_points_scale") for name in native)
    other = {name: torch.zeros_like(tensor) for name, tensor in native.items()}
    torch.save({"ema": {"module": native, "updates": 3}, "model": other}, tmp_path / "both.pth")
    for name in ("native.pth", "both.pth"):
        found, _ = read_weights(tmp_path / name, f"{built.config.model.preset},num_queries=30")
        same_tensors(found.state, weights.state)


def same_model(weights: Weights, built: BuiltModel) -> None:
    same_tensors(weights.state, {n: t for n, t in built.model.state_dict().items() if not n.startswith("aids.")})
    silent = {"padding", "eval_layers"}
    assert weights.config.model_dump(exclude=silent) == built.config.model.model_dump(exclude=silent)


def same_tensors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name, tensor in found.items() if not torch.equal(tensor, expected[name])] == []


def test_preprocessing_is_that_of_transformers(pair: tuple[BuiltModel, Any, Path]):
    from transformers import AutoImageProcessor

    built, _, folder = pair
    pictures = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in ((50, 90), (700, 640))]
    rule = Preprocessing.from_config(built.config.transforms)
    pixels, mask = pad_images([rule.resize(picture) for picture in pictures])
    assert not mask.any()
    ours = normalize_images(pixels, rule.mean, rule.std)
    theirs = AutoImageProcessor.from_pretrained(folder)(images=pictures, return_tensors="pt")["pixel_values"]
    assert theirs.shape == (2, 3, 640, 640)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_detections_are_those_of_transformers(pair: tuple[BuiltModel, Any, Path]):
    from transformers import AutoImageProcessor

    built, theirs, folder = pair
    images = torch.rand(SIZE, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        ours = built.family.postprocess(built.model.eval()(images, None), [(300, 200)] * 2, CLASSES)
        other = theirs.eval()(images)
    processor = AutoImageProcessor.from_pretrained(folder)
    found = processor.post_process_object_detection(other, threshold=0.0, target_sizes=[(300, 200)] * 2)
    for own, expected in zip(ours, found, strict=True):
        torch.testing.assert_close(torch.from_numpy(own.scores), expected["scores"], atol=1e-5, rtol=0)
        sure = (
            torch.from_numpy(own.class_ids) == expected["labels"]
        )  # scores that rounding makes equal change places
        assert sure.float().mean() > 0.8
        boxes = torch.from_numpy(own.boxes_xyxy)
        torch.testing.assert_close(boxes[sure], expected["boxes"][sure], atol=0.02, rtol=1e-4)


@pytest.mark.parametrize("sampling", ["discrete"])
def test_discrete_sampling_is_that_of_transformers(sampling: str, tmp_path: Path):
    built = make_ours("rtdetr-r18", sampling=sampling)
    theirs = make_theirs(built, tmp_path)
    assert theirs.config.decoder_method == sampling
    images = torch.rand(SIZE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours, other = built.model.eval()(images), theirs.eval()(images)
    torch.testing.assert_close(ours.logits[-1], other.logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(ours.boxes_cxcywh[-1], other.pred_boxes, atol=1e-4, rtol=0)


def test_layers_that_only_train_others_are_left_out_of_detection():
    built = make_ours("rtdetr-r50-m", eval_layers=3)
    images = torch.rand((1, 3, 64, 64), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert built.model.eval()(images).logits.shape[0] == 3
        assert built.model.train()(images.expand(2, -1, -1, -1)).logits.shape[0] == 7
