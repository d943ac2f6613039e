"""Images of 16 and 32 bits of a narrow range keep their gray levels, and it is said where not."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detrkit.config import Config, PixelRange, update_config
from detrkit.curation.check import check_data
from detrkit.data.coco import CocoDataset
from detrkit.data.pixel_range import measured_range
from detrkit.data.read import read_coco
from detrkit.errors import ConfigError
from detrkit.ops.images import decode_image, narrow_range_lines, read_wide
from detrkit.ops.sources import list_sources

THERMAL = np.linspace(28300, 29000, 32 * 32).astype(np.uint16).reshape(32, 32)


def tiff(values: np.ndarray, no_data: str | None = None) -> bytes:
    content = io.BytesIO()
    options = {} if no_data is None else {"tiffinfo": {42113: no_data}}
    Image.fromarray(values).save(content, "TIFF", **options)
    return content.getvalue()


def levels(source: bytes | Path, pixel_range: PixelRange) -> int:
    return len(decode_image(source, pixel_range)[0].unique())


@pytest.mark.parametrize(("pixel_range", "least"), [("full", 2), ("percentile", 250), ((28300.0, 29000.0), 250)])
def test_the_range_decides_how_many_gray_levels_are_left(pixel_range: PixelRange, least: int) -> None:
    assert least <= levels(tiff(THERMAL), pixel_range) <= least + 6


def test_a_fixed_range_cuts_off_what_lies_outside_of_it() -> None:
    values = np.array([[100, 200, 300, 400, 500]], np.uint16)
    assert decode_image(tiff(values), (200.0, 400.0))[0, 0].tolist() == [0, 0, 128, 255, 255]
    eight_bits = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert (decode_image(tiff(eight_bits), (200.0, 400.0))[0].numpy() == eight_bits).all()


@pytest.mark.parametrize(
    ("marker", "tag"), [(-9999.0, None), (float("nan"), None), (7.0, "7"), (-9999.0, "-9999\0")]
)
def test_values_for_no_data_do_not_count(marker: float, tag: str | None) -> None:
    values = np.linspace(20, 300, 1024, dtype=np.float32).reshape(32, 32)
    values[:4] = marker
    pixels = decode_image(tiff(values, tag))[0].numpy()
    assert not pixels[:4].any()
    assert pixels[4:].max() == 255
    assert len(np.unique(pixels)) > 200
    wide = read_wide(tiff(values, tag))
    assert wide is not None
    assert wide.no_data == (None if np.isnan(marker) else marker)


def data_set(root: Path, count: int = 4) -> tuple[Path, Path]:
    (root / "images").mkdir(parents=True)
    images = []
    for number in range(count):
        Image.fromarray(THERMAL + 10 * number).save(root / "images" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 32, "height": 32})
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "thing"}]}
    (root / "train.json").write_text(json.dumps(content))
    return root / "train.json", root / "images"


def test_the_check_warns_with_the_levels_that_are_left(tmp_path: Path) -> None:
    data_set(tmp_path)
    [finding] = [one for one in check_data(tmp_path).findings if one.kind == "image_narrow_range"]
    assert finding.count == 4
    assert finding.severity == "warning"
    assert "4 gray levels are left of 701 values" in str(finding)
    assert "data.pixel_range" in finding.fault.advice


def test_whole_range_and_masks_are_no_fault(tmp_path: Path) -> None:
    data_set(tmp_path)
    whole = np.linspace(0, 65535, 1024).astype(np.uint16).reshape(32, 32)
    for number, values in enumerate([whole, (whole > 9) * np.uint16(65535), whole // 257 * 257, whole * 0]):
        Image.fromarray(values).save(tmp_path / "images" / f"{number}.png")
    assert not check_data(tmp_path).count("image_narrow_range")


def test_the_range_of_a_data_set_is_one_for_all_its_images(tmp_path: Path) -> None:
    index, _ = read_coco(*data_set(tmp_path))
    measured = measured_range("data", index, tmp_path / "images")
    assert measured == pytest.approx((28300, 29030), abs=2)
    files = sorted((tmp_path / "images").iterdir())
    assert narrow_range_lines(files, measured) == []
    [line] = narrow_range_lines(files, "full")
    assert all(word in line for word in ("0.png", "data.pixel_range=full", "4 gray levels", "percentile"))
    # and eight bits have none
    for file in files:
        Image.new("L", (32, 32)).save(file)
    assert measured_range("data", index, tmp_path / "images") == "full"
    assert narrow_range_lines(files, "full") == []


def test_training_evaluation_and_prediction_read_alike(tmp_path: Path) -> None:
    index, _ = read_coco(*data_set(tmp_path))
    pixel_range = (28300.0, 29000.0)
    dataset = CocoDataset(index, tmp_path / "images", None, pixel_range=pixel_range)
    file = tmp_path / "images" / "2.png"
    read = [dataset.read_sample(2)[0], dataset.read_image(2)]
    for source in (file, Image.open(file)):
        read.append(list_sources(source)[0][0].read(pixel_range))
    assert all((one == read[0]).all() for one in read)
    assert len(read[0].unique()) > 200


def test_the_setting_is_checked_and_survives_its_file() -> None:
    config = update_config(Config(), {"data.pixel_range": [28000, 29500]})
    assert config.data.pixel_range == (28000.0, 29500.0)
    assert Config.model_validate(config.model_dump(mode="json")) == config
    for wrong in ([5, 5], "half", [1]):
        with pytest.raises(ConfigError, match="pixel_range"):
            update_config(Config(), {"data.pixel_range": wrong})
