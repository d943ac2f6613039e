"""``detrkit benchmark``: how fast models are on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from detrkit.cli import shared
from detrkit.cli.shared import arg, opt
from detrkit.errors import UsageError


def benchmark(
    models: Annotated[
        list[str],
        arg(
            "MODEL...",
            "Presets (built with random weights, which are as fast), run folders, checkpoints, "
            "torchvision:NAME, torchvision:NAME@random, hf:ID, bundles with or without @RUNTIME.",
        ),
    ],
    batch_sizes: Annotated[str, opt("N,N", "Images at once.")] = "1",
    sizes: Annotated[str, opt("N,N", "Short sides of the input; each model's own if not given.")] = "",
    threads: Annotated[str, opt("N,N", "Threads of the CPU; torch's own choice if not given.")] = "",
    device: Annotated[str, opt("DEVICE,DEVICE", "auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[str, opt("P,P", "32, bf16 or 16.")] = "32",
    backends: Annotated[str, opt("B,B", "eager, compile (torch.compile) or cuda-graphs.")] = "eager",
    streams: Annotated[str, opt("N,N", "Batches at once, for bundles.")] = "1",
    cold_start: Annotated[
        bool, opt(None, "Time a fresh process's first picture too, loading counted; for bundles.", "--cold-start")
    ] = False,
    image: Annotated[
        list[Path] | None, opt("FILE", "Image to detect in; may repeat. A made-up one if not given.")
    ] = None,
    data: shared.DataOption = None,
    image_folder: shared.ImageFolderOption = None,
    split: Annotated[str, opt("NAME", "Split of --data.")] = "val",
    repeats: Annotated[int, opt("N", "Batches timed of each setting.", min=1)] = 20,
    warm_up: Annotated[int, opt("N", "Batches before, at least.", min=0)] = 3,
    out: Annotated[
        Path | None, opt("DIR", "Folder for speed.json and speed.html; speed, with a number if it is taken.")
    ] = None,
    as_json: shared.JsonOption = False,
) -> None:
    """Speed alone: latency percentiles, images a second, parameters, arithmetic and memory of models.

    Every combination of the settings is measured; all take turns, so that a machine that slows down hurts all
    alike. What cannot be measured, for want of memory say, is told in its row.
    """
    with shared.errors():
        from detrkit.api.benchmark import benchmark as measure

        folder = out or shared.free_folder(Path("speed"))
        with shared.progress_bar("timing", as_json) as progress:
            speed = measure(
                models,
                batch_sizes=_numbers(batch_sizes, "--batch-sizes"),
                sizes=_numbers(sizes, "--sizes"),
                threads=_numbers(threads, "--threads"),
                devices=_words(device),
                precisions=_words(precision),
                backends=_words(backends),
                streams=_numbers(streams, "--streams"),
                cold_start=cold_start,
                images=image or [],
                data=data,
                split=split,
                image_folder=image_folder,
                repeats=repeats,
                warm_up=warm_up,
                out=folder,
                say=shared.quiet,  # the table ends with the same notes
                progress=progress,
            )
        if as_json:
            shared.print_json(speed.to_dict())
        else:
            from detrkit.profiling.speed_report import speed_lines

            for line in speed_lines(speed):
                shared.say(line)
            shared.say(f"Written to {folder}: speed.json, speed.html")
        if all(row.problem for row in speed.rows):
            shared.fail(f"nothing could be measured: {speed.rows[0].problem}", 1)


def _words(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _numbers(text: str, option: str) -> list[int]:
    try:
        return [int(word) for word in _words(text)]
    except ValueError as error:
        raise UsageError(f"{option} is {text!r}, expected numbers with commas between, such as 1,4") from error
