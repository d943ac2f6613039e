"""Detector.predict, its batches and its contracts."""

import numpy as np
import pytest
from PIL import Image

from detrkit.detectors.interop import sv
from detrkit.errors import ImageError, UsageError
from detrkit.threshold_file import ClassThreshold, ScoreScale, Thresholds

QUERIES = 6


def same(one, other):
    return (
        np.allclose(one.xyxy, other.xyxy, atol=1e-4)
        and np.allclose(one.confidence, other.confidence, atol=1e-5)
        and np.array_equal(one.class_id, other.class_id)
    )


def test_one_image_gives_one_detections_object_with_everything_in_it(detector, make_image):
    found = detector.predict(make_image(), threshold=0.0)
    assert isinstance(found, sv.Detections)
    assert len(found) == QUERIES
    assert found.xyxy.dtype == np.float32
    assert found.confidence.dtype == np.float32
    assert (np.diff(found.confidence) <= 0).all()
    names = np.array(["cat", "dog", "gnu"])
    assert found.data["class_name"].tolist() == names[found.class_id].tolist()
    assert found.data["category_id"].tolist() == np.array([17, 18, 44])[found.class_id].tolist()
    assert found.metadata == {"source": "image", "size_hw": (40, 60)}
    assert found.xyxy[0] == pytest.approx([15, -2, 45, 42], abs=1e-4)  # original pixels, not clipped


def test_threshold_keeps_scores_equal_to_it(detector, make_image):
    image = make_image(3)
    everything = detector.predict(image, threshold=0.0)
    limit = float(everything.confidence[2])
    found = detector.predict(image, threshold=limit)
    assert len(found) == (everything.confidence >= limit).sum() >= 3
    nothing = detector.predict(image, threshold=1.0)
    assert (nothing.xyxy.shape, nothing.data["class_name"].shape) == ((0, 4), (0,))


def per_class(*scores, scale=None):
    names, categories = ("cat", "dog", "gnu"), (17, 18, 44)
    entries = (ClassThreshold(*entry) for entry in zip(names, categories, scores, strict=True))
    return Thresholds(tuple(entries), 0.5, scale=scale or ScoreScale())


def test_thresholds_by_class_keep_each_class_from_its_own_score_on(detector, make_image):
    image = make_image(3)
    everything = detector.predict(image, threshold=0.0)
    present = np.unique(everything.class_id)
    assert len(present) == 1
    limits = [1.0, 1.0, 1.0]
    limits[present[0]] = float(everything.confidence[2])
    found = detector.predict(image, per_class(*limits))
    assert same(found, everything[everything.confidence >= everything.confidence[2]])
    limits[present[0]], limits[present[0] - 1] = 1.0, 0.0
    assert len(detector.predict(image, per_class(*limits))) == 0


def test_calibrated_scores_are_what_is_shown_and_compared(detector, make_image):
    image = make_image(3)
    scale = ScoreScale(2.0, -1.0)
    everything = detector.predict(image, threshold=0.0)
    shown = scale(everything.confidence)
    found = detector.predict(image, per_class(*[float(shown[3])] * 3, scale=scale))
    assert 3 < len(found) < QUERIES or len(np.unique(shown)) < QUERIES
    np.testing.assert_allclose(found.confidence, shown[: len(found)], rtol=1e-6)
    assert found.confidence.dtype == np.float32


def test_a_detectors_own_thresholds_hold_unless_another_is_given(detector, make_image):
    image = make_image(3)
    before = detector.predict(image)
    assert len(before) == len(detector.predict(image, threshold=0.5))
    detector.thresholds = per_class(1.0, 1.0, 1.0)
    assert len(detector.predict(image)) == 0
    assert len(next(detector.stream([image])).detections) == 0
    assert len(detector.predict(image, threshold=0.0)) == QUERIES


def test_lists_give_lists_in_order(detector, make_image, folder):
    assert detector.predict([]) == []
    assert len(detector.predict([make_image()])) == 1
    names = [found.metadata["source"].rsplit("/")[-1] for found in detector.predict(folder)]
    assert names == ["a.PNG", "b.png", "c.png"]


@pytest.mark.parametrize("batch_size", [1, 2, 7, 100])
def test_batch_size_changes_nothing(batch_size, detector, make_image):
    rng = np.random.default_rng(0)
    images = [make_image(seed, tuple(rng.integers(20, 90, 2))) for seed in range(23)]
    expected = [detector.predict(image, threshold=0.0) for image in images]
    found = detector.predict(images, threshold=0.0, batch_size=batch_size)
    assert all(same(one, other) for one, other in zip(expected, found, strict=True))


def test_images_of_one_size_are_not_masked_and_batches_are_full(detector, model, make_image):
    detector.predict([make_image(seed) for seed in range(10)], batch_size=4)
    assert model.calls == [((4, 3, 32, 48), False, False)] * 2 + [((2, 3, 32, 48), False, False)]


def test_padding_is_hidden_by_the_mask(detector, model, make_image):
    images = [make_image(0, (40, 60)), make_image(1, (40, 64))]
    together = detector.predict(images, threshold=0.0, batch_size=2)
    assert model.calls == [((2, 3, 32, 51), True, False)]
    for image, found in zip(images, together, strict=True):
        assert same(found, detector.predict(image, threshold=0.0))


def test_broken_images_of_folders_are_skipped_with_a_warning_or_reported_to_the_caller(detector, folder, caplog):
    (folder / "b.png").write_bytes(b"broken")
    assert len(detector.predict(folder)) == 2
    assert "b.png" in caplog.text
    caplog.clear()
    reported = []
    found = detector.predict([folder, "nothere.jpg"], on_error=lambda name, error: reported.append((name, error)))
    assert len(found) == 2
    assert [name.rsplit("/")[-1] for name, _ in reported] == ["b.png", "nothere.jpg"]
    assert all(isinstance(error, ImageError) for _, error in reported)
    assert "b.png" not in caplog.text


def test_broken_images_named_by_hand_are_errors(detector, folder):
    (folder / "b.png").write_bytes(b"broken")
    with pytest.raises(ImageError, match=r"b\.png"):
        detector.predict(folder / "b.png")
    with pytest.raises(ImageError, match=r"b\.png"):
        detector.predict(folder / "b.png", on_error=lambda name, error: None)
    with pytest.raises(ImageError, match=r"b\.png"):
        detector.predict([folder / "a.PNG", folder / "b.png"])


def test_arguments_out_of_range_are_refused(detector, make_image):
    for name, value in (("threshold", 1.5), ("threshold", -1), ("batch_size", 0)):
        with pytest.raises(UsageError, match=f"{name} is {value}"):
            detector.predict(make_image(), **{name: value})


def test_stream_hands_images_along_and_may_be_left_early(detector, folder):
    stream = detector.stream(folder, threshold=0.0, batch_size=1, keep_images=True)
    first = next(stream)
    stream.close()
    assert first.source.endswith("a.PNG")
    assert np.array_equal(first.image, np.array(Image.open(folder / "a.PNG")))
    assert len(first.detections) == QUERIES
    assert all(item.image is None for item in detector.stream(folder))


def test_stream_reads_a_bounded_number_of_images_ahead(detector, make_image, tmp_path):
    for number in range(60):
        Image.fromarray(make_image(number)).save(tmp_path / f"{number:02}.png")
    stream = detector.stream(tmp_path, batch_size=2)
    next(stream)
    (tmp_path / "59.png").unlink()  # not read yet, so it is missed when its turn comes
    assert sum(1 for _ in stream) == 58
