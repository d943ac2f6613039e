"""Whatever detects, evaluated with everything that explains it."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from detrkit.api.evaluate import SplitPictures, evaluate
from detrkit.config import DataConfig
from detrkit.curation.synthetic import write_synthetic
from detrkit.data.split import read_split
from detrkit.evaluation.coco import ImageResults
from detrkit.evaluation.truth import ground_truth_from_index


@pytest.fixture
def split(tmp_path):
    return read_split(
        DataConfig(), "val", write_synthetic(tmp_path / "data", train_images=1, val_images=5, size=64)
    )


class Oracle:
    """Says what is annotated, and cannot be timed."""

    name, kind, stages, max_detections, settings = "oracle", "test", None, 100, ""
    has_masks = has_stuff = False

    def __init__(self, split):
        self.class_map = split.index.class_map

    def bind(self, _split):
        return self

    def detect(self, split, *, batch_size=None, progress=None, change=None):
        truth = ground_truth_from_index(split.index)
        for row, image_id in enumerate(truth.image_ids.tolist()):
            here = truth.image_rows == row
            yield image_id, ImageResults(truth.boxes_xywh[here], np.ones(here.sum()), truth.class_ids[here])
            progress(row + 1)


def test_a_target_is_measured_and_explained(split):
    told = []
    root = split.files.annotations.parent.parent
    evaluation = evaluate(
        Oracle(split), root, resamples=20, latency_images=3, progress=lambda *step: told.append(step)
    )
    assert evaluation["AP"] == pytest.approx(1.0)
    assert evaluation.metrics.images == 5
    assert evaluation.latency is None
    assert evaluation.origin.model == "oracle"
    assert evaluation.failures.file_names == [split.index.file_name(row) for row in range(5)]
    assert ("evaluating", 5, 5) in told


def test_pictures_are_in_the_order_of_evaluation_and_in_the_annotations_pixels(split):
    shuffled = type(split)(split.files, split.index.select(np.array([3, 0, 4, 1, 2])), split.report)
    pictures = SplitPictures(shuffled)
    assert pictures.file_names == [split.index.file_name(row) for row in range(5)]
    file = split.files.images / pictures.file_names[1]
    read = pictures.read(1)
    assert read.dtype == np.uint8
    assert read.shape == (64, 64, 3)
    assert np.abs(read.astype(int) - np.asarray(Image.open(file).convert("RGB"))).mean() < 3
    Image.open(file).resize((32, 32)).save(file)
    assert pictures.read(1).shape == (64, 64, 3)


def test_pictures_that_cannot_be_read_are_none(split):
    pictures = SplitPictures(split)
    (split.files.images / pictures.file_names[0]).unlink()
    (split.files.images / pictures.file_names[1]).write_bytes(b"no image")
    pictures.file_names.clear()
    assert pictures.read(0) is None
    assert pictures.read(1) is None
    assert pictures.read(2) is not None


def test_names_that_lead_out_of_the_folder_are_not_followed(split, tmp_path):
    import dataclasses

    from detrkit.data.index import pack_names

    Image.new("RGB", (64, 64)).save(tmp_path / "secret.jpg")
    name_bytes, name_offsets = pack_names(["../../secret.jpg"] * 5)
    index = dataclasses.replace(split.index, name_bytes=name_bytes, name_offsets=name_offsets)
    assert SplitPictures(dataclasses.replace(split, index=index)).read(0) is None
