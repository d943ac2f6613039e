"""The verb of ``detrkit benchmark`` as a Python call; public as ``detrkit.benchmark``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from detrkit.api.common import Progress, Say, Source
from detrkit.config import Config
from detrkit.data.coco import CocoDataset
from detrkit.data.split import read_split
from detrkit.detectors.measure_latency import MASKS_FROM, measure_decode
from detrkit.errors import UsageError
from detrkit.families.presets import PRESETS
from detrkit.files import make_folder
from detrkit.ops.images import decode_image
from detrkit.profiling.speed import (
    Speed,
    add_cold_start,
    all_settings,
    describe_environment,
    made_up_image,
    measure_speed,
)
from detrkit.profiling.speed_report import write_speed

REPEATS = 20
WARM_UP = 3
IMAGES = 8
"""Of a data set; more would make each row slower to warm up, as each size is run before it counts."""


def benchmark(
    models: Source | Sequence[Source],
    *,
    batch_sizes: Sequence[int] = (1,),
    sizes: Sequence[int] = (),
    threads: Sequence[int] = (),
    devices: Sequence[str] = ("auto",),
    precisions: Sequence[str] = ("32",),
    backends: Sequence[str] = ("eager",),
    streams: Sequence[int] = (1,),
    cold_start: bool = False,
    images: Sequence[Source] = (),
    data: Source | None = None,
    split: str = "val",
    image_folder: Source | None = None,
    repeats: int = REPEATS,
    warm_up: int = WARM_UP,
    out: Source | None = None,
    say: Say = lambda _line: None,
    progress: Progress | None = None,
) -> Speed:
    """Measure speed alone: every combination of settings of every model, in turn on this machine.

    Args:
        models: Presets (with random weights, which are as fast), runs, checkpoints, ``torchvision:NAME``,
            ``torchvision:NAME@random``, ``hf:ID``, bundles (``@RUNTIME`` behind them): anything that runs.
        batch_sizes: Images at once.
        sizes: Short sides of the network's input; the model's own if none is given.
        threads: Threads that torch may use on the CPU; its own choice if none is given.
        devices: auto, cpu, cuda or cuda:N.
        precisions: 32, bf16 or 16.
        backends: eager, compile for ``torch.compile``, or cuda-graphs for that with CUDA graphs.
        streams: Batches at once, for bundles: more images a second, and a longer wait for each.
        cold_start: Measure loading and the first detections of a fresh process too, for bundles.
        images: Image files to detect in; a made-up image of 640 x 480 if neither these nor ``data`` are given.
        data: Data set whose first images are taken.
        split: Split of the data set.
        image_folder: Folder of the images of ``data``, where they lie elsewhere.
        repeats: Batches that are timed of each setting.
        warm_up: Batches before, at least.
        out: Folder for ``speed.json`` and ``speed.html``; nothing is written if not given.
        say: Receives messages for people.
        progress: Called with batches timed and batches in all.

    Raises:
        UsageError: A value is none that is known. What fails in a single setting is told in its row instead.
        ImageError: An image cannot be read.
    """
    for name, number, least in (("repeats", repeats, 1), ("warm_up", warm_up, 0)):
        if number < least:
            raise UsageError(f"{name} is {number}, expected at least {least}")
    listed = [models] if isinstance(models, str | os.PathLike) else models
    settings = all_settings(
        [os.fspath(model) for model in listed],
        devices=devices,
        precisions=precisions,
        backends=backends,
        sizes=list(sizes) or [None],
        batch_sizes=batch_sizes,
        threads=list(threads) or [None],
        streams=streams,
    )
    folder = None if out is None else make_folder(out, "speed.json", "speed.html")
    pixels, files, told = _pictures(images, data, split, image_folder)
    notes = _notes([setting.model for setting in settings])
    for note in notes:
        say(note)
    environment = describe_environment()
    rows = measure_speed(settings, pixels, repeats=repeats, warm_up=warm_up, progress=progress)
    if cold_start:
        rows = [add_cold_start(row) for row in rows]
    speed = Speed(tuple(rows), environment, told, measure_decode(files) if files else None, notes)
    if folder is not None:
        write_speed(folder, speed)
    return speed


def _pictures(
    images: Sequence[Source], data: Source | None, split: str, image_folder: Source | None
) -> tuple[list[Tensor], list[Path], str]:
    """Return images in memory, their files, and what they are."""
    if images and data is not None:
        raise UsageError("both images and data are given; give one of them")
    if data is not None:
        folder = None if image_folder is None else os.fspath(image_folder)
        part = read_split(Config(), split, os.fspath(data), may_lose=True, image_folder=folder)
        dataset = CocoDataset(part.index, part.files.images, None)
        rows = range(min(IMAGES, len(dataset)))
        files = [Path(dataset.images) / part.index.file_name(row) for row in rows]
        return [dataset.read_image(row) for row in rows], files, f"{len(rows)} images of {part.files.annotations}"
    if images:
        files = [Path(image) for image in images]
        return [decode_image(file) for file in files], files, f"{len(files)} image file{'s'[: len(files) > 1]}"
    return [made_up_image()], [], "a made-up image of 640 x 480"


def _notes(models: Sequence[str]) -> tuple[str, ...]:
    random = [model for model in dict.fromkeys(models) if model in PRESETS]
    if not random:
        return ()
    notes = [f"random weights, which are as fast as trained ones: {', '.join(random)}"]
    masked = [model for model in random if PRESETS[model].config().model.masks]
    if masked:
        notes.append(
            f"masks are timed for detections of a score of {MASKS_FROM:g} or more, of which random weights "
            f"have few: {', '.join(masked)}; time a trained model to know what masks cost"
        )
    return tuple(notes)
