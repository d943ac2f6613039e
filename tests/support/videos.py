"""Small videos: a bright square that walks over a dark ground."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

SIZE_WH = (64, 48)


def square_frame(number: int, size_wh: tuple[int, int] = SIZE_WH) -> np.ndarray:
    """Frame ``number``: the square's left side is at twice that, in a walk that begins anew."""
    pixels = np.full((size_wh[1], size_wh[0], 3), 40, np.uint8)
    left = 2 * number % (size_wh[0] - 12)
    pixels[10:20, left : left + 10] = 250
    return pixels


def write_video(
    path: Path | str,
    frames: int = 20,
    *,
    fps: int = 10,
    times_s: Sequence[float] | None = None,
    form: str | None = None,
    sound: bool = False,
    size_wh: tuple[int, int] = SIZE_WH,
    codec: str = "mpeg4",
    **options: str,
) -> Path:
    with av.open(str(path), "w", format=form, options=options) as container:
        stream = container.add_stream(codec, rate=fps)
        (stream.width, stream.height), stream.pix_fmt = size_wh, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        audio = container.add_stream("aac", rate=8000) if sound else None
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(square_frame(number, size_wh), format="rgb24")
            frame.pts = round(1000 * (number / fps if times_s is None else times_s[number]))
            frame.time_base = Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if audio is not None:
            quiet = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            quiet.sample_rate, quiet.pts = 8000, 0
            container.mux(audio.encode(quiet))
            container.mux(audio.encode(None))
    return Path(path)


def turn(path: Path) -> None:
    """Say in an MP4 file that its frames are to be shown a quarter turned, clockwise, as phones do."""
    content = path.read_bytes()
    place = content.index(b"tkhd") + 4 + 4 + 20 + 16
    matrix = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(content[:place] + matrix + content[place + len(matrix) :])


def read_video(path: Path) -> Iterator[tuple[float, np.ndarray]]:
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            yield frame.time, frame.to_ndarray(format="rgb24")
