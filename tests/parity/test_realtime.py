"""RT-DETRv2 against Hugging Face transformers' independent implementation, float32, the same random weights.

transformers departs from the authors' code in one thing that this page puts right: its boxes of a layer give no
gradient to the layer before (the authors' and DINO's "look forward twice").
"""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import box_convert, box_iou

from detrkit.classes import COCO_CATEGORY_IDS, COCO_NAMES, ClassMap
from detrkit.config import update_config
from detrkit.families import two_stage
from detrkit.families.build import build_model, read_weights
from detrkit.families.dfine.weights import DFINE_WEIGHTS
from detrkit.families.family import BuiltModel
from detrkit.families.recipes import preset_config
from detrkit.families.rtdetr.weights import RTDETR_WEIGHTS
from detrkit.families.weights import Weights
from detrkit.families.writers import get_writers
from detrkit.preprocess import Preprocessing, normalize_images, pad_images
from detrkit.types import GroundTruth
from tests.parity.test_detr_transformers import make_truth

CLASSES = ClassMap(COCO_NAMES, COCO_CATEGORY_IDS)
SIZE = (2, 3, 64, 96)
SLOW = [*(f"rtdetr-{size}" for size in ("r34", "r50-m", "r50", "r101")), *(f"dfine-{size}" for size in "smlx")]
PRESETS = ["rtdetr-r18", "dfine-n", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]

# So deep that rounding in float32 makes percents of a gradient; in float64 both are the same.
DEEP = ("resnet50vd", "resnet101vd")


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
    # transformers freezes no stem
    model = {"padding": "published", "num_queries": 30, "eval_layers": None, "frozen_stages": 0, **changes}
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
    layers = theirs.config.decoder_layers if built.family.name == "rtdetr" else 1  # or all were those of training
    theirs_logits, their_boxes = (
        part.transpose(0, 1)[-layers:] for part in (other.intermediate_logits, other.intermediate_reference_points)
    )
    ours_logits, our_boxes = (part[-layers:] for part in (ours.logits, ours.boxes_cxcywh))
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


@pytest.mark.parametrize("denoising", [pytest.param(0, marks=pytest.mark.slow), 100])
def test_losses_and_gradients_are_those_of_transformers(
    pair: tuple[BuiltModel, Any, Path],
    denoising: int,
    monkeypatch: pytest.MonkeyPatch,
    use_float64: Callable[..., None],
):
    built, theirs = pair[0], copy.deepcopy(pair[1])
    module = sys.modules[type(theirs).__module__]
    model: Any = copy.deepcopy(built.model).train()
    aids = built.config.aids.model_copy(update={"denoising": denoising, "dense": "none"})
    built.family.add_aids(model, built.config.model, aids)
    if not denoising:
        model.aids = None
    theirs.train().config.num_denoising = denoising
    noise = SameNoise(monkeypatch, module)
    criterion = built.family.build_criterion(built.config, CLASSES)
    truth = make_truth((3, 3))
    images = torch.rand(SIZE, generator=torch.Generator().manual_seed(1))
    if built.config.model.backbone in DEEP:
        use_float64(model, theirs)
        images = images.double()
        truth = dataclasses.replace(truth, boxes_cxcywh=truth.boxes_cxcywh.double())

    # the same of an image that differs by what rounding adds up to over a hundred layers, norms folded or not
    twin = copy.deepcopy(model)
    rounding = 2e-6 if images.dtype == torch.float32 else 1e-14
    noisy = images * (1 + rounding * torch.randn(SIZE, generator=torch.Generator().manual_seed(2)))
    for network, pixels in ((twin, noisy), (model, images)):
        torch.manual_seed(0)  # of the noised objects
        found = criterion(network(pixels, None, criterion.objects(truth)), truth)
        found.total.backward()
    if denoising:
        assert noise.noised.copies == 33
    if built.family.name == "rtdetr":
        monkeypatch.setattr(module.RTDetrV2Decoder, "forward", look_twice(module))
        expected = theirs(images, labels=their_labels(truth)).loss_dict
    else:
        expected = authors_losses(theirs, images, their_labels(truth))
    total = torch.stack(list(expected.values())).sum()
    total.backward()

    assert_same_terms(found, expected)
    torch.testing.assert_close(found.total, total, rtol=1e-4, atol=0)
    gradients = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    assert_same_gradients(built, model, twin, gradients)


WEIGHTS = {
    "class": ("vfl", 1.0),
    "l1": ("bbox", 5.0),
    "giou": ("giou", 2.0),
    "fgl": ("fgl", 0.15),
    "ddf": ("ddf", 1.5),
}


def authors_losses(theirs: Any, images: Tensor, labels: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The losses of the authors' D-FINE, of transformers' terms.

    transformers gives its terms other layers than the authors do: the logits of the first box go with the
    distributions of the first layer and so on, so that one layer's logits are never taught; nothing teaches the
    last layer's distributions; and there is no union of pairs.
    """
    criterion = theirs.loss_function.__globals__["DFineLoss"](theirs.config)
    found = theirs(images, labels=labels)
    meta = found.denoising_meta_values
    split = meta["dn_num_split"] if meta else [0, theirs.config.num_queries]
    names = ("intermediate_logits", "intermediate_reference_points", "intermediate_predicted_corners",
             "initial_reference_points")  # fmt: skip
    parts = [getattr(found, name).transpose(0, 1).split(split, dim=2) for name in names]
    counts = [len(image["boxes"]) for image in labels]

    def outputs_of(which: int) -> list[dict[str, Tensor]]:
        """The outputs of a set of queries: of the first box, and of every layer."""
        logits, boxes, corners, starts = (part[which] for part in parts)
        outputs = [{"logits": a, "pred_boxes": b.clamp(0, 1)} for a, b in zip(logits, boxes, strict=True)]
        for output, edges, start in zip(outputs[1:], corners, starts, strict=True):
            output |= {"pred_corners": edges, "ref_points": start}
            output |= {"teacher_corners": corners[-1], "teacher_logits": logits[-1]}
        return outputs

    first, *layers = outputs_of(1)
    tokens = {"logits": found.enc_topk_logits, "pred_boxes": found.enc_topk_bboxes.clamp(0, 1)}
    every = {"aux_enc": tokens, "aux_pre": first, **{f"aux_{n}": output for n, output in enumerate(layers)}}
    own = {name: criterion.matcher(output, labels) for name, output in every.items()}
    united = unite(list(own.values()))
    losses: dict[str, Tensor] = {}

    def add(
        name: str, output: dict[str, Tensor], own: Any, united: Any, num_own: float, num_united: float
    ) -> None:
        values = criterion.get_loss("vfl", output, labels, own, num_own)
        values |= criterion.get_loss("boxes", output, labels, united, num_united)
        values |= criterion.get_loss("local", output, labels, united, num_united)
        weights = {f"loss_{theirs}": weight for theirs, weight in WEIGHTS.values()}
        losses.update({f"{key}_{name}": weights[key] * value for key, value in values.items()})

    for name, output in every.items():
        add(name, output, own[name], united, sum(counts), sum(len(rows) for rows, _ in united))
    balance = criterion.num_pos, criterion.num_neg
    if meta:
        pairs = criterion.get_cdn_matched_indices(meta, labels)
        number = sum(counts) * meta["dn_num_group"]
        for n, output in enumerate(outputs_of(0)):
            add(f"dn_{n}", output, pairs, pairs, number, number)
            if n < len(layers) and "pred_corners" in output:
                losses[f"loss_ddf_dn_{n}"] = 1.5 * distilled(output, pairs, labels, balance)
    return losses


def unite(matched: list[Any]) -> list[tuple[Tensor, Tensor]]:
    """GO-LSD's union: every query that any layer matched, with the object that most layers give it."""
    united = []
    for image in zip(*matched, strict=True):
        votes = Counter((int(q), int(o)) for rows, columns in image for q, o in zip(rows, columns, strict=True))
        chosen: dict[int, int] = {}
        for query, obj in sorted(votes, key=lambda pair: (-votes[pair], pair)):
            chosen.setdefault(query, obj)
        united.append((torch.tensor(list(chosen)), torch.tensor(list(chosen.values()))))
    return united


def distilled(output: dict[str, Tensor], pairs: Any, labels: Any, balance: tuple[Tensor, Tensor]) -> Tensor:
    """The authors' distillation of noised queries, whose two means are weighed as those of the others."""
    student, teacher = (output[name].unflatten(-1, (4, -1)) for name in ("pred_corners", "teacher_corners"))
    softened = (teacher.detach() / 5).softmax(-1)
    apart = functional.kl_div((student / 5).log_softmax(-1), softened, reduction="none").sum(-1)
    weights = output["teacher_logits"].sigmoid().amax(-1).detach()
    positive = torch.zeros_like(weights, dtype=torch.bool)
    for image, (rows, columns) in enumerate(pairs):
        boxes, wanted = output["pred_boxes"][image, rows].detach(), labels[image]["boxes"][columns]
        corners = (box_convert(part, "cxcywh", "xyxy") for part in (boxes, wanted))
        weights[image, rows] = box_iou(*corners).diag()
        positive[image, rows] = True
    apart = apart * weights[..., None] * 25
    return (apart[positive].mean() * balance[0] + apart[~positive].mean() * balance[1]) / sum(balance)


def assert_same_terms(found: Any, others: dict[str, Tensor]) -> None:
    for name, values in found.layer_terms.items():
        theirs, weight = WEIGHTS[name]
        wanted = [
            value.detach()
            for key, value in others.items()
            if key.startswith(f"loss_{theirs}") and "_dn_" not in key
        ]
        ours = values[values != 0] * weight
        expected = torch.stack([value for value in wanted if value != 0])
        torch.testing.assert_close(ours.sort().values, expected.sort().values, rtol=1e-4, atol=1e-6)
    denoised = [value for name, value in others.items() if "_dn_" in name]
    if denoised:
        torch.testing.assert_close(
            found.terms["denoising"], torch.stack(denoised).sum().detach(), rtol=1e-4, atol=0
        )


def assert_same_gradients(built: BuiltModel, model: nn.Module, twin: nn.Module, theirs: dict[str, Tensor]) -> None:
    layouts = {"rtdetr": RTDETR_WEIGHTS, "dfine": DFINE_WEIGHTS}[built.family.name].layouts
    ours = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    frozen = ("decoder.up", "decoder.scale")  # as in the authors' code
    expected = {name: tensor for name, tensor in layouts.to_own(theirs).items() if name not in frozen}
    assert ours.keys() == expected.keys()
    assert len(ours) > 150
    scale = torch.stack([gradient.norm() for gradient in expected.values()]).max()
    for name, gradient in ours.items():
        difference, size = (gradient - expected[name]).norm(), expected[name].norm()
        rounding = (gradient - twin.get_parameter(name).grad).norm()
        assert difference <= 1e-3 * size + 1e-6 * scale + 3 * rounding, f"{name}: {difference} of {size}"
        assert difference <= 0.05 * size + 1e-6 * scale, f"{name}: {difference} of {size}"


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
    sides = tuple((640 // stride,) * 2 for stride in theirs.config.feat_strides)
    anchors, inside = theirs.model.generate_anchors(sides)
    assert torch.equal(native["decoder.valid_mask"], inside)
    anchors, found = (part[inside[..., 0]] for part in (anchors, native["decoder.anchors"]))
    torch.testing.assert_close(found, anchors, atol=1e-5, rtol=0)
    assert native["decoder.anchors"][~inside[..., 0]].isinf().all()
    for name in ("up", "reg_scale") if built.family.name == "dfine" else ():
        assert torch.equal(native[f"decoder.{name}"], native[f"decoder.decoder.{name}"])
    other = {name: torch.zeros_like(tensor) for name, tensor in native.items()}
    torch.save({"ema": {"module": native, "updates": 3}, "model": other}, tmp_path / "both.pth")
    for name in ("native.pth", "both.pth"):
        found, _ = read_weights(tmp_path / name, f"{built.config.model.preset},num_queries=30")
        same_tensors(found.state, weights.state)


def same_model(weights: Weights, built: BuiltModel) -> None:
    same_tensors(weights.state, {n: t for n, t in built.model.state_dict().items() if not n.startswith("aids.")})
    silent = {"padding", "eval_layers", "frozen_stages"}
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
