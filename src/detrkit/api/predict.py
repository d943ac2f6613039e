"""``detrkit.predict``: detect objects in images, draw and write them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from detrkit.api.common import Progress, Say, Source
from detrkit.api.load import load
from detrkit.detectors.detector import Detector, ErrorReport
from detrkit.detectors.results import PANOPTIC_FILE, panoptic_entry, write_panoptic, write_predictions
from detrkit.detectors.tiles import in_tiles
from detrkit.detectors.video import VideoResult, detect_video
from detrkit.errors import UsageError, listed
from detrkit.files import free_name, results_folder
from detrkit.ops.sources import NamedSource, list_sources
from detrkit.ops.video import VideoReader, is_camera
from detrkit.threshold_file import Thresholds
from detrkit.training.signals import StopRequest
from detrkit.visual.drawing import save_drawing, save_png

if TYPE_CHECKING:
    import supervision as sv

    from detrkit.detectors.detector import ImageSource


def predict(
    model: Source | Detector,
    images: ImageSource | list[ImageSource],
    *,
    threshold: float | Thresholds | None = None,
    out: Source | None = None,
    batch_size: int = 4,
    tiles: str | int | None = None,
    on_error: ErrorReport | None = None,
) -> list[sv.Detections]:
    """Return the detections of images, files or folders, drawn and written if ``out`` is given.

    Args:
        model: Anything that :func:`load` takes, or a detector.
        images: See :meth:`detrkit.detectors.detector.Detector.predict`.
        threshold: Least score, or thresholds by class; None: the model's own if it has any, otherwise 0.5.
        out: Folder for one drawn picture per image and ``predictions.json`` in COCO format; for a model with masks
            also ``panoptic.json`` and a PNG file of each image's segments.
        batch_size: Images, or tiles of them, at once.
        tiles: Cut images into tiles; see :meth:`detrkit.detectors.tiles.Tiles.parse`.
        on_error: Called with name and error of each image that cannot be read, which is then left out.

    Returns:
        One ``supervision.Detections`` per image that could be read.
    """
    detector = in_tiles(model if isinstance(model, Detector) else load(model), tiles, batch_size)
    if out is None:
        return [item.detections for item in detector.stream(images, threshold, batch_size, on_error)]
    found: list[sv.Detections] = []
    sources = list_sources(images)[0]
    drawings = _drawing_names([source.name for source in sources])
    has_masks = detector.has_masks
    pictures = {source: f"{Path(name).stem}.panoptic.png" for source, name in drawings.items() if has_masks}
    panoptic = []
    others = [PANOPTIC_FILE] if has_masks else []
    with results_folder(out, "predictions.json", *drawings.values(), *others, *pictures.values()) as folder:
        _check_sources(sources, drawings, folder)
        for item in detector.stream(images, threshold, batch_size, on_error, keep_images=True, panoptic=has_masks):
            found.append(item.detections)
            assert item.image is not None
            save_drawing(folder / drawings[item.source], item.image, item.detections)
            if item.panoptic is not None:
                save_png(folder / pictures[item.source], item.panoptic.colors())
                entry = panoptic_entry(item.panoptic, detector.class_map, pictures[item.source], item.source)
                panoptic.append(entry)
        if found:  # where every image failed there is nothing to write
            write_predictions(folder / "predictions.json", ((None, detections) for detections in found))
        if panoptic:
            write_panoptic(folder / PANOPTIC_FILE, panoptic, detector.class_map)
    return found


def predict_video(
    model: Source | Detector,
    source: Source,
    *,
    out: Source,
    threshold: float | Thresholds | None = None,
    every: int = 1,
    track: bool = False,
    batch_size: int = 4,
    tiles: str | int | None = None,
    say: Say = lambda _message: None,
    on_line: Say = lambda _line: None,
    progress: Progress | None = None,
) -> VideoResult:
    """Detect objects in a video, stream or camera, and write a drawn video and a line of JSON for each frame.

    Ctrl-C and SIGTERM end it after the frame at work; the result then has their ``signal_number``, and what is
    written is whole. Nothing of a frame stays in memory.

    Args:
        model: Anything that :func:`load` takes, or a detector.
        source: Video file; address of a stream, such as ``rtsp://``; or number of a camera, as ``"0"``. Of what
            comes in its own time, the newest frame is always next, and those that came meanwhile are dropped.
        out: Folder for ``NAME.mp4`` and ``NAME.jsonl``.
        threshold: Least score, or thresholds by class, as in :func:`predict`.
        every: Detect in each so manieth frame only; the others are not drawn either.
        track: Follow objects, each of which gets a number.
        batch_size: Frames of a file, or tiles of a frame, at once.
        tiles: Cut frames into tiles; see :meth:`detrkit.detectors.tiles.Tiles.parse`.
        say: Called with messages for people.
        on_line: Called with each line of JSON.
        progress: Called with frames done and frames in all, where that is known.

    Raises:
        UsageError: There is no such video or camera.
        DataError: It cannot be opened, or no frame of it can be decoded.
        MissingExtraError: PyAV, or for ``track`` the library ``trackers``, is not installed.
    """
    reader = VideoReader(source, every, say)
    detector = in_tiles(model if isinstance(model, Detector) else load(model), tiles, batch_size)
    name = video_name(source)
    with results_folder(out, f"{name}.mp4", f"{name}.jsonl") as folder:
        drawn, lines = folder / f"{name}.mp4", folder / f"{name}.jsonl"
        if os.path.realpath(source) in (os.path.realpath(drawn), os.path.realpath(lines)):
            raise UsageError(f"{drawn} would replace the video that is read; give another folder")
        with StopRequest("ending the video with this frame") as stop:
            result = detect_video(
                detector,
                reader,
                drawn,
                lines,
                threshold=threshold,
                track=track,
                batch_size=batch_size,
                stopped=lambda: stop.requested,
                on_line=on_line,
                progress=progress,
            )
    return dataclasses.replace(result, signal_number=stop.signal_number)


def video_name(source: Source) -> str:
    """Return the name of what is written of a video: its own without the ending, ``camera-0``, or ``stream``."""
    text = os.fspath(source)
    if is_camera(text):
        return f"camera-{text.removeprefix('/dev/video')}"
    return "stream" if "://" in text else Path(text).stem or "video"


def _drawing_names(sources: Sequence[str]) -> dict[str, str]:
    """Return a file name for the drawing of each source; images of the same name in two folders both get one.

    Names differ even where case does not count.
    """
    taken: set[str] = set()
    found = {}
    for source in dict.fromkeys(sources):
        stem = Path(source).stem or "image"
        number = free_name(stem.lower(), taken).removeprefix(stem.lower())
        taken.add(stem.lower() + number)
        found[source] = f"{stem}{number}.png"
    return found


def _check_sources(sources: Sequence[NamedSource], drawings: Mapping[str, str], folder: Path) -> None:
    """Refuse to draw over an image that is to be read, be it an earlier drawing, and into its folder."""
    outputs = {os.path.realpath(folder / name) for name in drawings.values()}
    replaced = [source for source in drawings if os.path.realpath(source) in outputs]
    if replaced:
        raise UsageError(f"drawings in {folder} would replace {listed(replaced)}; give another folder")
    if any(source.skippable and folder.samefile(Path(source.name).parent) for source in sources):
        raise UsageError(f"{folder} is read: drawings there would be taken for its images; give another folder")
