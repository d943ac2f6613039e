"""Videos, streams and cameras, read frame by frame through PyAV. No torch is imported."""

from __future__ import annotations

import collections
import os
import platform
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np

from detrkit.errors import DataError, MissingExtraError, UsageError, counted, listed
from detrkit.files import IMAGE_SUFFIXES, is_kind, read_facts

FACTS = read_facts(__file__)
SUFFIXES: tuple[str, ...] = tuple(FACTS["suffixes"])
_ADDRESS = re.compile(r"([a-z]+):/+", re.IGNORECASE)
_AHEAD = 4  # frames of a file that are decoded ahead
_TIMEOUT_S = 10.0  # for opening a stream, and for each packet of it
_POLL_S = 0.2
_JUMP_S = 10.0  # a live stream whose time stamps jump further has begun anew
RETRIES_S = (1.0, 2.0, 4.0, 8.0, 15.0)
"""Seconds before each try to connect again, after a live stream broke."""


class Frame(NamedTuple):
    """A frame: its place among all that were decoded, seconds since the first, pixels uint8 ``[H, W, 3]`` RGB."""

    number: int
    time_s: float
    pixels: np.ndarray


class _Decoded(NamedTuple):
    number: int
    time_s: float
    frame: Any


def is_video(source: object) -> bool:
    """Return True if a source names a video file, a stream or a camera, by its name alone."""
    if not isinstance(source, str | os.PathLike):
        return False
    text = os.fspath(source)
    scheme = _scheme(text)
    if scheme in FACTS["web"]:  # an image is to be fetched first
        return not urlsplit(text).path.lower().endswith(IMAGE_SUFFIXES)
    if scheme or is_camera(text):
        return scheme in FACTS["live"] or not scheme
    return is_kind(Path(text).name, SUFFIXES) or Path(text).is_fifo()


def is_camera(text: str) -> bool:
    """Return True for the number or the device of a camera."""
    return (text.isdecimal() and not Path(text).exists()) or re.fullmatch(r"/dev/video\d+", text) is not None


def shown_name(source: str) -> str:
    """Return a source as it may be shown: an address without its password."""
    return re.sub(r"(?<=//)[^/@]*@", "", source)


def _scheme(text: str) -> str:
    found = _ADDRESS.match(text)
    return found[1].lower() if found else ""


class VideoReader:
    """The frames of a video, in order, decoded by a thread of its own.

    Of a file all are handed out, with a few decoded ahead; of a live source only the newest, so that detections
    are never of the past: the others count as dropped. A live source that breaks is connected to again.

    Attributes:
        fps: Frames a second, as the source says it; 30 where it does not.
        total: Frames that a file says it has; None where it does not.
        is_live: True if frames come in their own time.
        has_sound: True if there is sound.
        decoded: Frames that were decoded.
        dropped: Frames of a live source that came while others were worked on.
        lost: Frames that could not be decoded, or that a file lacks at its end.
        damaged: Frames that were decoded with faults.
        guessed: Frames without a time stamp after that of the frame before.
        reconnects: Times that a live source was connected to again.
        ended: Why it ended before its end; empty if it did not.

    Args:
        source: File, address or number of a camera.
        every: Only each so manieth frame is handed out.
        say: Called with messages for people.
        retries_s: Seconds before each try to connect again.

    Raises:
        UsageError: There is no such file or camera.
        DataError: It cannot be opened, or holds no video.
        MissingExtraError: PyAV is not installed.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        every: int = 1,
        say: Callable[[str], None] = lambda _message: None,
        retries_s: Sequence[float] = RETRIES_S,
    ):
        try:
            import av
        except ImportError as error:
            raise MissingExtraError("av", "video") from error
        self._av = av
        if every < 1:
            raise UsageError(f"every is {every}, expected 1 or more")
        self.source, self.name = os.fspath(source), shown_name(os.fspath(source))
        self.every, self._say, self._retries_s = every, say, retries_s
        self.decoded = self.dropped = self.lost = self.damaged = self.guessed = self.reconnects = 0
        self.ended = ""
        self._ready: collections.deque[_Decoded] = collections.deque()
        self._change = threading.Condition()
        self._stopped, self._done = threading.Event(), False
        self._anchor: float | None = None  # time stamp of what is second 0
        self._last_s, self._last_seen = -1.0, 0.0
        # a first look
        self._container = self._open()
        stream = self._container.streams.video[0]
        self.is_live = is_camera(self.source) or _scheme(self.source) in FACTS["live"]
        if _scheme(self.source) in FACTS["web"]:
            self.is_live = self._container.duration is None
        self.fps = float(stream.average_rate or stream.guessed_rate or 30)
        self.total: int | None = stream.frames or None
        self.has_sound = len(self._container.streams.audio) > 0
        if not self.is_live and self._container.start_time is not None:
            self._anchor = self._container.start_time / av.time_base

    def frames(self, stopped: Callable[[], bool] = lambda: False) -> Iterator[Frame]:
        """Yield each frame until the end, or until ``stopped`` says so, which is asked several times a second."""
        thread = threading.Thread(target=self._read, name="video", daemon=True)
        thread.start()
        try:
            while not stopped():
                with self._change:
                    if not self._ready:
                        if self._done:
                            return
                        self._change.wait(_POLL_S)
                        continue
                    found = self._ready.popleft()
                    self._change.notify_all()
                yield Frame(found.number, found.time_s, _pixels(found.frame))
        finally:
            self._stopped.set()
            thread.join(_POLL_S)  # one that hangs in a read ends with the process

    def faults(self) -> list[str]:
        """Return what was lost or guessed, in sentences."""
        lines = []
        if self.lost:
            lines.append(f"{self.name}: {counted(self.lost, 'frame')} could not be decoded and are lost")
        if self.damaged:
            lines.append(f"{self.name}: {counted(self.damaged, 'frame')} were decoded with faults in the picture")
        return [*lines, *([f"{self.name}: {self.ended}"] if self.ended else [])]

    def notes(self) -> list[str]:
        """Return what is no fault, and still to be known."""
        lines = []
        if self.dropped:
            lines.append(f"{counted(self.dropped, 'frame')} dropped, which came while others were worked on")
        if self.reconnects:
            lines.append(f"connected again {counted(self.reconnects, 'time')}")
        if self.guessed:
            lines.append(f"{counted(self.guessed, 'frame')} without a time stamp of use; theirs come of the rate")
        return lines

    def _open(self) -> Any:
        options = FACTS["options"].get(_scheme(self.source), {})
        place, form = self.source, None
        if is_camera(self.source):
            place, form = _camera(self.source)
        elif not _scheme(self.source):
            place = f"file:{self.source}"  # names may hold colons
        is_address = bool(_scheme(self.source))
        try:
            container = self._av.open(
                place, format=form, options=options, timeout=_TIMEOUT_S if is_address else None
            )
        except self._av.FileNotFoundError as error:
            cameras = listed(sorted(str(path) for path in Path("/dev").glob("video*"))) or "none"
            hint = f"; cameras here: {cameras}" if is_camera(self.source) else ""
            raise UsageError(f"{self.name}: there is no such video{hint}") from error
        except (self._av.FFmpegError, OSError, ValueError) as error:
            raise DataError(f"{self.name}: cannot be opened as a video: {_reason(error)}") from error
        if not container.streams.video:
            container.close()
            raise DataError(f"{self.name} holds no video")
        return container

    def _read(self) -> None:
        """Read all there is, in a thread; of a live source, again and again."""
        container, why = self._container, ""
        try:
            while True:
                try:
                    why = self._read_once(container)
                finally:
                    container.close()
                if not self.is_live or self._stopped.is_set():
                    self.ended = why
                    return
                again = self._connect(why or "the stream ended")
                if again is None:
                    return
                container = again
        except Exception as error:  # of a thread nobody would hear it
            self.ended = f"reading failed: {error}"
        finally:
            with self._change:
                self._done = True
                self._change.notify_all()

    def _connect(self, why: str) -> Any:
        """Connect again; None if that is given up, or nobody wants it any more."""
        for wait in self._retries_s:
            self._say(f"{self.name}: {why}; connecting again in {wait:g} s")
            if self._stopped.wait(wait):
                return None
            try:
                container = self._open()
            except (DataError, UsageError) as error:
                why = str(error).removeprefix(f"{self.name}: ")
                continue
            self._anchor, self.reconnects = None, self.reconnects + 1
            return container
        self.ended = f"{why}; given up after {counted(len(self._retries_s), 'try', 'tries')} to connect again"
        return None

    def _read_once(self, container: Any) -> str:
        """Decode to the end of a container; returns why it ended before."""
        stream = container.streams.video[0]
        before, failed, packets, end_s = self.decoded, 0, 0, 0.0
        try:
            for packet in container.demux(stream):
                packets += packet.size > 0 and not packet.is_discard
                try:
                    frames = packet.decode()
                except (self._av.FFmpegError, ValueError):
                    failed += 1
                    continue
                for frame in frames:
                    if self._stopped.is_set():
                        return ""
                    self.damaged += frame.is_corrupt
                    end_s = self._hand_out(frame)
        except self._av.FFmpegError as error:
            if not isinstance(error, self._av.EOFError):
                return f"reading stopped after {counted(self.decoded, 'frame')}: {_reason(error)}"
        # a file tells how long it is; where a packet failed, so did those whose frames are missing
        decoded = self.decoded - before
        self.lost += max(failed, packets - decoded) if failed else 0
        length_s = _length_s(container, stream, self._av.time_base)
        if not self.is_live and length_s - end_s > max(0.5, 2 / self.fps):
            lacking = (self.total or 0) - packets
            self.lost += lacking if lacking > 0 else round((length_s - end_s) * self.fps)
            return f"it ends at {end_s:.1f} s of {length_s:.1f} s: the file is cut off or damaged"
        return ""

    def _hand_out(self, frame: Any) -> float:
        """Count a frame, and hand it out if it is its turn; returns the second at which it ends."""
        time_s = self._time_of(frame)
        number, self.decoded = self.decoded, self.decoded + 1
        if number % self.every == 0:
            with self._change:
                while not self.is_live and len(self._ready) >= _AHEAD and not self._stopped.is_set():
                    self._change.wait(_POLL_S)
                if self.is_live:
                    self.dropped += len(self._ready)
                    self._ready.clear()
                self._ready.append(_Decoded(number, time_s, frame))
                self._change.notify_all()
        return time_s + (float(frame.duration * frame.time_base) if frame.duration else 1 / self.fps)

    def _time_of(self, frame: Any) -> float:
        """Return seconds since the first frame by time stamps, always after the frame before."""
        raw, now, step_s = frame.time, time.monotonic(), 1 / self.fps
        passed_s = now - self._last_seen if self._last_seen else 0.0
        next_s = self._last_s + step_s if self._last_s >= 0 else 0.0
        if raw is not None and self._anchor is None:  # a first frame, of a stream connected to again after a while
            self._anchor = raw - (self._last_s + max(passed_s, step_s) if self._last_s >= 0 else 0.0)
        found = None if raw is None or self._anchor is None else raw - self._anchor
        if found is not None and self.is_live and abs(found - self._last_s) > passed_s + _JUMP_S:
            assert raw is not None
            found = self._last_s + max(passed_s, step_s)
            self._anchor = raw - found
        if found is None or found <= self._last_s:
            self.guessed += 1
            found = next_s
        self._last_s, self._last_seen = found, now
        return found


def _length_s(container: Any, stream: Any, time_base: int) -> float:
    """Return the seconds that a file says it lasts; 0 where it does not say that of its pictures alone."""
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    if container.duration is not None and len(container.streams) == 1:
        return float(container.duration / time_base)
    return 0.0


def _pixels(frame: Any) -> np.ndarray:
    """Return the pixels of a decoded frame, upright by its rotation."""
    pixels = frame.to_ndarray(format="rgb24")
    turns = round(frame.rotation / 90) % 4  # counterclockwise, as np.rot90 counts
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels


def _camera(text: str) -> tuple[str, str]:
    """Return the place and format of a camera in the words of this system."""
    system = platform.system()
    if system == "Linux":
        return (f"/dev/video{int(text)}" if text.isdecimal() else text), "v4l2"
    if system == "Darwin":
        return text, "avfoundation"
    return f"video={text}", "dshow"  # where cameras have names


def _reason(error: Exception) -> str:
    """Return what went wrong, without the address, which may hold a password."""
    return getattr(error, "strerror", None) or str(error).partition(":")[0]
