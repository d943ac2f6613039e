"""Classic DETR against Hugging Face transformers' independent implementation, float32, the same weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from detrkit.config import LossConfig
from detrkit.families.detr.weights import coco_class_map
from detrkit.losses.criterion import Criterion
from detrkit.types import GroundTruth, Outputs
from tests.parity.conftest import Pair, padded_batch

SIZES = [(190, 250), (256, 170)]


def make_truth(counts: tuple[int, ...], seed: int = 2) -> GroundTruth:
    generator = torch.Generator().manual_seed(seed)
    total = sum(counts)
    centers = torch.rand(total, 2, generator=generator) * 0.6 + 0.2
    sizes = torch.rand(total, 2, generator=generator) * 0.3 + 0.05
    labels = torch.randint(0, 80, (total,), generator=generator)
    return GroundTruth(labels, torch.cat((centers, sizes), 1), counts)


def their_labels(truth: GroundTruth) -> list[dict[str, Tensor]]:
    logit_index = torch.tensor(coco_class_map().logit_index)[truth.labels]
    return [
        {"class_labels": labels, "boxes": boxes}
        for labels, boxes in zip(
            logit_index.split(list(truth.counts)), truth.boxes_cxcywh.split(list(truth.counts)), strict=True
        )
    ]


def their_layers(theirs: Any, images: Tensor, mask: Tensor) -> Outputs:
    """Transformers' predictions of every decoder layer.

    With ``auxiliary_loss`` on, transformers feeds the normed output of a layer into the next one, which neither
    the paper nor the published code does; so the layers are read with hooks from the unaltered forward instead.
    """
    caught: list[Tensor] = []
    decoder = theirs.model.decoder
    hooks = [
        layer.register_forward_hook(
            lambda _m, _i, output: caught.append(output if isinstance(output, Tensor) else output[0])
        )
        for layer in decoder.layers
    ]
    theirs(images, pixel_mask=(~mask).long())
    for hook in hooks:
        hook.remove()
    hidden = decoder.layernorm(torch.stack(caught))
    return Outputs(theirs.class_labels_classifier(hidden), theirs.bbox_predictor(hidden).sigmoid())


def test_padded_batch_gives_transformers_logits_and_boxes(pair: Pair):
    images, mask = padded_batch(SIZES)
    with torch.no_grad():
        ours = pair.ours(images, mask)
        theirs = pair.theirs(images, pixel_mask=(~mask).long())
    assert ours.logits.shape == (6, 2, 100, 92)
    assert theirs.logits.std() > 0.1  # the comparison is of something
    torch.testing.assert_close(ours.logits[-1], theirs.logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(ours.boxes_cxcywh[-1], theirs.pred_boxes, atol=1e-4, rtol=0)


def test_exact_padding_gives_what_transformers_gives_for_each_image_alone(pair: Pair):
    images, mask = padded_batch(SIZES)
    pair.ours.backbone[0].exact_padding = True
    try:
        with torch.no_grad():
            ours = pair.ours(images, mask)
            alone = [pair.theirs(images[i : i + 1, :, :h, :w]) for i, (h, w) in enumerate(SIZES)]
    finally:
        pair.ours.backbone[0].exact_padding = False
    for index, theirs in enumerate(alone):
        torch.testing.assert_close(ours.logits[-1, index], theirs.logits[0], atol=1e-4, rtol=0)
        torch.testing.assert_close(ours.boxes_cxcywh[-1, index], theirs.pred_boxes[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("counts", [(3, 5), (0, 4), (1, 0), (0, 0)])
def test_loss_of_every_layer_equals_transformers(counts: tuple[int, ...]):
    # On given predictions: the criterion alone, so that small tensors will do. Several layers, no objects too.
    from transformers import DetrConfig
    from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss

    torch.manual_seed(3)
    logits = torch.randn(3, 2, 12, 92, requires_grad=True)
    raw_boxes = torch.randn(3, 2, 12, 4, requires_grad=True)
    truth = make_truth(counts)
    config = DetrConfig(num_labels=91, auxiliary_loss=True, decoder_layers=3)

    boxes = raw_boxes.sigmoid()
    ours = Criterion(LossConfig(), coco_class_map(), 12)(Outputs(logits, boxes), truth).total
    our_gradients = torch.autograd.grad(ours, (logits, raw_boxes))
    boxes = raw_boxes.sigmoid()
    theirs, _, _ = ForObjectDetectionLoss(logits[-1], their_labels(truth), "cpu", boxes[-1], config, logits, boxes)
    their_gradients = torch.autograd.grad(theirs, (logits, raw_boxes), allow_unused=True)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)
    for our, their in zip(our_gradients, their_gradients, strict=True):
        torch.testing.assert_close(our, torch.zeros_like(our) if their is None else their, rtol=1e-4, atol=1e-7)


def test_loss_and_gradient_of_every_parameter_equal_transformers(pair: Pair, use_float64: Callable[..., None]):
    from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss

    pair = copy.deepcopy(pair)
    use_float64(pair.ours, pair.theirs)  # of ResNet-101, float32's rounding may make 3e-3 of a gradient
    images, mask = padded_batch(SIZES)
    truth = make_truth((4, 2))
    loss = Criterion(LossConfig(), coco_class_map(), 100)(pair.ours(images, mask), truth).total
    loss.backward()

    layers = their_layers(pair.theirs, images, mask)
    config = pair.theirs.config
    config.auxiliary_loss = True
    last = layers.logits[-1], their_labels(truth), "cpu", layers.boxes_cxcywh[-1]
    theirs, _, _ = ForObjectDetectionLoss(*last, config, layers.logits, layers.boxes_cxcywh)
    theirs.backward()
    torch.testing.assert_close(loss, theirs, rtol=1e-5, atol=0)

    from detrkit.families.detr.layouts import hub_to_published

    # transformers' gradients under the published names; names in memory differ a little from the hub's files
    gradients = hub_to_published(
        {name: p.grad for name, p in pair.theirs.named_parameters() if p.grad is not None}
    )
    own = {name: p for name, p in pair.ours.named_parameters() if p.requires_grad}
    assert len(own) > 200
    for name, parameter in own.items():
        assert parameter.grad is not None, name
        scale = gradients[name].norm()
        difference = (parameter.grad - gradients[name]).norm() / scale.clamp(min=1e-12)
        # a gradient that is zero in exact arithmetic (keys' biases cancel in the softmax) is rounding noise
        assert difference < 1e-3 or scale < 1e-6, f"{name}: {difference:.2e} of {scale:.2e}"
