"""Masks of a bundle: only those asked for are computed, the same alone and in any batch, in every runtime."""

import msgspec
import numpy as np
import pytest

from detrkit import runtime
from detrkit.detectors.bundle import bundle_detector
from detrkit.errors import BundleError
from detrkit.runtimes.bundle import Manifest, read_bundle
from detrkit.runtimes.verify import verify_bundle
from tests.support.bundles import bright_and_dark, bundle_files, masked_files, noise, resealed, write_files
from tests.unit.runtimes.test_predictor import PICTURES, need

RUNTIMES = ("onnxruntime", "openvino")


@pytest.fixture
def bundle(place):
    return write_files(place, masked_files())


@pytest.mark.parametrize("name", RUNTIMES)
def test_masks_are_those_of_each_picture_alone(name, bundle):
    need(name)
    predictor = runtime.load(bundle, name, threads=1)
    for batch_size in (1, 5):
        for image, found in zip(PICTURES, predictor.predict(PICTURES, 0, batch_size), strict=True):
            assert np.array_equal(found.mask, bright_and_dark(image))
    for image, found in zip(PICTURES, bundle_detector(f"{bundle}@{name}").predict(PICTURES, 0.0, 5), strict=True):
        assert np.array_equal(found.mask, bright_and_dark(image))


def test_only_masks_that_are_asked_for_are_computed(bundle, monkeypatch):
    predictor = runtime.load(bundle, threads=1)
    asked = []
    run = predictor.mask_engine.run
    monkeypatch.setattr(
        predictor.mask_engine, "run", lambda inputs: (asked.append(len(inputs["queries"])), run(inputs))[1]
    )
    [found] = predictor.detect([noise((40, 60))])
    assert asked == []
    taken = found.take(found.scores >= 0.4)
    assert len(taken.scores) == 1
    assert len(taken.masks.encode()) == 1
    assert asked == [1]


def test_the_panoptic_picture_is_merged_as_the_bundle_says(bundle):
    predictor = runtime.load(bundle, threads=1)
    image = np.full((64, 96, 3), 200, np.uint8)
    image[:, :40] = 100
    [found] = predictor.detect([image])
    merged = predictor.panoptic(found)
    assert merged.class_ids.tolist() == [1, 0]
    assert merged.areas.tolist() == [64 * 56, 64 * 40]
    assert np.array_equal(merged.ids == 1, image[..., 0] == 200)
    assert predictor.panoptic(found.take(np.arange(0))).ids.max() == 0
    detector = bundle_detector(bundle)
    assert detector.has_masks
    assert np.array_equal(detector.panoptic(found).ids, merged.ids)


@pytest.mark.parametrize("name", RUNTIMES)
def test_verify_compares_masks(name, tmp_path):
    need(name)
    files = masked_files()
    found = verify_bundle(write_files(tmp_path / "bundle", files), name, threads=1, cold_start=False)
    assert found.passed
    assert found.total.mask == 0
    assert "masks within" in "\n".join(found.lines())

    def swap(content):
        content["golden"][0]["masks"].reverse()

    changed = {**files, "bundle.json": resealed(files["bundle.json"], swap)}
    found = verify_bundle(write_files(tmp_path / "other.zip", changed), name, threads=1, cold_start=False)
    assert not found.passed
    assert found.total.missing == 2


def test_what_older_detrkits_read_says_nothing_of_masks():
    boxes = bundle_files(version=1)["bundle.json"]
    assert b'"masks"' not in boxes
    assert msgspec.json.decode(masked_files()["bundle.json"], type=Manifest).version == 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda content: content.pop("masks"), "graph of masks"),
        (lambda content: content["graphs"].pop(), "no graph of them"),
        (lambda content: content["golden"][0]["masks"].append("0"), "several lengths"),
        (lambda content: content["masks"].update(threshold=1), "threshold"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(change, says, tmp_path):
    files = masked_files()
    files["bundle.json"] = resealed(files["bundle.json"], change)
    with pytest.raises(BundleError, match=says):
        read_bundle(write_files(tmp_path / "bundle", files))


@pytest.mark.parametrize(
    ("output", "value"),
    [(3, 2), (4, 1000), (4, 0), (5, None), (6, None)],
    ids=["query", "cell", "no cell", "few", "map"],
)
def test_a_graph_that_gives_no_maps_of_masks_is_refused(output, value, bundle, monkeypatch):
    predictor = runtime.load(bundle, threads=1)
    run = predictor.engine.run

    def changed(inputs):
        outputs = run(inputs)
        outputs[output] = outputs[output][:, :1] if value is None else np.full_like(outputs[output], value)
        return outputs[:6] if output == 6 else outputs

    monkeypatch.setattr(predictor.engine, "run", changed)
    with pytest.raises(BundleError, match="masks could be made of"):
        predictor.detect([noise((40, 60))])


def test_masks_that_are_no_numbers_are_refused(bundle, monkeypatch):
    predictor = runtime.load(bundle, threads=1)
    run = predictor.mask_engine.run
    monkeypatch.setattr(predictor.mask_engine, "run", lambda inputs: [run(inputs)[0] * np.nan])
    with pytest.raises(BundleError, match="no finite numbers"):
        predictor.predict(noise((40, 60)), 0)
