"""Decoding of image files into tensors, or into arrays, for which torch is not imported.

Pillow decodes every format. ``torchvision.io`` is some 20 % faster on JPEG, but it is deprecated (torchvision
0.29) and ends the whole process with a segmentation fault on a corrupt PNG.

Shapes: B images, H x W height and width in pixels.
"""

from __future__ import annotations

import dataclasses
import io
import os
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import PIL
from PIL import Image, UnidentifiedImageError

from detrkit.classes import SizeHW
from detrkit.errors import ImageError
from detrkit.ops.pixel_range import FULL, WIDE_MODES, WideImage, narrow_words, to_uint8, wide_values
from detrkit.preprocess import resized_size_hw

if TYPE_CHECKING:
    from torch import Tensor

    from detrkit.config import PixelRange

ImageFile = str | os.PathLike[str] | bytes

PIXELS_VARIABLE = "DETRKIT_MAX_IMAGE_PIXELS"
"""Environment variable: pixels that an image may have. Pillow warns from 90 million on, and refuses twice that."""
if os.environ.get(PIXELS_VARIABLE, "").isdecimal():  # loader processes inherit it
    Image.MAX_IMAGE_PIXELS = int(os.environ[PIXELS_VARIABLE])

_ORIENTATION_TAG = 0x0112
_TAIL_BYTES = 1 << 16
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PILLOW_ERRORS = (OSError, ValueError, SyntaxError, TypeError, EOFError, IndexError, struct.error, zlib.error)


@dataclasses.dataclass(frozen=True)
class DecodeTarget:
    """Size that an image has to be decoded at, where it will be made smaller anyway.

    Args:
        short: Greatest short side in pixels that is asked of it.
        longest: Bound of the long side that comes with ``short``; see :func:`resized_size_hw`.
        least: Short side that is asked of it whatever ``longest`` says.
    """

    short: int
    longest: int | None = None
    least: int = 0

    def short_side(self, size_hw: SizeHW) -> int:
        """Return the short side in pixels that is enough of an image of this size."""
        return max(min(resized_size_hw(size_hw, self.short, self.longest)), self.least)


def decode_image(source: ImageFile, pixel_range: PixelRange = FULL) -> Tensor:
    """Decode the first frame of an image file, upright (EXIF applied), as 8-bit RGB.

    Gray is repeated, CMYK converted, and transparency dropped (not blended), as Pillow's ``convert("RGB")``
    does. Gray of 16 and 32 bits is scaled by ``pixel_range``, where Pillow would cut off at 255: ``full`` is from
    0 to 65535 for 16 bits; 32-bit values count as 0 to 1 where none is above 1, as 0 to 255 where none is above
    255, and otherwise run from the image's least to its greatest value.

    Args:
        source: A path, or the bytes of a file.
        pixel_range: Values of 16- and 32-bit images that become black and white.

    Returns:
        uint8 ``[3, H, W]``, a view of ``[H, W, 3]``: :func:`resize_image` is four times faster from that.

    Raises:
        ImageError: The file is missing, empty, truncated, corrupt, of an unknown kind or unreasonably large.
    """
    return decode_reduced(source, None, pixel_range)[0]


def decode_reduced(
    source: ImageFile, target: DecodeTarget | None, pixel_range: PixelRange = FULL
) -> tuple[Tensor, SizeHW]:
    """Decode as :func:`decode_pixels` does, into a tensor, uint8 ``[3, H, W]``, a view of ``[H, W, 3]``."""
    import torch

    pixels, whole_hw = decode_pixels(source, target, pixel_range)
    return torch.from_numpy(pixels).permute(2, 0, 1), whole_hw


def decode_pixels(
    source: ImageFile,
    target: DecodeTarget | None,
    pixel_range: PixelRange = FULL,
    formats: tuple[str, ...] | None = None,
) -> tuple[np.ndarray, SizeHW]:
    """Decode as :func:`decode_image` does, a JPEG at 1/2, 1/4 or 1/8 of its size where that is enough.

    A JPEG consists of frequencies, and leaving out the high ones saves most of the work; sides are rounded up.

    Args:
        source: A path, or the bytes of a file.
        target: Size that is needed; None for the file's own.
        pixel_range: As in :func:`decode_image`.
        formats: Pillow's names of the formats that it may have; None for all.

    Returns:
        The image, uint8 ``[H, W, 3]``, and the size of the whole, upright.
    """
    with _named_errors(source), Image.open(_opened(source), formats=formats) as image:
        whole_wh = image.size
        if target is not None and image.format in ("JPEG", "MPO"):
            _draft(image, target)
        image.load()
        rgb = _to_rgb(image, pixel_range)
        orientation = _orientation(image)  # 1 for a TIFF, which Pillow turns as it opens it
        if orientation in _UPRIGHT:
            rgb = rgb.transpose(_UPRIGHT[orientation])
        whole_hw = whole_wh if orientation >= 5 else (whole_wh[1], whole_wh[0])
        return np.array(rgb), whole_hw


def read_wide(source: ImageFile) -> WideImage | None:
    """Read the gray values of an image of 16 or 32 bits as stored; None, by the header alone, for any other.

    Raises:
        ImageError: As for :func:`decode_image`.
    """
    with _named_errors(source), Image.open(_opened(source)) as image:
        if image.mode not in WIDE_MODES:
            return None
        image.load()
        return wide_values(image)


def narrow_range_lines(files: Sequence[Path], pixel_range: PixelRange) -> list[str]:
    """Say where next to nothing is left of images, by the first, the middle and the last of them."""
    for file in dict.fromkeys([*files[:1], *files[len(files) // 2 :][:1], *files[-1:]]):
        try:
            wide = read_wide(file)
        except ImageError:
            continue
        words = "" if wide is None else narrow_words(wide, pixel_range)
        if words:
            setting = pixel_range if isinstance(pixel_range, str) else "[{:g},{:g}]".format(*pixel_range)
            advice = "train with --set data.pixel_range=percentile, =data (measured over the set) or =[LOW,HIGH]"
            return [f"{file}: with data.pixel_range={setting} {words}; {advice}"]
    return []


def _draft(image: Image.Image, target: DecodeTarget) -> None:
    """Have a JPEG decoded at a fraction of its size, if that is enough."""
    width, height = image.size
    wanted = target.short_side((height, width))
    for fraction in (8, 4, 2):
        if min(width, height) // fraction >= wanted:
            image.draft(None, (width // fraction, height // fraction))
            return


def read_image_size(source: ImageFile) -> SizeHW:
    """Read height and width of an image once upright (EXIF applied), from the header alone.

    Raises:
        ImageError: The file is missing, empty or of an unknown kind.
    """
    stored_hw, orientation = read_header(source)
    return stored_hw[::-1] if orientation >= 5 else stored_hw


def read_format(source: ImageFile, formats: tuple[str, ...]) -> tuple[str, SizeHW]:
    """Read Pillow's name of an image's format, one of those given, and its stored size, from the header alone.

    Raises:
        ImageError: The file is missing, empty or of another kind.
    """
    with _named_errors(source), Image.open(_opened(source), formats=formats) as image:
        return str(image.format), (image.height, image.width)


def read_header(source: ImageFile) -> tuple[SizeHW, int]:
    """Read height and width of an image as it is stored, and its EXIF orientation, 1 to 8.

    Raises:
        ImageError: The file is missing, empty or of an unknown kind.
    """
    with _named_errors(source):
        content = _opened(source)
        with Image.open(content) as image:
            # Pillow would decode a whole PNG to find late EXIF, and gives the size of a TIFF upright already
            has_exif = image.format != "PNG" or _png_has_exif(image, content)
            orientation = _orientation(image) if has_exif else 1
            is_turned = image.format == "TIFF" and orientation >= 5
            return (image.width, image.height) if is_turned else (image.height, image.width), orientation


def turn_boxes(boxes_xyxy: np.ndarray, orientation: int, stored_hw: SizeHW) -> np.ndarray:
    """Turn boxes ``[N, 4]`` in an image as it is stored to where they are once EXIF has turned it upright."""
    height, width = stored_hw
    x1, y1, x2, y2 = boxes_xyxy.T
    if orientation in (2, 3, 7, 8):
        x1, x2 = width - x2, width - x1
    if orientation in (3, 4, 6, 7):
        y1, y2 = height - y2, height - y1
    return np.stack([y1, x1, y2, x2] if orientation >= 5 else [x1, y1, x2, y2], axis=1)


def _opened(source: ImageFile) -> io.BytesIO | Path:
    if isinstance(source, bytes):
        content: io.BytesIO | Path = io.BytesIO(source)
        size = len(source)
    else:
        content = Path(source)
        size = content.stat().st_size
    if not size:
        raise OSError("the file is empty")
    return content


@contextmanager
def _named_errors(source: ImageFile) -> Iterator[None]:
    """Turn what Pillow raises into an ImageError that names the file, and silence its remarks on odd files.

    ``catch_warnings`` is not safe between threads; the filter that might stay behind names Pillow only.
    """
    name = f"image of {len(source)} bytes" if isinstance(source, bytes) else os.fspath(source)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")
            yield
    except FileNotFoundError as error:
        raise ImageError(f"{name}: there is no such file; check the path") from error
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{name}: not an image that Pillow {PIL.__version__} can read; convert or remove it"
        ) from error
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"{name}: {error}; cut it into tiles or make it smaller, or, if you trust the file, allow so many "
            f"pixels in the environment: {PIXELS_VARIABLE}=NUMBER"
        ) from error
    except MemoryError as error:
        raise ImageError(f"{name}: too large to decode in memory; make it smaller") from error
    except _PILLOW_ERRORS as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ImageError(f"{name}: cannot be decoded: {reason}; fetch it again or remove it") from error


def _orientation(image: Image.Image) -> int:
    """Read the EXIF orientation, 1 where there is none or the EXIF block is broken: the pixels are still good."""
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except _PILLOW_ERRORS:
        return 1
    return orientation if isinstance(orientation, int) and orientation in _UPRIGHT else 1


def _png_has_exif(image: Image.Image, content: io.BytesIO | Path) -> bool:
    if "exif" in image.info or "Raw profile type exif" in image.info:
        return True
    if isinstance(content, io.BytesIO):
        return b"eXIf" in content.getbuffer()[-_TAIL_BYTES:].tobytes()
    with content.open("rb") as file:
        file.seek(max(0, content.stat().st_size - _TAIL_BYTES))
        return b"eXIf" in file.read()


def _to_rgb(image: Image.Image, pixel_range: PixelRange) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode in WIDE_MODES:
        return Image.fromarray(to_uint8(wide_values(image), pixel_range)).convert("RGB")
    if image.mode in ("P", "PA") and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")
