"""``detrkit predict``."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from detrkit.cli import shared
from detrkit.cli.shared import arg, opt
from detrkit.errors import UsageError, counted


def predict(
    model: shared.ModelArgument,
    images: Annotated[
        list[str],
        arg(
            "IMAGE",
            "Image files or folders; or videos, a stream (rtsp://...), or the number of a camera, such as 0.",
        ),
    ],
    out: Annotated[
        Path | None,
        opt(
            "DIR",
            "Folder for drawn pictures and predictions.json, or NAME.mp4 and NAME.jsonl of a video; predictions, "
            "with a number if it is taken.",
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        opt("SCORE", "Least score; thresholds.json of a run if it has one, otherwise 0.5.", min=0, max=1),
    ] = None,
    threshold_file: Annotated[
        Path | None, opt("FILE", "Least scores by class, as detrkit thresholds writes them.", "--thresholds")
    ] = None,
    tiles: shared.TilesOption = None,
    track: Annotated[bool, opt(None, "Follow objects in a video; each gets a number.", "--track")] = False,
    every: Annotated[int, opt("N", "Of a video, only each Nth frame.", min=1)] = 1,
    batch_size: shared.BatchOption = 4,
    device: shared.DeviceOption = None,
    precision: shared.PrecisionOption = None,
    preset: shared.AsOption = None,
    classes: Annotated[
        str | None,
        opt("FILE", "Class names where the weights hold none: COCO JSON, a name a line, or coco.", "--classes"),
    ] = None,
    ray: Annotated[
        bool,
        opt(None, "On a Ray cluster, in parts, without drawings; IMAGE is a folder or a list (.txt).", "--ray"),
    ] = False,
    workers: Annotated[
        int | None, opt("N", "Ray workers; one a GPU, or for four processors, if not given.", min=1)
    ] = None,
    as_json: shared.JsonOption = False,
) -> None:
    """Detect objects in images: draws them and writes predictions.json in COCO format.

    Of a video, stream or camera: a drawn video, and a line of JSON for each frame.
    """
    failures: list[str] = []
    with shared.errors():
        from detrkit.api.load import load
        from detrkit.api.predict import predict as detect
        from detrkit.ops.video import is_video

        videos = [source for source in images if is_video(source)]
        if videos and len(videos) < len(images):
            raise UsageError(f"{videos[0]} is a video, and others are images; give one kind at a time")
        if not videos and (track or every > 1):
            raise UsageError(f"--track and --every are of videos, which {images[0]} is not by its name")
        detector = load(model, preset, **shared.given(classes=classes, device=device, precision=precision))
        chosen = _threshold(detector, model, threshold, threshold_file, shared.quiet if as_json else shared.say)
        if ray:
            options = shared.given(model=preset, classes=classes, device=device, precision=precision)
            asked = {"threshold": chosen, "batch_size": batch_size, "tiles": tiles, "workers": workers}
            _predict_on_ray(detector, model, images, out, {**asked, "options": options}, as_json)
            return
        if workers is not None:
            raise UsageError("--workers is of --ray; give that too")
        folder = out or shared.free_folder(Path("predictions"))
        if videos:
            options = {"threshold": chosen, "out": folder, "batch_size": batch_size, "tiles": tiles}
            _detect_videos(detector, videos, as_json, every=every, track=track, **options)
            return
        found = detect(
            detector,
            [*images],
            threshold=chosen,
            out=folder,
            batch_size=batch_size,
            tiles=tiles,
            on_error=lambda _name, error: failures.append(str(error)),
        )
        for failure in failures:
            typer.echo(f"skipped {failure}", err=True)
        if failures and not found:
            shared.fail("no image could be read, and nothing was written", 1)
        if as_json:
            typer.echo((folder / "predictions.json").read_text(encoding="utf-8"), nl=False)
        else:
            count = sum(len(detections) for detections in found)
            what = f"{counted(count, 'object')} in {counted(len(found), 'image')}"
            shared.say(f"{what}; drawn pictures and predictions.json in {folder}")
    if failures:
        raise typer.Exit(1)


def _detect_videos(detector: Any, videos: Sequence[str], as_json: bool, **options: Any) -> None:
    """Detect in one video after the other, and say what became of each."""
    from detrkit.api.predict import predict_video, video_name

    names = [video_name(video) for video in videos]
    if len({name.lower() for name in names}) < len(names):
        raise UsageError(f"of {', '.join(names)} two would be written under one name; give one at a time")
    is_whole = True
    for video in videos:
        with shared.progress_bar("detecting", as_json) as progress:
            result = predict_video(
                detector,
                video,
                say=functools.partial(typer.echo, err=True),
                on_line=typer.echo if as_json else shared.quiet,
                progress=progress,
                **options,
            )
        if not as_json:
            what = f"{counted(result.detections, 'object')} in {counted(result.frames, 'frame')}"
            tracks = "" if result.tracks is None else f", {counted(result.tracks, 'object')} followed"
            shared.say(f"{what}{tracks}; drawn video {result.drawn}, detections {result.lines}")
            for note in result.notes:
                shared.say(f"  {note}")
        for fault in result.faults:
            typer.echo(f"error: {fault}", err=True)
        is_whole &= not result.faults
        if result.signal_number is not None:
            shared.fail("interrupted", 128 + result.signal_number)
    if not is_whole:
        raise typer.Exit(1)


def _threshold(detector: Any, model: str, number: float | None, file: Path | None, say: Any) -> Any:
    """Return the threshold that was asked for; say which one it is where none was."""
    from detrkit.threshold_file import FILE_NAME, read_thresholds

    if number is not None and file is not None:
        raise UsageError("--threshold and --thresholds both say from which score on; give one")
    if file is not None:
        return read_thresholds(file, detector.class_map)
    if number is None and detector.thresholds is not None:
        say(f"Thresholds of {Path(model) / FILE_NAME}; --threshold SCORE for another")
    return number


def _predict_on_ray(
    detector: Any, model: str, images: list[str], out: Path | None, asked: dict[str, Any], as_json: bool
) -> None:
    """Detect on a Ray cluster, and tell what came of it."""
    from detrkit.detectors.ray_predict import predict_on_ray

    if out is None or len(images) != 1:
        raise UsageError("--ray needs --out DIR, to go on there if it is killed, and one folder or list")
    with shared.progress_bar("parts", as_json) as progress:
        say = shared.quiet if as_json else shared.say
        found = predict_on_ray(detector, model, images[0], out, say=say, progress=progress, **asked)
    for failure in found.failures:
        typer.echo(f"skipped {failure}", err=True)
    if not found.pictures:
        shared.fail("no image could be read", 1)
    if as_json:
        typer.echo((out / "predictions.json").read_text(encoding="utf-8"), nl=False)
    else:
        what = f"{counted(found.objects, 'object')} in {counted(found.pictures, 'image')}"
        shared.say(f"{what}; predictions.json and its parts in {out}")
    if found.failures:
        raise typer.Exit(1)
