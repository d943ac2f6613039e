"""Stages of detrkit's models: batches, precision, modes and devices."""

import pytest
import torch

from detrkit.detectors.stages import ModelStages
from detrkit.errors import UsageError
from detrkit.hardware import resolve_device
from detrkit.preprocess import Preprocessing
from detrkit.types import Batch, GroundTruth, Outputs
from tests.unit.detectors.conftest import CLASS_MAP, QUERIES, fake_postprocess

CPU = torch.device("cpu")


def make_batch(image_ids, sizes_hw):
    height, width = max(size[0] for size in sizes_hw), max(size[1] for size in sizes_hw)
    images = torch.zeros(len(sizes_hw), 3, height, width, dtype=torch.uint8)
    padding_mask = torch.ones(len(sizes_hw), height, width, dtype=torch.bool)
    for row, (image_id, (h, w)) in enumerate(zip(image_ids, sizes_hw, strict=True)):
        generator = torch.Generator().manual_seed(image_id)
        images[row, :, :h, :w] = torch.randint(0, 255, (3, h, w), generator=generator)
        padding_mask[row, :h, :w] = False
    truth = GroundTruth(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), (0,) * len(sizes_hw))
    files = tuple((2 * h, 2 * w) for h, w in sizes_hw)
    return Batch(images, padding_mask, truth, tuple(sizes_hw), tuple(image_ids), files)


@pytest.fixture
def stages_of(config):
    def make(model, precision="32"):
        preprocessing = Preprocessing.from_config(config.transforms)
        return ModelStages(model, CLASS_MAP, preprocessing, fake_postprocess, CPU, precision)

    return make


def detect(stages, batch):
    found = stages.postprocess(stages.forward(stages.preprocess_batch(batch)), batch.orig_sizes_hw)
    return dict(zip(batch.image_ids, found, strict=True))


def test_a_batch_gives_detections_in_original_pixels(model, stages_of):
    found = detect(stages_of(model), make_batch([5, 9], [(8, 6), (8, 10)]))
    found |= detect(stages_of(model), make_batch([2], [(4, 4)]))
    assert [len(one.scores) for one in found.values()] == [QUERIES] * 3
    assert found[2].boxes_xyxy[0].tolist() == pytest.approx([2, -0.4, 6, 8.4], abs=1e-5)
    assert [call[1] for call in model.calls] == [True, False]


def test_a_loaded_batch_and_its_images_one_by_one_are_the_same_input(model, stages_of):
    batch, stages = make_batch([5, 9], [(8, 6), (12, 10)]), stages_of(model)
    images = [part.images[0] for part in batch.split(1)]
    for one, other in zip(stages.preprocess(images), stages.preprocess_batch(batch), strict=True):
        assert torch.equal(one, other)


def test_modes_and_gradients_return(model, stages_of):
    model.train()
    model.frozen.eval()
    detect(stages_of(model), make_batch([1, 2], [(4, 4)] * 2))
    assert model.calls[-1][2] is False
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    assert model.training
    assert not model.frozen.training


@pytest.mark.parametrize("precision", ["bf16", "16"])
def test_low_precision_outputs_are_float32_and_close(precision, stages_of):
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(3, 4, 3)
    seen = []

    class Small(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, images, padding_mask):
            features = self.layer(images).mean((2, 3))
            seen.append(features.dtype)
            return Outputs(features[None, :, None], features[None, :, None])

    batch = make_batch([1], [(16, 16)])
    both = [stages_of(Small()), stages_of(Small(), precision)]
    exact, fast = (stages.forward(stages.preprocess_batch(batch)) for stages in both)
    assert seen == [torch.float32, {"bf16": torch.bfloat16, "16": torch.float16}[precision]]
    assert fast.logits.dtype == torch.float32
    # bf16 keeps 8 bits of mantissa
    assert torch.allclose(exact.logits, fast.logits, atol=0.03)


def test_unknown_precision_and_device_are_refused(model, stages_of):
    with pytest.raises(UsageError, match="precision is '8'"):
        detect(stages_of(model, "8"), make_batch([1], [(4, 4)]))
    with pytest.raises(UsageError, match="gpu7"):
        resolve_device("gpu7")
    assert resolve_device("cpu") == CPU
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="no CUDA device"):
            resolve_device("cuda")
