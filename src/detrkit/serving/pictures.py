"""Pictures of strangers: decoded within limits, and drawn."""

from __future__ import annotations

import dataclasses
import io
import time
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from detrkit.classes import SizeHW
from detrkit.detections import ImageDetections
from detrkit.errors import ImageError, UsageError
from detrkit.ops.images import decode_pixels, read_format
from detrkit.runtimes.predictor import Predictor, check_fits
from detrkit.serving.refusal import RefusedError
from detrkit.visual.colors import class_colors, tint_masks
from detrkit.visual.text import shortened

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
"""Pillow's names of the formats that are decoded; others, such as EPS, would run programs or rarely used code."""
MOST_SCANS = 100
"""Scans of a JPEG. Progressive ones have about ten; a hostile one has thousands, each of them as much work."""
_MOST_NAME = 200
_MOST_SIDE = 1 << 16


@dataclasses.dataclass(frozen=True)
class SentPicture:
    """A picture as it was sent: a file, or pixels, uint8 ``[H, W, 3]``, and the name that its sender gave it."""

    content: bytes | np.ndarray
    name: str = "image"


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A picture ready for the graph.

    Args:
        image: Resized, uint8 ``[h, w, 3]``.
        size_hw: Size of the picture.
        decode_s: Time of decoding.
        resize_s: Time of resizing.
    """

    image: np.ndarray
    size_hw: SizeHW
    decode_s: float
    resize_s: float


def base_name(name: str) -> str:
    """Return a file's name as it may be repeated: without folders and control characters, and not too long."""
    return shortened(name.replace("\\", "/").rpartition("/")[2], _MOST_NAME) or "image"


def decode_sent(sent: SentPicture, predictor: Predictor, max_pixels: int) -> np.ndarray:
    """Return the pixels of a picture, uint8 ``[H, W, 3]``, as :meth:`Predictor.predict` decodes them.

    Raises:
        RefusedError: It is none, broken, or larger than it may be, which its header tells.
    """
    if isinstance(sent.content, np.ndarray):
        check_pixels(sent.content.shape[:2], max_pixels, sent.name)
        return sent.content
    try:
        kind, size_hw = read_format(sent.content, FORMATS)
        check_pixels(size_hw, max_pixels, sent.name)
        if kind in ("JPEG", "MPO") and sent.content.count(b"\xff\xda") > MOST_SCANS:
            raise RefusedError("bad_image", f"{sent.name}: a JPEG of more than {MOST_SCANS} scans; save it anew")
        return decode_pixels(sent.content, None, predictor.preprocessing.pixel_range, FORMATS)[0]
    except ImageError as error:
        if isinstance(error.__cause__, Image.DecompressionBombError):
            raise _too_large(sent.name, f"more than {Image.MAX_IMAGE_PIXELS:,}", max_pixels) from error
        reason = str(error).partition(": ")[2].partition(";")[0]
        kinds = ", ".join(FORMATS)
        raise RefusedError("bad_image", f"{sent.name}: {reason}; expected one whole picture: {kinds}") from error


def check_pixels(size_hw: SizeHW, max_pixels: int, name: str) -> None:
    """Refuse a picture by its size.

    Raises:
        RefusedError: It has more pixels than it may have, or a side that no format has.
    """
    height, width = size_hw
    if height * width > max_pixels or max(size_hw) >= _MOST_SIDE:
        raise _too_large(name, f"{width} x {height}", max_pixels)


def _too_large(name: str, got: str, max_pixels: int) -> RefusedError:
    return RefusedError(
        "too_large", f"{name} has {got} pixels, expected at most {max_pixels:,}; make it smaller, or cut it"
    )


def prepare(sent: SentPicture, predictor: Predictor, max_pixels: int) -> Prepared:
    """Decode and resize a picture.

    Raises:
        RefusedError: As :func:`decode_sent`, or it does not fit the graph's fixed shape.
    """
    start = time.perf_counter()
    pixels = decode_sent(sent, predictor, max_pixels)
    size_hw = (pixels.shape[0], pixels.shape[1])
    rule = predictor.preprocessing.rule
    if rule.max_size is None:  # a strip of 1 x 30,000 pixels is small, until its short side is that of the model
        most = max(max_pixels, 4 * rule.eval_size**2)
        check_pixels(rule.resized_size_hw(size_hw), most, f"{sent.name}, resized as the model wants it,")
    decoded = time.perf_counter()
    image = predictor.resize(pixels)
    if predictor.preprocessing.fixed_hw is not None:
        try:
            check_fits((image.shape[0], image.shape[1]), predictor.preprocessing.fixed_hw)
        except UsageError as error:
            raise RefusedError("invalid", f"{sent.name}: {error}") from error
    return Prepared(image, size_hw, decoded - start, time.perf_counter() - decoded)


def draw_detections(
    pixels: np.ndarray, found: ImageDetections, names: Sequence[str], file_format: str, mask_threshold: float = 0.5
) -> bytes:
    """Return a picture with its detections as a file, the best on top.

    Args:
        pixels: uint8 ``[H, W, 3]``.
        found: Detections, best first.
        names: Names by class id.
        file_format: Pillow's name of it.
        mask_threshold: Probability from which a pixel belongs to a mask, where there are any.
    """
    if found.masks is not None:
        masks = found.masks.take(np.arange(len(found.scores))[::-1])
        pixels = tint_masks(pixels, masks.each(mask_threshold), found.class_ids[::-1])
    image = Image.fromarray(pixels)
    longest = max(image.size)
    thickness, font = max(2, round(longest / 400)), ImageFont.load_default(max(12, round(longest / 55)))
    colors = class_colors()
    canvas = ImageDraw.Draw(image)
    for box, score, class_id in zip(*(values[::-1].tolist() for values in found), strict=True):
        left, top, right, bottom = (min(max(edge, -longest), 2 * longest) for edge in box)
        color = colors[class_id % len(colors)]
        canvas.rectangle((left, top, max(left, right), max(top, bottom)), outline=color, width=thickness)
        # the label over the box where it fits, moved into the picture
        text = f"{shortened(names[class_id])} {score:.2f}"
        _, _, wide, high = (round(edge) for edge in canvas.textbbox((0, 0), text, font=font))
        x = max(0, min(left, image.width - wide - 6))
        y = top - high - 4 if top >= high + 4 else max(0, min(top, image.height - high - 4))
        canvas.rectangle((x, y, x + wide + 6, y + high + 4), fill=color)
        canvas.text((x + 3, y + 1), text, fill="white", font=font)
    file = io.BytesIO()
    image.save(file, file_format, **({"quality": 90} if file_format == "JPEG" else {"compress_level": 1}))
    return file.getvalue()
