"""What the design promises of the real model: accumulation, padding, export, one synchronisation a step."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision import tv_tensors

from detrkit.classes import ClassMap
from detrkit.config import Config, update_config
from detrkit.data.loader import collate
from detrkit.detectors.load import make_detector
from detrkit.distributed import make_fabric
from detrkit.families.build import build_model
from detrkit.families.recipes import preset_config
from detrkit.training import step
from detrkit.training.loop import build_state
from detrkit.training.session import Run, TrainingSetup
from detrkit.training.step import sync_step_plan, train_step
from detrkit.types import Batch, Target
from tests.unit.families.conftest import small_config

CLASSES = ClassMap(("cat", "dog", "bird"), (3, 5, 9))
SIZES_HW = ((64, 96), (96, 64), (70, 70), (64, 64), (90, 64), (64, 80), (80, 72), (96, 96))
OBJECTS = (2, 1, 0, 0, 3, 0, 1, 4)  # the second pair of images has none at all
# Each makes the host wait for the device: it needs a value, or a size that depends on values.
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique", "_unique2"}


def tiny_config() -> Config:
    changes = {"model": {"dropout": 0.0, "backbone_norm": "group", "frozen_stages": 0}}
    return update_config(preset_config("detr-tiny"), changes)


def resnet_config() -> Config:
    model = small_config(dropout=0.0, backbone_norm="group", frozen_stages=0).model_dump()
    return update_config(preset_config("detr-r18"), {"model": model})


def aided_config() -> Config:
    """With every aid that is the same each time; noised objects are drawn anew in every micro-batch."""
    aids = {"dense": "aligned", "groups": 2, "denoising": 0}
    return update_config(tiny_config(), {"aids": aids, "loss.class_targets": "iou"})


def two_stage_config() -> Config:
    model = {"backbone_norm": "group", "hidden_dim": 64, "ffn_dim": 64}
    return update_config(preset_config("detr-tiny-two-stage"), {"model": model, "aids.denoising": 0})


def realtime_config() -> Config:
    model = {"backbone": "tiny", "backbone_norm": "group", "hidden_dim": 64, "ffn_dim": 64, "encoder_dim": 32}
    model["decoder_layers"] = 2
    return update_config(preset_config("rtdetr-nano"), {"model": model, "aids.denoising": 0})


def distribution_config() -> Config:
    """Without what are means over whatever a batch holds."""
    model = {"backbone": "tiny", "backbone_norm": "group", "hidden_dim": 64, "ffn_dim": 64, "encoder_dim": 64}
    model["decoder_layers"] = 2
    return update_config(
        preset_config("dfine-n"),
        {"model": model, "aids.denoising": 0, "loss.union": False, "loss.ddf_weight": 0, "train.init": "none"},
    )


BUILDERS = [two_stage_config, tiny_config, resnet_config, realtime_config, distribution_config]
CONFIGS = pytest.mark.parametrize("make_config", BUILDERS)
IN_TRAINING = pytest.mark.parametrize("make_config", [*BUILDERS, aided_config])


def sample(row: int) -> tuple[Tensor, Target]:
    generator = torch.Generator().manual_seed(row)
    height, width = SIZES_HW[row]
    corners = torch.rand(OBJECTS[row], 2, 2, generator=generator).sort(1).values.flatten(1)
    boxes = corners * torch.tensor([width, height, width, height])
    boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2] + 4)
    target = Target(
        boxes=tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)),
        labels=torch.randint(len(CLASSES), (OBJECTS[row],), generator=generator),
        area=torch.ones(OBJECTS[row]),
        iscrowd=torch.zeros(OBJECTS[row], dtype=torch.bool),
        image_id=row,
        orig_size_hw=(height, width),
    )
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)
    return tv_tensors.Image(image), target


def make_batch(*rows: int) -> Batch:
    batch = collate([sample(row) for row in rows])
    assert batch is not None
    return batch


def make_run(config: Config) -> Run:
    """As much of a run as a step needs."""
    torch.manual_seed(0)
    config = update_config(config, {"train": {"device": "cpu", "clip_norm": 0.0, "seed": 0}})
    fabric = make_fabric(config.train)
    built = build_model(config, CLASSES)
    state, wrapped = build_state(config, built.model, fabric)
    wrapped.train()
    needed = {
        "setup": TrainingSetup(built, built.family.build_criterion(config, CLASSES), cast("Any", None)),
        "fabric": fabric,
        "model": wrapped,
        "phase": contextlib.nullcontext,
        "state": state,
        "saved_at_s": float("inf"),
        "total_steps": 10,
    }
    others = {field.name: None for field in dataclasses.fields(Run) if field.name not in needed}
    return Run(**cast("Any", {**others, **needed}))


@IN_TRAINING
def test_accumulated_micro_batches_give_the_gradient_of_the_whole_batch(
    make_config: Callable[[], Config], monkeypatch: pytest.MonkeyPatch
):
    gradients: list[dict[str, Tensor]] = []
    losses: list[Tensor] = []
    apply = step.apply_gradients

    def gradients_of(micro_batches: list[Batch]) -> dict[str, Tensor]:
        run = make_run(make_config())

        def keep(*arguments: Any) -> Tensor:
            named = run.state.module.named_parameters()
            gradients.append({name: p.grad.clone() for name, p in named if p.grad is not None})
            return apply(*arguments)

        monkeypatch.setattr(step, "apply_gradients", keep)
        train_step(run, micro_batches, sync_step_plan(run, micro_batches))
        losses.append(run.state.window.rows()[0, run.state.window.names.index("loss")])
        return gradients[-1]

    whole = gradients_of([make_batch(*range(8))])
    parts = gradients_of([make_batch(row, row + 1) for row in range(0, 8, 2)])
    assert whole.keys() == parts.keys()
    assert len(whole) > 50
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=0)
    for name in [name for name in whole if "sampling_offsets" in name]:
        # at first they point exactly at centres of cells, where interpolation bends and a rounding error decides
        assert (parts.pop(name) - (gradient := whole.pop(name))).norm() <= 0.2 * gradient.norm(), name
    scale = torch.stack([gradient.norm() for gradient in whole.values()]).norm()
    difference = torch.stack([(parts[name] - whole[name]).norm() for name in whole]).norm()
    assert difference / scale < 1e-5
    for name, gradient in whole.items():  # every tensor by itself too; those near zero against the whole
        assert (parts[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-6 * scale, name


@CONFIGS
def test_an_image_gives_the_same_detections_alone_and_beside_a_bigger_one(make_config: Callable[[], Config]):
    torch.manual_seed(0)
    config = update_config(make_config(), {"transforms": {"eval_size": 64, "max_size": 200}})
    detector = make_detector(build_model(config, CLASSES))
    images = [image.as_subclass(Tensor) for image, _ in (sample(0), sample(1), sample(7))]
    together = detector.predict_batch(images)
    for image, beside in zip(images, together, strict=True):
        (alone,) = detector.predict_batch([image])
        height, width = image.shape[-2:]
        assert np.abs((alone.boxes_xyxy - beside.boxes_xyxy) / [width, height, width, height]).max() < 1e-4
        assert np.abs(alone.scores - beside.scores).max() < 1e-4


class Waits(TorchDispatchMode):
    """Counts the operations that make the host wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name == "index" and any(index is not None and index.dtype == torch.bool for index in args[1]):
            name = "nonzero"  # an index by a mask is one
        if name in WAITING:
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


def inputs(padded: bool) -> tuple[Tensor, Tensor | None]:
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    padding_mask = torch.zeros(2, 64, 96, dtype=torch.bool)
    padding_mask[1, :, 70:] = True
    return (images * ~padding_mask[:, None], padding_mask) if padded else (images, None)


@CONFIGS
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_forward_asks_the_device_for_nothing(make_config: Callable[[], Config], padded: bool, training: bool):
    model = build_model(make_config(), CLASSES).model.train(training)
    with Waits() as waits:
        model(*inputs(padded))
    assert waits.found == {}


# all are exported elsewhere, to ONNX: in tests/parity/test_export.py, and one by the README
@pytest.mark.slow
@pytest.mark.parametrize("make_config", BUILDERS)
@pytest.mark.parametrize("padded", [False, True])
def test_model_exports_and_gives_the_same_outputs(make_config: Callable[[], Config], padded: bool):
    torch.manual_seed(0)
    model = build_model(make_config(), CLASSES).model.eval()
    arguments = inputs(padded)
    exported = cast("nn.Module", torch.export.export(model, arguments).module())
    with torch.no_grad():
        expected, got = model(*arguments), exported(*arguments)
    torch.testing.assert_close(got.logits, expected.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(got.boxes_cxcywh, expected.boxes_cxcywh, rtol=0, atol=1e-5)


@pytest.fixture
def transfers(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts calls of the methods that bring a tensor to the host."""
    counted: Counter[str] = Counter()

    def count(name: str) -> None:
        original = getattr(Tensor, name)

        def counting(self: Tensor, *args: Any, **kwargs: Any) -> Any:
            counted[name] += 1
            return original(self, *args, **kwargs)

        monkeypatch.setattr(Tensor, name, counting)

    for name in ("cpu", "item", "tolist", "__bool__", "__float__", "__int__", "nonzero"):
        count(name)
    return counted


@IN_TRAINING
@pytest.mark.parametrize(
    ("accumulate", "denoising"),
    [(1, 2), (2, 0), *(pytest.param(*other, marks=pytest.mark.slow) for other in ((1, 0), (2, 2)))],
)
def test_a_step_asks_the_device_once_a_micro_batch(
    make_config: Callable[[], Config], accumulate: int, denoising: int, transfers: Counter[str]
):
    run = make_run(update_config(make_config(), {"aids.denoising": denoising}))
    micro_batches = [make_batch(0, 1, 2), make_batch(4, 5)][:accumulate]
    train_step(run, micro_batches, sync_step_plan(run, micro_batches))  # makes the state
    transfers.clear()
    with Waits() as waits:
        train_step(run, micro_batches, sync_step_plan(run, micro_batches))
    assert transfers == {"cpu": accumulate}  # the matcher's costs
    assert waits.found == {}
    transfers.clear()
    assert len(run.state.window.rows()) == 2
    assert transfers["cpu"] == 1  # and one to log a whole window
