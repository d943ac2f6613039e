from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from detrkit.classes import ClassMap
from detrkit.config import LossConfig
from detrkit.losses.criterion import Criterion
from detrkit.losses.matcher import HungarianMatcher
from detrkit.losses.scoring import SOFTMAX, ClassScoring, SigmoidScoring
from detrkit.types import NO_OBJECT, NO_QUERY, DenoisedOutputs, GroundTruth, GroupOutputs, Outputs

CLASSES = ClassMap(("a", "b", "c"), (1, 2, 3))


def make_outputs(layers: int = 2, images: int = 3, queries: int = 6, seed: int = 0) -> Outputs:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(layers, images, queries, 4, generator=generator)
    boxes = torch.rand(layers, images, queries, 4, generator=generator) * 0.5 + 0.2
    return Outputs(logits.requires_grad_(), boxes.requires_grad_())


def make_truth(counts: tuple[int, ...], seed: int = 1) -> GroundTruth:
    generator = torch.Generator().manual_seed(seed)
    total = sum(counts)
    boxes = torch.rand(total, 4, generator=generator) * 0.4 + 0.3
    return GroundTruth(torch.randint(0, 3, (total,), generator=generator), boxes, counts)


def test_the_matching_is_the_cheapest_of_all():
    outputs, truth = make_outputs(layers=2, images=2, queries=5), make_truth((3, 2))
    matcher = HungarianMatcher()
    matches = matcher(outputs, truth, truth.labels)
    costs = matcher.costs(outputs, truth, truth.labels).numpy()
    for layer in range(2):
        for image, (start, count) in enumerate(((0, 3), (3, 2))):
            chosen = matches.images[layer] == image
            pairs = zip(
                matches.objects[layer][chosen].tolist(), matches.queries[layer][chosen].tolist(), strict=True
            )
            found = sum(costs[layer, o, q] for o, q in pairs)
            best = min(
                sum(costs[layer, start + i, q] for i, q in enumerate(queries))
                for queries in itertools.permutations(range(5), count)
            )
            assert found == pytest.approx(best)


def test_costs_that_are_not_finite_are_chosen_last():
    outputs, truth = make_outputs(layers=1, images=1, queries=4), make_truth((2,))
    boxes = outputs.boxes_cxcywh.detach().clone()
    boxes[0, 0, 1] = float("nan")
    boxes[0, 0, 2] = float("inf")
    matches = HungarianMatcher()(Outputs(outputs.logits, boxes), truth, truth.labels)
    assert set(matches.queries[0].tolist()) == {0, 3}


def test_more_objects_than_queries_match_every_query():
    outputs, truth = make_outputs(layers=1, images=1, queries=3), make_truth((5,))
    matches = HungarianMatcher()(outputs, truth, truth.labels)
    assert sorted(matches.queries[0].tolist()) == [0, 1, 2]
    losses = Criterion(LossConfig(), CLASSES, 3)(outputs, truth)
    assert torch.isfinite(losses.total)


@pytest.mark.parametrize("scoring", [SOFTMAX, SigmoidScoring()])
def test_images_without_objects_give_a_class_loss_and_no_box_loss(scoring: ClassScoring):
    outputs, criterion = make_outputs(), Criterion(LossConfig(), CLASSES, 6, scoring=scoring)
    losses, of_one = (criterion(outputs, make_truth(counts)) for counts in ((0, 0, 0), (1, 0, 0)))
    assert losses.terms["l1"].item() == losses.terms["giou"].item() == 0.0
    assert 0.5 < losses.terms["class"] / of_one.terms["class"] < 2
    losses.total.backward()
    assert outputs.logits.grad.abs().sum() > outputs.boxes_cxcywh.grad.abs().sum() == 0


def test_without_aux_only_the_last_layer_counts():
    outputs, truth = make_outputs(layers=3), make_truth((1, 1, 1))
    alone = Outputs(outputs.logits[-1:], outputs.boxes_cxcywh[-1:])
    without = Criterion(LossConfig(aux=False), CLASSES, 6)(outputs, truth).total
    torch.testing.assert_close(without, Criterion(LossConfig(), CLASSES, 6)(alone, truth).total)


class GivenMasks:
    """Maps of the size of the images, for every query."""

    rests = False

    def __init__(self, logits: torch.Tensor):
        self.logits = logits.requires_grad_()
        self.regions = torch.full((3, len(logits), 2), logits.shape[-1])

    def __call__(self, images: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
        return self.logits[images, queries]


def test_objects_without_a_mask_teach_their_box_alone():
    outputs, truth = make_outputs(), make_truth((2, 0, 3))
    truth = dataclasses.replace(truth, masks=torch.rand(5, 8, 8, generator=torch.Generator().manual_seed(3)) > 0.5)

    def learn(*has_mask: bool) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        masks = GivenMasks(torch.randn(3, 6, 8, 8, generator=torch.Generator().manual_seed(4)))
        own = dataclasses.replace(truth, has_mask=has_mask)
        losses = Criterion(LossConfig(), CLASSES, 6)(outputs._replace(masks=masks), own)
        losses.total.backward()
        return {**losses.terms, "total": losses.total.detach()}, masks.logits.grad

    whole, gradient = learn()
    assert (gradient.flatten(2).any(-1).sum(1) == torch.tensor([2, 0, 3])).all()
    for values, other in zip(learn(*[True] * 5), (whole, gradient), strict=True):
        torch.testing.assert_close(values, other, rtol=0, atol=0)
    parts = [learn(True, True, False, False, False), learn(False, False, True, True, True)]
    for name, value in whole.items():
        if name in ("mask", "dice"):
            torch.testing.assert_close(sum(terms[name] for terms, _ in parts), value)
        elif name != "total":
            assert all(torch.equal(terms[name], value) for terms, _ in parts)
    torch.testing.assert_close(parts[0][1] + parts[1][1], gradient)
    assert not parts[0][1][2].any()
    nothing, none = learn(*[False] * 5)
    assert (nothing["mask"], nothing["dice"], none.any()) == (0, 0, False)


def test_labels_go_to_the_slots_of_the_class_map():
    sparse = ClassMap(("a", "b"), (2, 5), logit_index=(2, 5), num_labels=7)
    logits = torch.zeros(1, 1, 2, 8)
    logits[..., 0, 5] = 9.0
    logits[..., 1, 7] = 9.0
    truth = GroundTruth(torch.tensor([1]), torch.tensor([[0.5, 0.5, 0.2, 0.2]]), (1,))
    outputs = Outputs(logits, truth.boxes_cxcywh.expand(1, 1, 2, 4))
    assert Criterion(LossConfig(), sparse, 2)(outputs, truth).terms["class"].item() < 0.01


def make_groups(sets: int = 2, layers: int = 2, images: int = 3, queries: int = 6, seed: int = 5) -> GroupOutputs:
    generator = torch.Generator().manual_seed(seed)
    shape = (layers, images, sets, queries)
    logits = torch.randn(*shape, 4, generator=generator)
    boxes = torch.rand(*shape, 4, generator=generator) * 0.5 + 0.2
    return GroupOutputs(logits.requires_grad_(), boxes.requires_grad_())


def make_denoised(counts: tuple[int, ...], copies: int = 2, layers: int = 2, seed: int = 6) -> DenoisedOutputs:
    """As of :func:`detrkit.nn.denoising.noise_objects`: in each copy every object, then as many of nothing."""
    generator = torch.Generator().manual_seed(seed)
    most = max(counts)
    objects = torch.full((len(counts), copies, 2, most), NO_QUERY)
    start = 0
    for image, count in enumerate(counts):
        objects[image, :, 0, :count] = torch.arange(start, start + count)
        objects[image, :, 1, :count] = NO_OBJECT
        start += count
    queries = copies * 2 * most
    logits = torch.randn(layers, len(counts), queries, 4, generator=generator)
    boxes = torch.rand(layers, len(counts), queries, 4, generator=generator) * 0.5 + 0.2
    return DenoisedOutputs(logits.requires_grad_(), boxes.requires_grad_(), objects.flatten(1), copies)


TARGETS = pytest.mark.parametrize("class_targets", ["hard", "iou", "mal"])


@TARGETS
def test_sets_of_queries_are_matched_one_by_one_and_averaged(class_targets: str):
    outputs, truth, groups = make_outputs(), make_truth((2, 0, 4)), make_groups(sets=3)
    config = LossConfig.model_validate({"class_targets": class_targets, "group_weight": 0.5})
    criterion = Criterion(config, CLASSES, 6)
    found = criterion(outputs._replace(groups=groups), truth)
    own = criterion(outputs, truth)
    one_by_one = [
        criterion(Outputs(groups.logits[:, :, number], groups.boxes_cxcywh[:, :, number]), truth).total
        for number in range(3)
    ]
    mean = torch.stack(one_by_one).mean()
    torch.testing.assert_close(found.terms["groups"], mean.detach(), rtol=1e-5, atol=0)
    torch.testing.assert_close(found.total, own.total + 0.5 * mean, rtol=1e-5, atol=0)
    for name, value in own.layer_terms.items():
        torch.testing.assert_close(found.layer_terms[name], value)
    torch.testing.assert_close(found.terms["class_error"], own.terms["class_error"])
    assert torch.equal(found.last.matched, own.last.matched)


def iou_of(one: list[float], two: list[float]) -> float:
    (ax, ay, aw, ah), (bx, by, bw, bh) = one, two
    width = max(0.0, min(ax + aw / 2, bx + bw / 2) - max(ax - aw / 2, bx - bw / 2))
    height = max(0.0, min(ay + ah / 2, by + bh / 2) - max(ay - ah / 2, by - bh / 2))
    return width * height / (aw * ah + bw * bh - width * height)


def giou_of(one: list[float], two: list[float]) -> float:
    (ax, ay, aw, ah), (bx, by, bw, bh) = one, two
    width = max(ax + aw / 2, bx + bw / 2) - min(ax - aw / 2, bx - bw / 2)
    height = max(ay + ah / 2, by + bh / 2) - min(ay - ah / 2, by - bh / 2)
    union = (aw * ah + bw * bh) / (1 + iou_of(one, two))
    return iou_of(one, two) - (width * height - union) / (width * height)


def test_iou_targets_are_soft_labels():
    """Of a matched query its class shall score the overlap, no-object the rest: cross-entropy with that label."""
    outputs, truth = make_outputs(layers=1), make_truth((2, 0, 3))
    criterion = Criterion(LossConfig(class_targets="iou"), CLASSES, 6)
    matches = criterion.matcher(outputs, truth, truth.labels)
    labels = torch.zeros(3, 6, 4)
    labels[..., 3] = 1.0
    weights = torch.full((3, 6), 0.1)
    for image, query, target in zip(*(part[0].tolist() for part in dataclasses.astuple(matches)[:3]), strict=True):
        overlap = iou_of(outputs.boxes_cxcywh[0, image, query].tolist(), truth.boxes_cxcywh[target].tolist())
        labels[image, query] = 0.0
        labels[image, query, truth.labels[target]] = overlap
        labels[image, query, 3] = 1 - overlap
        weights[image, query] = 1.0
    losses = torch.nn.functional.cross_entropy(
        outputs.logits[0].flatten(0, 1), labels.flatten(0, 1), reduction="none"
    )
    wanted = (losses * weights.flatten()).sum() / weights.sum()
    found = criterion(outputs, truth)
    torch.testing.assert_close(found.terms["class"], wanted.detach(), rtol=1e-5, atol=0)
    hard = Criterion(LossConfig(), CLASSES, 6)(outputs, truth)
    torch.testing.assert_close(found.terms["l1"], hard.terms["l1"])
    assert found.terms["class"] != hard.terms["class"]


def test_iou_targets_move_no_box():
    """Or a box would learn to lie beside its object, where the class is easier."""
    outputs, truth = make_outputs(layers=1), make_truth((2, 0, 3))
    config = LossConfig(class_targets="iou", l1_weight=0, giou_weight=0)
    Criterion(config, CLASSES, 6)(outputs, truth).total.backward()
    assert not outputs.boxes_cxcywh.grad.any()
    assert outputs.logits.grad.any()


@TARGETS
def test_noised_objects_are_given_back_without_matching(class_targets: str):
    """Against a plain loop over queries."""
    counts, copies = (2, 0, 3), 2
    outputs, truth, denoised = make_outputs(), make_truth(counts), make_denoised(counts, copies)
    config = LossConfig.model_validate({"class_targets": class_targets, "denoising_weight": 0.5})
    found = Criterion(config, CLASSES, 6)(outputs._replace(denoised=denoised), truth)
    logs = denoised.logits.log_softmax(-1)
    sums = {"class": 0.0, "l1": 0.0, "giou": 0.0}
    for layer, image in itertools.product(range(2), range(3)):
        for query, target in enumerate(denoised.objects[image].tolist()):
            if target == NO_QUERY:
                continue
            if target == NO_OBJECT:
                sums["class"] -= 0.1 * logs[layer, image, query, 3].item()
                continue
            box = denoised.boxes_cxcywh[layer, image, query].tolist()
            wanted = truth.boxes_cxcywh[target].tolist()
            score = {"hard": 1.0, "iou": iou_of(box, wanted), "mal": iou_of(box, wanted) ** 1.5}[class_targets]
            row = logs[layer, image, query]
            sums["class"] -= score * row[truth.labels[target]].item() + (1 - score) * row[3].item()
            sums["l1"] += sum(abs(a - b) for a, b in zip(box, wanted, strict=True))
            sums["giou"] += 1 - giou_of(box, wanted)
    pairs = copies * sum(counts)  # as many that find nothing, each weighing a tenth
    wanted = sums["class"] / (pairs * 1.1) + 5 * sums["l1"] / pairs + 2 * sums["giou"] / pairs
    assert found.terms["denoising"].item() == pytest.approx(wanted, rel=1e-5)
    own = Criterion(config, CLASSES, 6)(outputs, truth)
    torch.testing.assert_close(found.total, own.total + 0.5 * found.terms["denoising"], rtol=1e-5, atol=0)


def test_all_aids_together_still_ask_the_device_once(monkeypatch: pytest.MonkeyPatch):
    transfers = []
    original = torch.Tensor.cpu
    monkeypatch.setattr(
        torch.Tensor, "cpu", lambda self, *a, **k: transfers.append(self.shape) or original(self, *a, **k)
    )
    for name in ("item", "tolist", "numpy", "__bool__", "__float__", "__int__", "nonzero"):
        method = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda self, *a, _m=method, _n=name, **k: transfers.append(_n) or _m(self, *a, **k)
        )
    counts = (2, 0, 4)
    outputs = make_outputs()._replace(groups=make_groups(), denoised=make_denoised(counts))
    Criterion(LossConfig(class_targets="iou"), CLASSES, 6)(outputs, make_truth(counts))
    assert transfers == [torch.Size([6, 6, 6]), "numpy"]  # two layers of three sets


def test_without_aux_tokens_that_become_queries_are_taught_all_the_same():
    outputs, truth = make_outputs(layers=3), make_truth((2, 0, 3))
    criterion = Criterion(LossConfig(aux=False), CLASSES, 6)
    found = criterion(outputs._replace(proposes=True), truth).total
    outer = Outputs(outputs.logits[[0, 2]], outputs.boxes_cxcywh[[0, 2]])
    torch.testing.assert_close(found, Criterion(LossConfig(), CLASSES, 6)(outer, truth).total)
    found.backward()
    assert [bool(layer.any()) for layer in outputs.logits.grad] == [True, False, True]
