from __future__ import annotations

import torch
from torch import Tensor

from detrkit.nn.box_decoder import BoxDecoder, BoxDecoderLayer, Memory
from detrkit.nn.denoising import block_mask

DIM, SLOTS, QUERIES = 16, 3, 5
SHAPES = [(6, 8), (3, 4)]


def build(layers: int = 3, dropout: float = 0.0) -> BoxDecoder:
    torch.manual_seed(0)
    stack = [BoxDecoderLayer(DIM, 2, 32, dropout, len(SHAPES)) for _ in range(layers)]
    return BoxDecoder(stack, DIM, SLOTS + 1)


def make_inputs(images: int = 2, queries: int = QUERIES) -> tuple[Tensor, Tensor, Memory]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(images, sum(h * w for h, w in SHAPES), DIM, generator=generator)
    references = torch.randn(images, queries, 4, generator=generator)
    return torch.randn(images, queries, DIM, generator=generator), references, Memory(tokens, SHAPES, None, None)


def test_boxes_are_offsets_from_the_layer_before_and_looked_for_there():
    """Written out layer by layer."""
    decoder = build()
    queries, references, memory = make_inputs()
    logits, boxes, *_ = decoder(queries, references, memory)
    x, places = queries, references
    for number, layer in enumerate(decoder.layers):
        position = decoder.query_pos(places.sigmoid())
        x = layer(x, position, places.sigmoid(), memory, None)
        places = decoder.bbox_embed[number](x) + places
        torch.testing.assert_close(boxes[number], places.sigmoid())
        torch.testing.assert_close(logits[number], decoder.class_embed[number](x))


def test_a_box_teaches_only_its_own_layer():
    """Its error does not flow into the offsets before it (arXiv:2010.04159, A.4)."""
    decoder = build()
    _, boxes, *_ = decoder(*make_inputs())
    boxes[-1].sum().backward()
    moved = [bool(head.layers[-1].bias.grad.any()) for head in decoder.bbox_embed]
    assert moved == [False, False, True]


def test_queries_of_another_block_change_nothing():
    decoder = build()
    queries, references, memory = make_inputs(queries=8)
    alone = decoder(queries[:, :5], references[:, :5], memory)
    mask = block_mask(torch.tensor([0] * 5 + [1] * 3))
    together = decoder(queries, references, memory, mask)
    for one, two in zip(alone[:2], together[:2], strict=True):
        torch.testing.assert_close(two[:, :, :5], one, rtol=1e-5, atol=1e-6)
    seeing = decoder(queries, references, memory)
    assert not torch.allclose(seeing[0][:, :, :5], alone[0], atol=1e-4)
