"""Detection in the frames of a video: drawn, written line by line, and objects followed from frame to frame."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from detrkit.detections import ImageDetections
from detrkit.detectors.detector import Detector
from detrkit.detectors.interop import sv, to_supervision
from detrkit.detectors.results import to_coco
from detrkit.errors import DataError, MissingExtraError, counted
from detrkit.files import growing_file
from detrkit.ops.video import Frame, VideoReader
from detrkit.threshold_file import Thresholds, apply_threshold
from detrkit.visual.drawing import draw
from detrkit.visual.video import VideoWriter

WEAK_SCORE = 0.1  # detections below the threshold that still tell where a followed object is

Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class VideoResult:
    """What became of a video.

    Args:
        source: Name of the video.
        frames: Frames that were detected in.
        detections: Detections in all of them.
        tracks: Objects that were followed; None if that was not asked for.
        drawn: The drawn video.
        lines: Detections, a line of JSON for each frame.
        faults: What was lost, in sentences.
        notes: What else is to be known.
        signal_number: Number of the signal that ended it early, if one did.
    """

    source: str
    frames: int
    detections: int
    tracks: int | None
    drawn: Path
    lines: Path
    faults: tuple[str, ...]
    notes: tuple[str, ...]
    signal_number: int | None = None


class Tracker:
    """Numbers for objects that stay the same from frame to frame, by ByteTrack of the library ``trackers``.

    Each class has a tracker of its own, so that a number never changes its class. Detections below the threshold
    keep an object's number alive, and are not shown.

    Attributes:
        count: Objects that got a number.

    Args:
        fps: Frames a second, of those that are detected in.

    Raises:
        MissingExtraError: The library is not installed.
    """

    def __init__(self, fps: float):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                from trackers import ByteTrackTracker
        except ImportError as error:
            raise MissingExtraError("trackers", "video") from error
        self._make: Callable[[], Any] = lambda: ByteTrackTracker(
            frame_rate=fps, track_activation_threshold=0.5, high_conf_det_threshold=0.5
        )
        self._of_class: dict[int, Any] = {}
        self._numbers: dict[tuple[int, int], int] = {}
        self.count = 0

    def update(self, found: ImageDetections, keep: np.ndarray, time_s: float) -> np.ndarray:
        """Return the number of each detection, 0 for none (yet), int64 ``[K]``.

        Args:
            found: Detections of a frame, without a threshold.
            keep: True for those from the threshold on.
            time_s: Second of the frame, after that of the one before.
        """
        numbers = np.zeros(len(found.scores), dtype=np.int64)
        used = keep | (found.scores >= WEAK_SCORE)
        for class_id in sorted({*self._of_class, *found.class_ids[keep].tolist()}):
            if class_id not in self._of_class:
                self._of_class[class_id] = self._make()
            own = np.flatnonzero(used & (found.class_ids == class_id))
            given = sv.Detections(
                xyxy=found.boxes_xyxy[own],
                confidence=np.where(keep[own], 1.0, 0.2),
                class_id=found.class_ids[own],
                data={"place": own},
            )
            tracked = self._of_class[class_id].update(given, timestamp=time_s)
            for place, number in zip(tracked.data.get("place", ()), tracked.tracker_id, strict=True):
                if number >= 0:
                    key = (class_id, int(number))
                    if key not in self._numbers:
                        self.count += 1
                        self._numbers[key] = self.count
                    numbers[place] = self._numbers[key]
        # forget those that are gone for good: memory must not grow with time
        alive = {(class_id, track.tracker_id) for class_id, own in self._of_class.items() for track in own.tracks}
        self._numbers = {key: number for key, number in self._numbers.items() if key in alive}
        return numbers


def detect_video(
    detector: Detector,
    reader: VideoReader,
    drawn: Path,
    lines: Path,
    *,
    threshold: float | Thresholds | None = None,
    track: bool = False,
    batch_size: int = 1,
    stopped: Callable[[], bool] = lambda: False,
    on_line: Callable[[str], None] = lambda _line: None,
    progress: Progress | None = None,
) -> VideoResult:
    """Detect in each frame of a video; draw, write and forget it.

    Args:
        detector: Detector.
        reader: The video.
        drawn: MP4 file to write.
        lines: File of JSON lines to write.
        threshold: Least score; see :meth:`Detector.predict`.
        track: Follow objects.
        batch_size: Frames of a file at once; live ones come alone.
        stopped: Asked between frames whether to end.
        on_line: Called with each line of JSON.
        progress: Called with frames done and in all, where that is known.

    Raises:
        DataError: There is no frame that can be decoded, or the drawn video cannot be written.
    """
    limit = detector.resolve_threshold(threshold)
    fps = reader.fps / reader.every
    tracker = Tracker(fps) if track else None
    writer, frames, count = VideoWriter(drawn, fps), 0, 0
    with growing_file(drawn), growing_file(lines), contextlib.closing(writer), lines.open("w") as file:
        batches = _batches(reader.frames(stopped), 1 if reader.is_live else batch_size)
        for batch in batches:
            images = [torch.from_numpy(frame.pixels).permute(2, 0, 1) for frame in batch]
            for frame, found in zip(batch, detector.detect_images(images, batch_size), strict=True):
                shown = _shown(detector, frame, found, limit, tracker)
                line = frame_line(frame, shown)
                file.write(line + "\n")
                file.flush()
                on_line(line)
                writer.add(draw(frame.pixels, shown), frame.time_s)
                frames, count = frames + 1, count + len(shown)
            if progress is not None and reader.total is not None:
                progress(min(frames, -(-reader.total // reader.every)), -(-reader.total // reader.every))
        if not frames:
            file.close()
            lines.unlink()
    if not frames:
        reasons = "; ".join(reader.faults()) or f"{reader.name}: it holds no frame, or was ended before the first"
        raise DataError(f"no frame could be decoded, and nothing was written. {reasons}")
    notes = reader.notes()
    if writer.resized:
        notes.append(
            f"{counted(writer.resized, 'frame')} of another size than the first, drawn in that of the first"
        )
    if reader.has_sound:
        notes.append("the drawn video has no sound")
    return VideoResult(
        source=reader.name,
        frames=frames,
        detections=count,
        tracks=None if tracker is None else tracker.count,
        drawn=drawn,
        lines=lines,
        faults=tuple(reader.faults()),
        notes=tuple(notes),
    )


def frame_line(frame: Frame, shown: sv.Detections) -> str:
    """Return a line of JSON: the frame, and its detections as COCO's result format has them."""
    entries = to_coco(shown, frame.number)
    if shown.tracker_id is not None:
        for entry, number in zip(entries, shown.tracker_id.tolist(), strict=True):
            entry["track_id"] = number or None
    height, width = frame.pixels.shape[:2]
    content = {"frame": frame.number, "time_s": round(frame.time_s, 6), "width": width, "height": height}
    return json.dumps({**content, "detections": entries}, allow_nan=False)


def _shown(
    detector: Detector,
    frame: Frame,
    found: ImageDetections,
    threshold: float | Thresholds,
    tracker: Tracker | None,
) -> sv.Detections:
    """Return the detections to be shown, with the numbers of objects that are followed."""
    keep, scores = apply_threshold(found, threshold)
    size_hw, least = frame.pixels.shape[:2], detector.masks.threshold
    shown = to_supervision(found.take(keep, scores), detector.class_map, size_hw=size_hw, mask_threshold=least)
    if tracker is not None:
        shown.tracker_id = tracker.update(found, keep, frame.time_s)[keep]
    return shown


def _batches(frames: Iterator[Frame], size: int) -> Iterator[list[Frame]]:
    return iter(lambda: list(itertools.islice(frames, size)), [])
