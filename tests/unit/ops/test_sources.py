"""Every way of naming an image."""

import io
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detrkit.errors import DataError, ImageError, UsageError
from detrkit.ops.images import decode_image
from detrkit.ops.sources import list_sources, passed_over, read_windows


def read(source):
    sources, single = list_sources(source)
    assert single
    return sources[0].read()


def test_reversed_and_read_only_arrays_become_channels_first(make_image):
    image = make_image()
    image.flags.writeable = False
    for array in (image, image[:, :, ::-1]):
        tensor = read(array)
        assert tensor.dtype == torch.uint8
        assert np.array_equal(tensor.numpy(), array.transpose(2, 0, 1))


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1)])
def test_gray_arrays_are_repeated(shape):
    gray = np.arange(35, dtype=np.uint8).reshape(shape)
    tensor = read(gray)
    assert tensor.shape == (3, 5, 7)
    assert (tensor == torch.from_numpy(gray.reshape(5, 7))).all()


def test_alpha_is_dropped(make_image):
    image = make_image()
    with_alpha = np.dstack([image, np.zeros(image.shape[:2], np.uint8)])
    assert torch.equal(read(with_alpha), read(image))
    assert torch.equal(read(torch.from_numpy(with_alpha).permute(2, 0, 1)), read(image))


def test_the_same_picture_in_every_form_gives_the_same_pixels(make_image, tmp_path):
    image = make_image()
    path = tmp_path / "image.png"
    Image.fromarray(image).save(path)
    forms = [str(path), path, Image.open(path), Image.fromarray(image), torch.from_numpy(image).permute(2, 0, 1)]
    for form in forms:
        assert torch.equal(read(form), read(image)), type(form)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "I", "F"])
def test_pil_images_of_other_modes_become_rgb_as_their_files_do(mode, make_image, tmp_path):
    if mode == "I;16":
        image = Image.fromarray(np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32))
    else:
        image = Image.fromarray(make_image()).convert(mode)
    path = tmp_path / "image.tif"
    image.save(path)
    assert torch.equal(read(image), decode_image(path))


def test_pil_exif_orientation_is_applied(make_image):
    image = Image.fromarray(make_image())
    exif = image.getexif()
    exif[0x0112] = 6
    content = io.BytesIO()
    image.save(content, format="JPEG", exif=exif)
    assert torch.equal(read(Image.open(content)), decode_image(content.getvalue()))
    assert read(Image.open(content)).shape == (3, 60, 40)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), "float32.*expected a uint8.*255"),
        (np.zeros((4, 4, 3), bool), "dtype bool"),
        (torch.zeros(3, 4, 4), "torch.float32.*expected a uint8"),
        (np.zeros((3, 8, 9), np.uint8), r"\[3, 8, 9\].*transpose\(1, 2, 0\)"),
        (torch.zeros(8, 9, 3, dtype=torch.uint8), r"\[8, 9, 3\].*permute\(2, 0, 1\)"),
        (np.zeros((2, 8, 9, 3), np.uint8), "as a list"),
        (torch.zeros(2, 3, 8, 9, dtype=torch.uint8), "as a list"),
        (np.zeros((8, 9, 2), np.uint8), r"\[8, 9, 2\]"),
        (np.zeros((0, 9, 3), np.uint8), r"\[0, 9, 3\]"),
        (np.zeros(9, np.uint8), r"\[9\]"),
    ],
)
def test_arrays_that_are_no_images_say_what_was_got_and_expected(source, message):
    with pytest.raises(UsageError, match=message):
        read(source)


def test_other_types_are_refused():
    for source in (7, None, {"a": 1}):
        with pytest.raises(UsageError, match="image 1 is a"):
            list_sources(["a.jpg", source])


def test_cut_off_pil_image_is_an_image_error(make_image):
    content = io.BytesIO()
    Image.fromarray(make_image()).save(content, format="JPEG")
    with pytest.raises(ImageError, match="image"):
        read(Image.open(io.BytesIO(content.getvalue()[:-200])))


def test_folder_without_images_is_a_data_error(folder):
    with pytest.raises(DataError, match="no image in this folder"):
        list_sources(folder / "inner")
    for path in folder.glob("*.[pP]*"):
        path.unlink()
    with pytest.raises(DataError, match="1 file of another kind"):
        list_sources(folder)


def test_lists_may_mix_everything(folder, make_image):
    sources, single = list_sources([make_image(), folder, str(folder / "b.png")])
    assert not single
    assert [Path(source.name).name for source in sources] == ["image 0", "a.PNG", "b.png", "c.png", "b.png"]
    assert [source.skippable for source in sources] == [False, True, True, True, False]
    assert list_sources([]) == ([], False)
    assert list_sources((make_image(),))[1] is False


def test_what_a_folder_holds_besides_images_is_said(tmp_path):
    (tmp_path / "sub" / "deep").mkdir(parents=True)
    for name in ("a.jpg", "b.JFIF", "sub/c.png", "sub/deep/d.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name, "PNG")
    for name in ("g.heic", "film.mp4", "h.heic", ".hidden", "._a.jpg"):
        (tmp_path / name).write_bytes(b"x")
    sources, single = list_sources(tmp_path)
    assert ([Path(source.name).name for source in sources], single) == (["a.jpg", "b.JFIF"], False)
    assert "3 files of another kind (.heic, .mp4)" in passed_over(tmp_path)
    assert f"2 images in 2 sub-folders: give these too, as {tmp_path / 'sub'}" in passed_over(tmp_path)
    # the advice works, and a folder of images alone is silent
    assert len(list_sources([tmp_path / "sub" / "deep"])[0]) == 1
    assert not passed_over(tmp_path / "sub" / "deep")
    for path in (tmp_path / "a.jpg", tmp_path / "b.JFIF"):
        path.unlink()
    with pytest.raises(DataError, match=r"no image in this folder.*2 images in 2 sub-folders"):
        list_sources(tmp_path)


@pytest.mark.parametrize("kind", [str, Path])
def test_a_url_is_refused_as_one(kind):
    with pytest.raises(
        UsageError, match=r"https://example\.org/a\.jpg is a URL.*curl -O https://example\.org/a\.jpg\)"
    ):
        list_sources(kind("https://example.org/a.jpg"))


def test_windows_that_are_left_early_wait_for_no_thread():
    # the garbage collector may end them, where waiting would stop the program
    begun, go_on, ended = threading.Event(), threading.Event(), []

    def read_slowly(number: int) -> int:
        if number:
            begun.set()
            go_on.wait(5)
            ended.append(number)
        return number

    windows = read_windows(read_slowly, range(3), window=1)
    [(_, first)] = next(windows)
    assert first.result() == 0
    assert begun.wait(60)
    windows.close()
    assert not ended
    go_on.set()
