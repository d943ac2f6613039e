from __future__ import annotations

import io
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from detrkit.errors import ImageError
from detrkit.ops.images import DecodeTarget, decode_image, decode_reduced, read_image_size
from detrkit.preprocess import resize_image

UNREADABLE = {
    "broken.png": "not an image that Pillow",
    "broken_data_stream.png": "unrecognized data stream",
    "decompression_bomb.gif": "exceeds limit",
    "png_decompression_dos.png": "too large",
    "truncated_end_chunk.png": "Truncated File Read",
    "truncated_image.png": "truncated",
    "truncated_jpeg.jpg": "truncated",
    "unknown_compression_method.png": "not an image that Pillow",
    "zero_width.gif": "not an image that Pillow",
}
RESCALED = ("10ct_32bit_128.tiff", "16bit.cropped.tif", "i_trns.png")
"""Wide gray images, which Pillow cuts off at 255."""


def encode(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format=format, **options)
    return stream.getvalue()


def random_pixels(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(seed)).integers(0, 256, (height, width, 3), dtype=np.uint8)


def images_only(shared_data: Path) -> list[Path]:
    folder = shared_data / "bad_inputs" / "09_images_only"
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "LICENSE")


def test_readable_odd_images_equal_pillow(shared_data: Path) -> None:
    compared = 0
    for path in images_only(shared_data):
        if path.name in UNREADABLE or path.name in RESCALED:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = np.array(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
        image = decode_image(path)
        assert image.dtype == torch.uint8
        np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), expected, err_msg=path.name)
        assert read_image_size(path) == expected.shape[:2], path.name
        compared += 1
    assert compared == 23


@pytest.mark.parametrize(("name", "reason"), UNREADABLE.items())
def test_unreadable_image_is_named(shared_data: Path, name: str, reason: str) -> None:
    path = shared_data / "bad_inputs" / "09_images_only" / "pillow" / name
    with pytest.raises(ImageError, match=reason) as caught:
        decode_image(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("cut", [1, 2, 20, 500, 3000])
def test_every_cut_off_jpeg_is_an_error(progressive: bool, cut: int) -> None:
    data = encode(Image.fromarray(random_pixels(60, 80)), "JPEG", progressive=progressive)
    with pytest.raises(ImageError):
        decode_image(data[:-cut])


def test_png_named_jpg_with_alpha_drops_alpha(shared_data: Path) -> None:
    for path in sorted((shared_data / "bad_inputs" / "08_voc_png_named_jpg_rgba" / "images").iterdir()):
        expected = np.array(Image.open(path))[:, :, :3]
        np.testing.assert_array_equal(decode_image(path).permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(orientation: int, format: str) -> None:
    picture = Image.fromarray(random_pixels(24, 40))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(picture, format, exif=exif)
    expected = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    np.testing.assert_array_equal(decode_image(data).permute(1, 2, 0).numpy(), expected)
    assert read_image_size(data) == ((40, 24) if orientation >= 5 else (24, 40))


def test_exif_behind_the_pixels_of_a_png_is_found(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(Image.fromarray(random_pixels(10, 20)), exif=exif)
    start = data.index(b"eXIf") - 4
    length = int.from_bytes(data[start : start + 4], "big") + 12
    end = data.index(b"IEND") - 4
    path = tmp_path / "late.png"
    path.write_bytes(data[:start] + data[start + length : end] + data[start : start + length] + data[end:])
    assert decode_image(path).shape == (3, 20, 10)
    assert read_image_size(path) == (20, 10)
    assert read_image_size(path.read_bytes()) == (20, 10)


def test_16_bit_gray_is_scaled_by_its_full_range() -> None:
    ramp = np.linspace(0, 65535, 256 * 4).astype(np.uint16).reshape(32, 32)
    image = decode_image(encode(Image.fromarray(ramp)))
    expected = np.rint(ramp / 257).astype(np.uint8)
    for channel in image:
        np.testing.assert_array_equal(channel.numpy(), expected)


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0.0, 0.5, 1.0], [0, 128, 255]), ([0.0, 127.0, 255.0], [0, 127, 255]), ([-2.0, 0.0, 2.0], [0, 128, 255])],
)
def test_32_bit_floats_are_scaled_by_their_range(values: list[float], expected: list[int]) -> None:
    image = decode_image(encode(Image.fromarray(np.array([values], dtype=np.float32)), "TIFF"))
    assert image[0, 0].tolist() == expected


def test_first_frame_of_an_animation_is_taken() -> None:
    frames = [Image.new("RGB", (8, 6), color) for color in ("red", "blue")]
    image = decode_image(encode(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert image[:, 0, 0].tolist() == [255, 0, 0]


def test_missing_and_empty_files_say_so(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"gone\.jpg: there is no such file"):
        decode_image(tmp_path / "gone.jpg")
    (tmp_path / "empty.jpg").touch()
    for read in (decode_image, read_image_size):
        with pytest.raises(ImageError, match=r"empty\.jpg.*the file is empty"):
            read(tmp_path / "empty.jpg")
    with pytest.raises(ImageError, match="cannot be decoded"):
        decode_image(tmp_path)
    with pytest.raises(ImageError, match="image of 4 bytes: not an image"):
        decode_image(b"text")


def smooth_pixels(height: int, width: int) -> np.ndarray:
    """A picture of soft shapes, as a photograph is; noise would be lost at any fraction of its size."""
    small = Image.fromarray(random_pixels(12, 16))
    return np.array(small.resize((width, height), Image.Resampling.BICUBIC))


def psnr(first: torch.Tensor, second: torch.Tensor) -> float:
    return float(-10 * torch.log10(((first.double() - second.double()) / 255).square().mean()))


@pytest.mark.parametrize(
    ("size_hw", "short", "expected"),
    [
        ((400, 600), 201, (400, 600)),
        ((400, 600), 200, (200, 300)),
        ((401, 601), 200, (201, 301)),  # sides are rounded up
        ((800, 1000), 101, (200, 250)),
        ((800, 1000), 100, (100, 125)),
        ((1700, 1999), 100, (213, 250)),  # an eighth at most
        ((90, 60), 100, (90, 60)),
    ],
)
def test_jpeg_is_decoded_at_the_smallest_fraction_that_is_enough(size_hw, short, expected) -> None:
    data = encode(Image.fromarray(smooth_pixels(*size_hw)), "JPEG", quality=95)
    image, whole_hw = decode_reduced(data, DecodeTarget(short))
    assert (image.shape[-2], image.shape[-1]) == expected
    assert whole_hw == size_hw
    assert decode_reduced(data, None)[0].shape[1:] == size_hw


def test_reduced_decoding_gives_nearly_the_same_picture() -> None:
    data = encode(Image.fromarray(smooth_pixels(801, 1203)), "JPEG", quality=95)
    reduced, _ = decode_reduced(data, DecodeTarget(150))
    assert reduced.shape == (3, 201, 301)
    exact = resize_image(decode_image(data), (150, 225))
    assert psnr(exact, resize_image(reduced, (150, 225))) > 35
    assert psnr(exact, resize_image(reduced.flip(2), (150, 225))) < 25  # what a wrong picture would give


@pytest.mark.parametrize("orientation", range(1, 9))
def test_reduced_decoding_applies_exif_orientation(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(smooth_pixels(240, 400)), "JPEG", quality=95, exif=exif)
    image, whole_hw = decode_reduced(data, DecodeTarget(100))
    assert whole_hw == read_image_size(data) == tuple(decode_image(data).shape[1:])
    assert tuple(image.shape[1:]) == (whole_hw[0] // 2, whole_hw[1] // 2)
    assert psnr(resize_image(decode_image(data), (50, 60)), resize_image(image, (50, 60))) > 30


def test_truncated_jpeg_is_an_error_at_a_fraction_too() -> None:
    data = encode(Image.fromarray(random_pixels(400, 600)), "JPEG")
    with pytest.raises(ImageError, match="truncated"):
        decode_reduced(data[:-500], DecodeTarget(100))


def test_bound_of_the_long_side_makes_less_enough() -> None:
    assert DecodeTarget(800).short_side((1000, 4000)) == 800
    assert DecodeTarget(800, 1333).short_side((1000, 4000)) == 333
    assert DecodeTarget(800, 1333, 600).short_side((1000, 4000)) == 600


def test_an_image_of_too_many_pixels_is_read_as_the_message_advises(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("L", (400, 300)).save(path)
    program = """
import importlib, os, sys; from PIL import Image; Image.MAX_IMAGE_PIXELS = 1000
import detrkit.ops.images as images; from detrkit.errors import ImageError
try: images.decode_image(sys.argv[1])
except ImageError as error: print(error)
os.environ["DETRKIT_MAX_IMAGE_PIXELS"] = "120000"  # as another process would find it
print(tuple(importlib.reload(images).decode_image(sys.argv[1]).shape))
"""
    command = [sys.executable, "-c", program, str(path)]
    message, shape = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    assert "DETRKIT_MAX_IMAGE_PIXELS=NUMBER" in message
    assert "120000 pixels" in message
    assert shape == "(3, 300, 400)"
