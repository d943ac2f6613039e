"""Panoptic quality against panopticapi's definition, written anew here, on real pictures and hard cases."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from detrkit.config import Config
from detrkit.data.masks import ObjectMasks, segment_text
from detrkit.data.split import read_split
from detrkit.evaluation.coco import BoxEvaluator, ImageResults
from detrkit.evaluation.panoptic import EXCUSED, FOUND, LOSSES, PanopticMetrics, match_segments, measure_files
from detrkit.evaluation.truth import CocoTruth, ground_truth_from_index
from detrkit.masks import encode_mask


class Picture(NamedTuple):
    """Number of each pixel's segment, 0 for none, and class id and crowd flag by number."""

    ids: np.ndarray
    segments: Mapping[int, tuple[int, bool]]


def reference_pq(pairs: Iterable[tuple[Picture, Picture]], classes: int) -> np.ndarray:
    """Summed IoU, segments found, false and missed by class, ``[C, 4]``, as panopticapi counts."""
    totals = np.zeros((classes, 4))
    for truth, found in pairs:
        size = {"truth": Counter(), "found": Counter(), "both": Counter()}
        codes, counts = np.unique(truth.ids * 1000 + found.ids, return_counts=True)
        for pair, count in zip((divmod(code, 1000) for code in codes.tolist()), counts.tolist(), strict=True):
            for name, key in (("truth", pair[0]), ("found", pair[1]), ("both", pair)):
                size[name][key] += count
        matched_truth, matched_found = set(), set()
        for (number, other), shared in size["both"].items():
            if number == 0 or other == 0 or truth.segments[number][1]:
                continue
            if truth.segments[number][0] != found.segments[other][0]:
                continue
            void = size["both"].get((0, other), 0)
            iou = shared / (size["truth"][number] + size["found"][other] - shared - void)
            if iou > 0.5:
                totals[truth.segments[number][0], :2] += iou, 1
                matched_truth.add(number)
                matched_found.add(other)
        crowds = {class_id: number for number, (class_id, crowd) in truth.segments.items() if crowd}
        for number, (class_id, crowd) in truth.segments.items():
            totals[class_id, 3] += number not in matched_truth and not crowd
        for other, (class_id, _) in found.segments.items():
            ignored = size["both"].get((0, other), 0) + size["both"].get((crowds.get(class_id), other), 0)
            if other not in matched_found and ignored / size["found"][other] <= 0.5:
                totals[class_id, 2] += 1
    return totals


def averages(totals: np.ndarray, stuff: Iterable[int]) -> dict[str, float]:
    """PQ, SQ and RQ of all classes, things and stuff."""
    kinds = {"": set(range(len(totals))), "_st": set(stuff)}
    kinds["_th"] = kinds[""] - kinds["_st"]
    numbers = {}
    for suffix, members in kinds.items():
        each = []
        for class_id in sorted(members):
            iou, found, false, missed = totals[class_id]
            if found + false + missed:
                whole = found + (false + missed) / 2
                each.append((iou / whole, iou / found if found else 0.0, found / whole))
        means = np.mean(each, axis=0) if each else (-1.0, -1.0, -1.0)
        numbers.update(zip((f"PQ{suffix}", f"SQ{suffix}", f"RQ{suffix}"), means, strict=True))
    return numbers


def results_of(picture: Picture) -> ImageResults:
    """A panoptic picture as evaluation takes it; AP has nothing to measure."""
    numbers = list(picture.segments)
    rle = np.array([encode_mask(picture.ids == number)["counts"] for number in numbers], dtype=object)
    class_ids = np.array([picture.segments[number][0] for number in numbers], dtype=np.int64)
    segments = ImageResults(np.zeros((len(numbers), 4)), np.ones(len(numbers)), class_ids, rle)
    return ImageResults(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64), segments.rle[:0], segments)


def measured(truth: CocoTruth, found: Mapping[int, Picture]) -> tuple[PanopticMetrics, Any]:
    """Numbers, and what became of every segment, of pictures by row."""
    evaluator = BoxEvaluator(truth)
    for row, picture in found.items():
        evaluator.add(int(truth.image_ids[row]), results_of(picture))
    return evaluator.finish_panoptic(), match_segments(*evaluator.segments())


def measured_from_files(
    truth: CocoTruth, known: list[Picture], found: Mapping[int, Picture], folder: Path
) -> PanopticMetrics:
    """The numbers of the same pictures as PNG files, whose ids are other numbers."""
    texts = []
    for name, pictures in (("known", dict(enumerate(known))), ("found", found)):
        for row, picture in pictures.items():
            colors = np.stack([picture.ids, 0 * picture.ids, picture.ids], axis=-1).astype(np.uint8)
            Image.fromarray(colors).save(folder / f"{name}{row}.png", compress_level=1)
    for row, picture in enumerate(known):
        texts += [segment_text(f"known{row}.png", number * 65_537) for number in picture.segments]
    segments = (
        (row, class_id, (str(folder / f"found{row}.png"), number * 65_537))
        for row, picture in found.items()
        for number, (class_id, _) in picture.segments.items()
    )
    return measure_files(dataclasses.replace(truth, masks=ObjectMasks.pack(texts, folder)), segments)


def check(
    truth: CocoTruth, known: list[Picture], found: Mapping[int, Picture], folder: Path | None = None
) -> dict[str, float]:
    """Hold the numbers against the definition, and the reasons against the numbers."""
    metrics, matches = measured(truth, found)
    if folder is not None:
        again = measured_from_files(truth, known, found, folder)
        assert dict(again.values) == pytest.approx(dict(metrics.values), abs=1e-12)
        for one, other in zip(again.per_class, metrics.per_class, strict=True):
            assert vars(one) == pytest.approx(vars(other), abs=1e-12)
    nothing = [Picture(np.zeros_like(picture.ids), {}) for picture in known]
    pairs = [(picture, found.get(row, nothing[row])) for row, picture in enumerate(known)]
    totals = reference_pq(pairs, len(truth.class_map))
    expected = averages(totals, truth.class_map.stuff)
    for name, value in expected.items():
        assert metrics.values[name] == pytest.approx(value, abs=1e-9), name
    for entry, (iou, right, false, missed) in zip(metrics.per_class, totals, strict=True):
        assert (entry.found, entry.false, entry.missed) == (right, false, missed), entry
        whole = right + (false + missed) / 2
        assert pytest.approx(iou / whole if whole else -1.0, abs=1e-9) == entry.PQ
    # the reasons: PQ and what is lost are all there is
    if expected["PQ"] >= 0:
        assert 1 - sum(matches.losses().values()) == pytest.approx(expected["PQ"], abs=1e-9)
    assert int((matches.found_loss == FOUND).sum()) == totals[:, 1].sum()
    assert int((matches.found_loss > FOUND).sum()) == totals[:, 2].sum()
    assert int((matches.object_loss > FOUND).sum()) == totals[:, 3].sum()
    return {**expected, **matches.losses()}


def pictures_of(truth: CocoTruth, count: int) -> list[Picture]:
    """The annotated pictures of the first images, decoded mask by mask."""
    found = []
    for row in range(count):
        rows = np.flatnonzero(truth.image_rows == row)
        assert truth.masks is not None
        height, width = truth.sizes_hw[row].tolist()
        ids = np.zeros((height, width), dtype=np.int64)
        for number, mask in enumerate(truth.masks.decode(rows, (height, width)), start=1):
            ids[mask] = number
        entries = zip(truth.class_ids[rows].tolist(), truth.iscrowd[rows].tolist(), strict=True)
        found.append(Picture(ids, dict(enumerate(entries, start=1))))
    return found


def present(picture: Picture) -> Picture:
    """The same without segments that have no pixel left, and without crowd flags: what a program may find."""
    seen = set(np.unique(picture.ids).tolist())
    return Picture(picture.ids, {n: (kind, False) for n, (kind, _) in picture.segments.items() if n in seen})


def perfect(picture: Picture, stuff: set[int]) -> Picture:
    return picture


def shifted(picture: Picture, stuff: set[int]) -> Picture:
    moved = np.zeros_like(picture.ids)
    moved[12:, 9:] = picture.ids[:-12, :-9]
    return Picture(moved, picture.segments)


def merged(picture: Picture, stuff: set[int]) -> Picture:
    """All things of a class are one."""
    first = {class_id: number for number, (class_id, _) in reversed(picture.segments.items())}
    table = np.array([0, *(first[class_id] for class_id, _ in picture.segments.values())])
    return Picture(table[picture.ids], picture.segments)


def split(picture: Picture, stuff: set[int]) -> Picture:
    """Whatever crosses the middle of the picture is two."""
    half, more = picture.ids.shape[1] // 2, len(picture.segments)
    ids = picture.ids.copy()
    ids[:, half:] = np.where(ids[:, half:] > 0, ids[:, half:] + more, 0)
    return Picture(ids, {**picture.segments, **{n + more: entry for n, entry in picture.segments.items()}})


def missing(picture: Picture, stuff: set[int]) -> Picture:
    return Picture(np.where(picture.ids % 2, picture.ids, 0), picture.segments)


def over_void(picture: Picture, stuff: set[int]) -> Picture:
    """What is not labelled is found as one segment more, and the first segment reaches into it."""
    new = len(picture.segments) + 1
    ids = np.where(picture.ids, picture.ids, new)
    ids[: len(ids) // 2][ids[: len(ids) // 2] == new] = 1
    return Picture(ids, {**picture.segments, new: (min(stuff), False)})


def in_crowds(picture: Picture, stuff: set[int]) -> Picture:
    """Crowd regions are cut into stripes of their own class and of another."""
    ids, segments = picture.ids.copy(), dict(picture.segments)
    for number, (class_id, crowd) in picture.segments.items():
        if crowd:
            for stripe in range(4):
                new = max(segments) + 1
                ids[:, stripe::4][ids[:, stripe::4] == number] = new
                segments[new] = (class_id if stripe else 0, False)
    return Picture(ids, segments)


def other_class(picture: Picture, stuff: set[int]) -> Picture:
    return Picture(picture.ids, {n: ((kind + n % 2) % 133, False) for n, (kind, _) in picture.segments.items()})


CHANGES = (perfect, shifted, merged, split, missing, over_void, in_crowds, other_class)


def real_truth(shared_data: Path, name: str, count: int) -> CocoTruth:
    part = read_split(Config(), name, shared_data / "coco_panoptic_yolo", masks=True, stuff=True, pixels=False)
    return ground_truth_from_index(part.index.select(np.arange(min(count, len(part.index)))))


@pytest.mark.parametrize(
    ("name", "count"), [("val", 3), *(pytest.param(name, 48, marks=pytest.mark.slow) for name in ("val", "train"))]
)
def test_real_pictures_in_every_kind_of_error_are_measured_as_panopticapi_does(
    shared_data: Path, tmp_path: Path, name: str, count: int
):
    truth = real_truth(shared_data, name, count)
    stuff = set(truth.class_map.stuff)
    known = pictures_of(truth, count)
    numbers = {
        change.__name__: check(
            truth, known, {row: present(change(one, stuff)) for row, one in enumerate(known)}, tmp_path
        )
        for change in CHANGES
    }
    assert numbers["perfect"]["PQ"] == 1
    for change, loss in {"missing": "missed", "other_class": "class"}.items():
        assert max(LOSSES, key=lambda kind: numbers[change][kind]) == loss, change
    assert numbers["shifted"]["boundary"] > 0
    assert numbers["merged"]["merged"] > 0
    assert numbers["split"]["split"] > 0


class ArrayMasks:
    """Masks of annotations as arrays, to stand for those of a file."""

    def __init__(self, pixels: list[np.ndarray]):
        self.pixels = pixels

    def select(self, rows: np.ndarray) -> ArrayMasks:
        return ArrayMasks([self.pixels[row] for row in rows.tolist()])

    def encode(self, rows: np.ndarray, size_hw: tuple[int, int], _unlisted: Any) -> list[dict[str, Any]]:
        return [encode_mask(self.pixels[row]) for row in rows.tolist()]


def truth_of(pictures: list[Picture], names: str = "abcs", stuff: tuple[int, ...] = (3,)) -> CocoTruth:
    """Annotations of pictures; the last class is stuff."""
    from detrkit.classes import ClassMap

    entries = [
        (row, class_id, crowd, picture.ids == number)
        for row, picture in enumerate(pictures)
        for number, (class_id, crowd) in picture.segments.items()
    ]
    rows, class_ids, crowds, masks = ([entry[i] for entry in entries] for i in range(4))
    return CocoTruth(
        image_ids=np.arange(1, len(pictures) + 1),
        sizes_hw=np.array([picture.ids.shape for picture in pictures]),
        image_rows=np.array(rows, dtype=np.int64),
        class_ids=np.array(class_ids, dtype=np.int64),
        boxes_xywh=np.zeros((len(rows), 4)),
        area=np.array([mask.sum() for mask in masks], dtype=np.float64),
        iscrowd=np.array(crowds, dtype=bool),
        class_map=ClassMap(tuple(names), tuple(range(10, 10 + len(names))), stuff=stuff),
        masks=ArrayMasks(masks),  # type: ignore[arg-type]
    )


def strips(*widths_and_numbers: tuple[int, int]) -> np.ndarray:
    return np.repeat([number for _, number in widths_and_numbers], [width for width, _ in widths_and_numbers])[
        None
    ].repeat(4, axis=0)


HARD = {
    "two crowd regions of a class, of which the last counts": (
        Picture(strips((10, 1), (10, 2), (20, 3)), {1: (0, True), 2: (0, True), 3: (1, False)}),
        Picture(strips((8, 1), (2, 0), (8, 2), (22, 3)), {1: (0, False), 2: (0, False), 3: (1, False)}),
    ),
    "a crowd region of another class excuses nothing": (
        Picture(strips((20, 1), (20, 2)), {1: (0, True), 2: (1, False)}),
        Picture(strips((20, 1), (20, 2)), {1: (1, False), 2: (1, False)}),
    ),
    "a crowd region found whole is neither right nor wrong": (
        Picture(strips((20, 1), (20, 2)), {1: (0, True), 2: (3, False)}),
        Picture(strips((20, 1), (20, 2)), {1: (0, False), 2: (3, False)}),
    ),
    "half in void is an error, more is none": (
        Picture(strips((10, 1), (20, 0), (10, 2)), {1: (0, False), 2: (1, False)}),
        Picture(strips((5, 0), (10, 1), (10, 0), (9, 2), (6, 3)), {1: (2, False), 2: (2, False), 3: (1, False)}),
    ),
    "void and crowd together": (
        Picture(strips((10, 1), (10, 0), (20, 2)), {1: (0, True), 2: (1, False)}),
        Picture(strips((6, 0), (14, 1), (20, 2)), {1: (0, False), 2: (1, False)}),
    ),
    "an IoU of one half is no match": (
        Picture(strips((20, 1), (20, 2)), {1: (0, False), 2: (3, False)}),
        Picture(strips((10, 1), (30, 2)), {1: (0, False), 2: (3, False)}),
    ),
    "nothing annotated": (Picture(strips((40, 0)), {}), Picture(strips((40, 1)), {1: (0, False)})),
    "nothing found": (Picture(strips((40, 1)), {1: (0, False)}), Picture(strips((40, 0)), {})),
    "only a crowd region, and nothing found": (
        Picture(strips((40, 1)), {1: (0, True)}),
        Picture(strips((40, 0)), {}),
    ),
    "an annotated segment that has no pixel": (
        Picture(strips((40, 1)), {1: (0, False), 2: (1, False)}),
        Picture(strips((40, 1)), {1: (0, False)}),
    ),
    "neither": (Picture(strips((40, 0)), {}), Picture(strips((40, 0)), {})),
}


@pytest.mark.parametrize("case", HARD)
def test_hard_cases_are_measured_as_panopticapi_does(case: str, tmp_path: Path):
    known, found = HARD[case]
    if "no pixel" in case:  # hotcoco takes such a one for an error, and it is measured mask by mask
        with pytest.raises(ValueError, match="not in the mask"):
            measured_from_files(truth_of([known]), [known], {0: found}, tmp_path)
        check(truth_of([known]), [known], {0: found})
    else:
        check(truth_of([known]), [known], {0: found}, tmp_path)


def test_all_hard_cases_in_one_set_and_an_image_without_a_picture():
    known = [known for known, _ in HARD.values()]
    found = {row: picture for row, (_, picture) in enumerate(HARD.values())}
    del found[1]  # its segments are missed
    check(truth_of(known), known, found)


def test_every_reason_is_told():
    known = Picture(
        strips((10, 1), (10, 2), (20, 3), (10, 4), (10, 5), (10, 6), (10, 0), (10, 7)),
        {1: (0, False), 2: (0, False), 3: (1, False), 4: (2, False), 5: (1, False), 6: (2, False), 7: (0, True)},
    )
    found = Picture(
        strips((20, 1), (10, 2), (10, 3), (9, 4), (1, 0), (10, 5), (3, 6), (2, 8), (15, 0), (10, 7)),
        {1: (0, 0), 2: (1, 0), 3: (1, 0), 4: (2, 0), 5: (0, 0), 6: (2, 0), 7: (0, 0), 8: (3, 0)},
    )
    _, matches = measured(truth_of([known]), {0: found})
    told = ["merged", "merged", "split", "boundary", "class", "misplaced"]
    assert [LOSSES[code] for code in matches.object_loss.tolist()[:-1]] == told
    told = ["merged", "split", "split", "boundary", "class", "misplaced"]
    assert [LOSSES[code] for code in matches.found_loss.tolist()[:6]] == told
    assert matches.found_loss.tolist()[6:] == [EXCUSED, LOSSES.index("false")]
    assert matches.object_loss[-1] == EXCUSED


def test_processes_that_share_the_images_give_the_same_numbers():
    known, found = zip(*HARD.values(), strict=True)
    truth = truth_of(list(known))
    together, first, second = (BoxEvaluator(truth) for _ in range(3))
    for row, picture in enumerate(found):
        results = results_of(picture)
        # each segment is a detection, too
        own = (results.segments or results)._replace(segments=results.segments)
        for evaluator in (together, (first, second)[row % 2]):
            evaluator.add(row + 1, own)
    BoxEvaluator(truth).add_packed(BoxEvaluator(truth).packed())  # a process without images
    first.add_packed(second.packed())
    assert {"mask_AP", "PQ"} < set(first.finish_all())
    assert first.finish_all() == together.finish_all()
    assert first.masks().tolist() == together.masks().tolist()
