"""Writing of drawn frames as a video."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from detrkit.errors import DataError, MissingExtraError

_TICKS = 90_000  # a second, as in most videos
# In pieces of a second each: memory does not grow with the length, and what is written plays, whatever ends it.
# Without B-frames, which would shift the first time stamp where the header is written before the frames are known.
_FRAGMENTS = {"movflags": "empty_moov+default_base_moof+frag_keyframe", "frag_duration": "1000000"}
_CODECS = {"libx264": {"preset": "veryfast", "crf": "20", "bf": "0"}, "mpeg4": {"qscale": "3", "bf": "0"}}


class VideoWriter:
    """An MP4 file that grows frame by frame, each shown from its own time stamp on; all get the size of the first.

    Attributes:
        resized: Frames of another size than the first.

    Args:
        path: The file.
        fps: Frames a second, about.

    Raises:
        MissingExtraError: PyAV is not installed.
        DataError: It cannot be written.
    """

    def __init__(self, path: Path, fps: float):
        try:
            import av
        except ImportError as error:
            raise MissingExtraError("av", "video") from error
        self._av, self._path, self._fps = av, path, fps
        self._container: Any = None
        self._stream: Any = None
        self._last = -1
        self.resized = 0

    def add(self, pixels: np.ndarray, time_s: float) -> None:
        """Write a frame, uint8 ``[H, W, 3]`` RGB; an odd side gains a pixel, since the encoder wants even ones."""
        if self._container is None:
            self._begin(pixels)
        width, height = self._stream.width, self._stream.height
        odd = (height - pixels.shape[0], width - pixels.shape[1])
        if not all(0 <= more <= 1 for more in odd):
            self.resized += 1
            pixels = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))
        elif any(odd):
            pixels = np.pad(pixels, ((0, odd[0]), (0, odd[1]), (0, 0)), mode="edge")
        frame = self._av.VideoFrame.from_ndarray(pixels, format="rgb24")
        self._last = max(self._last + 1, round(time_s * _TICKS))
        frame.pts, frame.time_base = self._last, Fraction(1, _TICKS)
        self._mux(frame)

    def close(self) -> None:
        """Write what the encoder still holds."""
        if self._container is not None:
            self._mux(None)
            self._container.close()
            self._container = None

    def _begin(self, pixels: np.ndarray) -> None:
        codec = next((name for name in _CODECS if name in self._av.codecs_available), None)
        if codec is None:
            raise DataError(f"this build of PyAV has none of the encoders {', '.join(_CODECS)}; pip install av")
        self._container = self._av.open(f"file:{self._path}", "w", format="mp4", options=_FRAGMENTS)
        rate = Fraction(self._fps).limit_denominator(1000)
        self._stream = self._container.add_stream(codec, rate=max(rate, Fraction(1, 10)), options=_CODECS[codec])
        self._stream.height, self._stream.width = (side + side % 2 for side in pixels.shape[:2])
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = Fraction(1, _TICKS)
        self._stream.codec_context.gop_size = max(1, round(2 * self._fps))

    def _mux(self, frame: Any) -> None:
        try:
            for packet in self._stream.encode(frame):
                self._container.mux(packet)
        except self._av.FFmpegError as error:
            raise DataError(f"{self._path} cannot be written: {error.strerror or error}") from error
