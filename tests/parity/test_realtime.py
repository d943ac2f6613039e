"""RT-DETRv2 against Hugging Face transformers' independent implementation, float32, the same random weights.

transformers departs from the authors' code in one thing that this page puts right: its boxes of a layer give no
gradient to the layer before (the authors' and DINO's "look forward twice").
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detrkit.classes import COCO_CATEGORY_IDS, COCO_NAMES, ClassMap
from detrkit.config import update_config
from detrkit.families import two_stage
from detrkit.families.build import build_model
from detrkit.families.family import BuiltModel
from detrkit.families.recipes import preset_config
from detrkit.families.two_stage.model import TwoStageDetr
from detrkit.families.weights import Weights
from detrkit.families.writers import get_writers
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

    built, theirs, _ = pair
    model: Any = built.model.train()
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
    model.zero_grad(set_to_none=True)
    theirs.zero_grad(set_to_none=True)

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
