"""Exported models with masks against torch: pixels of masks and panoptic pictures, alone and in padded batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from detrkit.api.export import export, export_bundle
from detrkit.classes import ClassMap
from detrkit.config import update_config
from detrkit.detectors.bundle import bundle_detector
from detrkit.detectors.detector import Detector
from detrkit.errors import UsageError
from detrkit.export.graph import GraphOptions
from detrkit.families.recipes import preset_config
from detrkit.runtimes.bundle import read_bundle
from detrkit.runtimes.compare import compared
from detrkit.runtimes.engines import make_engine
from detrkit.runtimes.predictor import load
from detrkit.runtimes.verify import verify_bundle
from tests.support.exporting import detect_alone, random_detector, real_pictures

pytest.importorskip("onnxscript", reason="the extra export is not installed")
pytest.importorskip("onnxruntime", reason="the extra export is not installed")
pytestmark = pytest.mark.slow

CLASSES = ClassMap(("cat", "dog", "sky"), (17, 18, 187), logit_index=(2, 0, 3), num_labels=5, stuff=(2,))
SIZES = {"model.hidden_dim": 32, "model.num_heads": 2, "model.ffn_dim": 32, "model.num_queries": 12}
SIZES |= {"model.encoder_layers": 1, "model.decoder_layers": 2, "transforms.eval_size": 96}
# scores are spread over 0 to 1, so that several queries take part
MERGED = {"masks.panoptic_score": 0.3}


def masked_detector(preset: str = "detr-tiny-panoptic", **changes: object) -> Detector:
    config = update_config(preset_config(preset), {**SIZES, **MERGED, **changes})
    detector = random_detector(config, CLASSES)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in detector.model.named_parameters():
        if "bbox_attention" in name and parameter.ndim == 2:  # or all queries look everywhere alike
            with torch.no_grad():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return detector


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> tuple[Detector, Path]:
    detector = masked_detector()
    path = tmp_path_factory.mktemp("bundle") / "masks.zip"
    export_bundle(detector, path, cold_start=False)
    return detector, path


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    sizes = [(60, 80), (80, 60), (20, 300), (300, 20), (1, 1), (97, 131)]
    blocks = [random.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3)) for height, width in sizes]
    large = [np.kron(block, np.ones((8, 8, 1))).astype(np.uint8) for block in blocks]
    return [image[:height, :width] for image, (height, width) in zip(large, sizes, strict=True)]


def compare(detector, path, runtime, pictures, batch=4) -> tuple[float, int, int]:
    """Return the greatest share of pixels that differs in a mask, masks, and differing panoptic pixels."""
    predictor, greatest, count, panoptic = load(path, runtime, threads=1), 0.0, 0, 0
    expected = detect_alone(detector, pictures)
    for start in range(0, len(pictures), batch):
        some = pictures[start : start + batch]
        sizes = [picture.shape[:2] for picture in some]
        together = predictor.detect_together([predictor.resize(picture) for picture in some], sizes)
        for one, *others in zip(expected[start : start + batch], predictor.detect(some), together, strict=True):
            best = np.arange(compared(one))
            torchs, segments = one.take(best).masks.pixels(), detector.panoptic(one)
            for other in others:
                assert np.array_equal(other.class_ids[best], one.class_ids[best])
                differing = (other.take(best).masks.pixels() != torchs).mean(axis=(1, 2))
                greatest, count = max(greatest, differing.max(initial=0)), count + len(differing)
                panoptic += int((predictor.panoptic(other).ids != segments.ids).sum())
    return greatest, count, panoptic


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_masks_and_panoptic_pictures_are_torchs_alone_and_in_batches(runtime, exported, pictures):
    pytest.importorskip(runtime)
    detector, path = exported
    greatest, count, panoptic = compare(detector, path, runtime, pictures)
    assert count >= 60
    assert greatest < 1e-3
    assert panoptic <= 3
    segments = [detector.panoptic(one) for one in detect_alone(detector, pictures)]
    assert max(len(one.class_ids) for one in segments) >= 2  # or nothing was compared


def test_a_bundle_is_a_detector_with_masks(exported, pictures):
    detector, path = exported
    ours, [name] = bundle_detector(path), ["masks"]
    assert read_bundle(path).manifest.graphs[1].outputs == name
    assert (ours.has_masks, ours.masks) == (True, detector.masks)
    for mine, theirs in zip(
        ours.stream(pictures[:2], 0.3, batch_size=2, panoptic=True),
        detector.stream(pictures[:2], 0.3, batch_size=2, panoptic=True),
        strict=True,
    ):
        assert mine.detections.mask.shape == theirs.detections.mask.shape
        assert (mine.detections.mask != theirs.detections.mask).mean() < 1e-3
        assert (mine.panoptic.ids != theirs.panoptic.ids).sum() <= 2
    [boxes] = ours.stream(pictures[:1], 0.3, masks=False)
    assert boxes.detections.mask is None


def test_verify_repeats_masks(exported):
    found = verify_bundle(exported[1], threads=1, cold_start=False)
    assert found.passed
    assert found.total.mask < 1e-3


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_real_pictures_of_many_sizes_give_torchs_masks(runtime, exported, shared_data, capsys):
    pytest.importorskip(runtime)
    greatest, count, panoptic = compare(*exported, runtime, real_pictures(shared_data, 20))
    with capsys.disabled():
        print(f"\nmasks in {runtime}: {greatest:.2e} of a picture, {count} masks, {panoptic} panoptic pixels")
    assert greatest < 1e-3


@pytest.mark.parametrize(
    "options",
    [
        {"layout": "openvino"},
        {"shape_hw": (192, 192), "batch": 2, "axes": "nchw"},
        {"weights": "16"},
        {"opset": 18},
        {"changes": {"model.padding": "published"}},
        {"changes": {"preset": "detr-tiny-two-stage-panoptic"}},
        {"changes": {"preset": "detr-tiny-two-stage-panoptic"}, "layout": "openvino"},
        {"changes": {"masks.stuff": "union", "masks.threshold": 0.7}},
    ],
)
def test_every_option_gives_masks(options, tmp_path):
    detector = masked_detector(**options.pop("changes", {}))
    export(detector, tmp_path / "bundle", **options)
    found = verify_bundle(tmp_path / "bundle", threads=1, cold_start=False)
    assert found.passed, found.lines()


@pytest.mark.parametrize("raw", [True, False])
def test_one_graph_for_other_programs_gives_the_masks_of_all_queries(raw, tmp_path):
    detector = masked_detector()
    sizes = torch.tensor([[96, 80], [64, 70]])
    images = torch.randint(0, 256, (2, 96, 80, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    if raw:
        export_bundle(detector, tmp_path / "bundle", options=GraphOptions(raw=True))
        engine = make_engine(read_bundle(tmp_path / "bundle").read_graph(), threads=1)
        given = {"images": images.numpy(), "sizes": sizes.numpy(), "original_sizes": sizes.numpy()}
        masks = engine.run(given)[2]
    else:
        program = torch.export.load(export(detector, tmp_path / "model.pt2", layout="program")).module()
        masks = program(images, sizes, sizes.clone())[3].detach().numpy()
    for row, (height, width) in enumerate(sizes.tolist()):
        alone = images[row, :height, :width].permute(2, 0, 1)
        outputs = detector.stages.forward(detector.stages.preprocess([alone]))
        [found] = detector.stages.postprocess(outputs, [(height, width)])
        expected = outputs.masks.all()[0].detach().numpy() if raw else found.masks.logits()
        assert np.allclose(masks[row, :, : expected.shape[1], : expected.shape[2]], expected, atol=1e-3)


def test_what_would_be_wrong_of_masks_is_refused(exported, tmp_path):
    detector, path = exported
    with pytest.raises(UsageError, match="TensorRT does not build"):
        export(detector, tmp_path / "bundle", layout="tensorrt")
    with pytest.raises(UsageError, match="INT8 is not measured"):
        export(path, tmp_path / "int8", int8=True, data=tmp_path)
    assert not list(tmp_path.iterdir())
