from __future__ import annotations

import torch
from torch import Tensor

from detrkit.nn.box_decoder import BoxDecoder, BoxDecoderLayer, Memory
from detrkit.nn.deformable import valid_shares
from detrkit.nn.denoising import block_mask

DIM, SLOTS, QUERIES = 16, 3, 5
SHAPES = [(6, 8), (3, 4)]


def build(layers: int = 3, dropout: float = 0.0) -> BoxDecoder:
    torch.manual_seed(0)
    stack = [BoxDecoderLayer(DIM, 2, 32, dropout, len(SHAPES)) for _ in range(layers)]
    return BoxDecoder(stack, DIM, SLOTS)


def make_inputs(images: int = 2, queries: int = QUERIES) -> tuple[Tensor, Tensor, Memory]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(images, sum(h * w for h, w in SHAPES), DIM, generator=generator)
    references = torch.randn(images, queries, 4, generator=generator)
    return torch.randn(images, queries, DIM, generator=generator), references, Memory(tokens, SHAPES, None, None)


def test_boxes_are_offsets_from_the_layer_before_and_looked_for_there():
    """Written out layer by layer."""
    decoder = build()
    queries, references, memory = make_inputs()
    logits, boxes = decoder(queries, references, memory)
    x, places = queries, references
    for number, layer in enumerate(decoder.layers):
        position = decoder.query_pos(places.sigmoid())
        x = layer(x, position, places.sigmoid(), memory, None)
        places = decoder.bbox_embed[number](x) + places
        torch.testing.assert_close(boxes[number], places.sigmoid())
        torch.testing.assert_close(logits[number], decoder.class_embed[number](x))


def test_heads_that_say_nothing_leave_boxes_where_they_are():
    decoder = build()
    for head in decoder.bbox_embed:
        torch.nn.init.zeros_(head.layers[-1].weight)
        torch.nn.init.zeros_(head.layers[-1].bias)
    queries, references, memory = make_inputs()
    _, boxes = decoder(queries, references, memory)
    torch.testing.assert_close(boxes, references.sigmoid().expand(3, -1, -1, -1))


def test_a_box_teaches_only_its_own_layer():
    """Its error does not flow into the offsets before it (arXiv:2010.04159, A.4)."""
    decoder = build()
    _, boxes = decoder(*make_inputs())
    boxes[-1].sum().backward()
    moved = [bool(head.layers[-1].bias.grad.any()) for head in decoder.bbox_embed]
    assert moved == [False, False, True]


def test_queries_of_another_block_change_nothing():
    decoder = build()
    queries, references, memory = make_inputs(queries=8)
    alone = decoder(queries[:, :5], references[:, :5], memory)
    mask = block_mask(torch.tensor([0] * 5 + [1] * 3))
    together = decoder(queries, references, memory, mask)
    for one, two in zip(alone, together, strict=True):
        torch.testing.assert_close(two[:, :, :5], one, rtol=1e-5, atol=1e-6)
    seeing = decoder(queries, references, memory)
    assert not torch.allclose(seeing[0][:, :, :5], alone[0], atol=1e-4)


def test_tokens_on_padding_change_nothing():
    decoder = build()
    queries, references, memory = make_inputs(images=1)
    wide = [(h, w + 4 // (level + 1)) for level, (h, w) in enumerate(SHAPES)]
    parts, mask = [], []
    for part, (h, w), (_, wider) in zip(
        memory.tokens.split([h * w for h, w in SHAPES], 1), SHAPES, wide, strict=True
    ):
        grid = torch.full((1, h, wider, DIM), 99.0)
        grid[:, :, :w] = part.view(1, h, w, DIM)
        padding = torch.ones(1, h, wider, dtype=torch.bool)
        padding[:, :, :w] = False
        parts.append(grid.flatten(1, 2))
        mask.append(padding.flatten(1))
    padding_mask = torch.cat(mask, 1)
    padded = Memory(torch.cat(parts, 1), wide, padding_mask, valid_shares(padding_mask, wide))
    for one, two in zip(decoder(queries, references, memory), decoder(queries, references, padded), strict=True):
        torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-5)
