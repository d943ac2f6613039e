"""Masks in pixels and panoptic pictures, against what the published code does step by step."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from detrkit.classes import ClassMap, SizeHW
from detrkit.detections import ImageDetections, MaskedDetections, name_detections
from detrkit.families.detr.model import build_detr
from detrkit.families.postprocess import postprocess
from detrkit.masks import ImageMasks, PanopticSegments, encode_ids, encode_mask, segments_info
from tests.parity.conftest import padded_batch
from tests.unit.families.conftest import small_config

STUFF = frozenset({0, 1})


def smooth_maps(count: int, size_hw: SizeHW, seed: int) -> np.ndarray:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, count, 4, 5, generator=generator) * 4
    return functional.interpolate(coarse, size_hw, mode="bicubic")[0].numpy()


def make(maps: np.ndarray, seen_hw: SizeHW, size_hw: SizeHW, seed: int = 0) -> MaskedDetections:
    count = len(maps)
    generator = np.random.default_rng(seed)
    scores = np.sort(generator.uniform(0.5, 1, count))[::-1].astype(np.float32)
    found = ImageDetections(np.zeros((count, 4), np.float32), scores, generator.integers(0, 4, count))
    cells = (maps.shape[1], maps.shape[2])
    queries = generator.permutation(count)
    masks = ImageMasks(lambda asked: maps[asked], queries, cells, seen_hw, seen_hw, size_hw)
    return MaskedDetections.join(found, masks)


def published_merge(found: MaskedDetections, maps: np.ndarray, threshold: float) -> tuple[np.ndarray, list[int]]:
    """Classes by pixel and areas of segments, by the steps of the published code's description."""
    keep = found.scores > threshold
    order = np.argsort(found.masks.queries[keep])
    classes = found.class_ids[keep][order].tolist()
    logits = torch.from_numpy(maps[found.masks.queries[keep][order]])
    logits = functional.interpolate(logits[None], found.masks.seen_hw, mode="bilinear")[0]
    of_class = defaultdict(list)
    for number, class_id in enumerate(classes):
        if class_id in STUFF:
            of_class[class_id].append(number)

    def picture(logits: torch.Tensor, joins: bool) -> np.ndarray:
        ids = logits.softmax(0).argmax(0).to(torch.uint8).numpy()
        if joins:
            for same in of_class.values():
                ids[np.isin(ids, same)] = same[0]
        height, width = found.masks.size_hw
        return np.asarray(Image.fromarray(ids).resize((width, height), Image.Resampling.NEAREST))

    ids = picture(logits, True)
    while True:
        areas = [int((ids == number).sum()) for number in range(len(classes))]
        small = [area <= 4 for area in areas]
        if not any(small):
            return np.array(classes)[ids], areas
        logits = logits[~torch.tensor(small)]
        classes = [class_id for class_id, is_small in zip(classes, small, strict=True) if not is_small]
        ids = picture(logits, False)


@pytest.mark.parametrize("size_hw", [(37, 61), (80, 100), (171, 203)], ids=["smaller", "same", "larger"])
@pytest.mark.parametrize("seed", range(4))
def test_panoptic_pictures_are_those_of_the_published_steps(size_hw: SizeHW, seed: int):
    maps = smooth_maps(14, (20, 25), seed)
    found = make(maps, (80, 100), size_hw, seed)
    segments = found.panoptic(STUFF, score=0.6)
    expected, areas = published_merge(found, maps, 0.6)
    np.testing.assert_array_equal(segments.class_ids[segments.ids - 1], expected)
    assert segments.areas.tolist() == areas
    assert segments.ids.shape == size_hw
    assert np.bincount(segments.ids.ravel())[1:].tolist() == areas
    union = found.panoptic(STUFF, score=0.6, union=True)
    assert all((union.class_ids == class_id).sum() <= 1 for class_id in STUFF)


def test_a_union_keeps_the_pixels_of_all_masks_of_a_stuff_class():
    maps = np.full((3, 4, 8), -5.0, dtype=np.float32)
    maps[0, :, :4], maps[1, :, 4:], maps[2] = 5, 5, -4.0  # sky left, sky right, and a thing, faint but at the top
    maps[2, 0] = 6
    masks = ImageMasks(lambda asked: maps[asked], np.arange(3), (4, 8), (4, 8), (4, 8), (4, 8))
    classes, scores = np.array([0, 0, 2]), np.ones(3)
    published = masks.merge(scores, classes, STUFF, min_pixels=4, union=False)
    union = masks.merge(scores, classes, STUFF, min_pixels=4, union=True)
    assert published.areas.tolist() == [12, 20]  # the right of the sky is lost to what is faint
    assert (union.areas.tolist(), union.class_ids.tolist()) == ([24, 8], [0, 2])


def test_small_segments_are_dropped_and_nothing_kept_is_void():
    maps = np.full((2, 4, 8), -5.0, dtype=np.float32)
    maps[0], maps[1, 0, :3] = 1, 5
    masks = ImageMasks(lambda asked: maps[asked], np.arange(2), (4, 8), (4, 8), (4, 8), (4, 8))
    merged = masks.merge(np.ones(2), np.array([2, 3]), STUFF, min_pixels=4, union=False)
    assert (merged.areas.tolist(), merged.class_ids.tolist()) == ([32], [2])
    assert merged.boxes_xywh().tolist() == [[0, 0, 8, 4]]
    nothing = masks.take(np.zeros(2, bool)).merge(np.ones(0), np.ones(0, int), STUFF, min_pixels=4, union=False)
    assert (nothing.ids.max(), len(nothing.class_ids)) == (0, 0)
    assert masks.merge(np.ones(2), np.array([2, 3]), STUFF, min_pixels=99, union=False).ids.max() == 0


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools
def test_instance_masks_are_stretched_before_they_are_cut_off():
    from pycocotools import mask as theirs

    maps = smooth_maps(5, (20, 25), 3)
    found = make(maps, (80, 100), (40, 50))
    stretched = functional.interpolate(torch.from_numpy(maps)[None], (80, 100), mode="bilinear")[0]
    nearest = functional.interpolate(stretched[None], (40, 50), mode="nearest-exact")[0]
    expected = (nearest.sigmoid() > 0.5).numpy()[found.masks.queries]
    pixels = found.masks.pixels()
    assert (pixels != expected).mean() < 1e-4
    assert (found.take(np.array([2, 0])).masks.pixels() == pixels[[2, 0]]).all()
    for mask, encoded in zip(pixels, found.masks.encode(), strict=True):
        assert encoded == encode_mask(mask)
        assert (theirs.decode(encoded) == mask).all()
    named = name_detections(found, ClassMap(tuple("abcd"), (1, 2, 3, 4)))
    assert named.mask is not None
    assert (named.mask == pixels).all()


def test_segments_have_colours_that_can_be_told_apart_and_are_their_ids():
    numbers = np.arange(301, dtype=np.int32).reshape(1, -1)
    segments = PanopticSegments(numbers, np.zeros(300, dtype=np.int64), np.ones(300), np.ones(300, dtype=np.int64))
    colors = segments.colors()[0].astype(int)
    assert (colors @ [1, 256, 65536]).tolist() == [0, *(info["id"] for info in segments_info(segments, [7]))]
    assert len(np.unique(colors, axis=0)) == 301
    assert colors[1:].max(axis=1).min() > 50
    few = colors[:31]
    assert np.abs(few[:, None] - few)[np.triu_indices(31, 1)].max(axis=1).min() > 20


def test_an_image_gets_the_same_masks_alone_and_in_any_batch():
    torch.manual_seed(0)
    config = small_config(masks=True, padding="exact")
    model = build_detr(config, 4).eval().double()  # no rounding: masks of random weights are all but equal
    assert model.bbox_attention is not None
    with torch.no_grad():  # queries that look elsewhere
        model.query_embed.weight.mul_(4)
        model.bbox_attention.q_linear.weight.mul_(5)
    sizes = [(61, 90), (96, 64), (50, 50), (40, 120)]
    orig = [(100, 150), (150, 100), (33, 33), (40, 120)]
    classes = ClassMap(tuple("abcd"), (1, 2, 3, 4))
    images, mask = padded_batch(sizes)
    images = images.double()

    def detect(rows: list[int]) -> list[ImageDetections]:
        height, width = (max(sizes[row][axis] for row in rows) for axis in (0, 1))
        with torch.no_grad():
            outputs = model(images[rows, :, :height, :width], mask[rows, :height, :width])
        return postprocess(outputs, [orig[row] for row in rows], classes)

    together, pairs = detect([0, 1, 2, 3]), detect([0, 1]) + detect([2, 3])
    for row, (four, two) in enumerate(zip(together, pairs, strict=True)):
        [alone] = detect([row])
        pictures = []
        for found in (four, two, alone):
            assert isinstance(found, MaskedDetections)
            pictures.append(found.panoptic(classes.stuff, score=0.0).colors())
            assert pictures[-1].shape == (*orig[row], 3)
        assert (pictures[0] == pictures[2]).all()
        assert (pictures[1] == pictures[2]).all()
        assert len(np.unique(pictures[0])) > 2


@pytest.mark.parametrize("size_hw", [(1, 1), (7, 1), (1, 9), (13, 17), (0, 5)])
def test_masks_of_an_id_map_are_encoded_as_each_by_itself(size_hw: SizeHW):
    generator = np.random.default_rng(0)
    for numbers in (1, 2, 9):
        ids = generator.integers(0, numbers, size_hw, dtype=np.int32) * 70_001
        found = encode_ids(ids)
        assert found == {number: encode_mask(ids == number) for number in np.unique(ids).tolist()}
