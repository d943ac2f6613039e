"""What all commands share: options, errors and exit codes, talking to people."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from detrkit.config import PRECISIONS, parse_yaml
from detrkit.errors import ConfigError, DetrkitError, UsageError, counted

if TYPE_CHECKING:
    from detrkit.training.run import Drawings


def opt(metavar: str | None, help: str, *names: str, **limits: Any) -> Any:
    """Describe an option: its value's name, its help, its own names where they are not the parameter's."""
    return typer.Option(*names, metavar=metavar, help=help, **limits)


def arg(metavar: str, help: str) -> Any:
    """Describe an argument: its value's name, its help."""
    return typer.Argument(metavar=metavar, help=help)


ModelArgument = Annotated[
    str,
    arg(
        "MODEL",
        "Preset (detr-r50), run folder, checkpoint, published .pth, Hugging Face folder or id, or address.",
    ),
]
DataOption = Annotated[
    Path | None, opt("DATA", "Data set: folder in COCO, Roboflow, YOLO or VOC layout, or its data.yaml.", "--data")
]
ImageFolderOption = Annotated[
    Path | None,
    opt(
        "DIR",
        "Folder of the images, or of one for each split, where DATA holds only annotations.",
        "--image-folder",
    ),
]
InitOption = Annotated[
    str | None,
    opt("INIT", "Starting weights: published, backbone (ImageNet), none, a path or a hub id.", "--init"),
]
LrOption = Annotated[float | None, opt("RATE", "Learning rate of everything but the backbone.")]
RecipeOption = Annotated[
    str | None,
    opt(
        "RECIPE",
        "plain (as published), fast (little data), deim (denser, for real-time DETRs) or auto: fast without "
        "pretrained weights, else plain",
        "--recipe",
    ),
]
ConfigOption = Annotated[Path | None, opt("FILE", "YAML file over the preset or the run's config.", "--config")]
SetOption = Annotated[
    list[str] | None, opt("KEY=VALUE", "Any config value, such as train.lr=1e-4; may repeat.", "--set")
]
DeviceOption = Annotated[str | None, opt("DEVICE", "auto, cpu, cuda or cuda:N.")]
PrecisionOption = Annotated[str | None, opt("PRECISION", "32, bf16 or 16.")]
BatchOption = Annotated[int, opt("N", "Images at once; results do not depend on it.", "--batch-size", min=1)]
SplitOption = Annotated[str | None, opt("NAME", "Split of the data; val if not given.")]
JsonOption = Annotated[bool, opt(None, "Print the result as JSON for programs.", "--json")]
TilesOption = Annotated[
    str | None,
    opt(
        "SIZE[/OVERLAP[/only]]",
        "Cut images into tiles of so many pixels, as 640/128; only: without a pass over the whole image.",
        "--tiles",
    ),
]
AsOption = Annotated[
    str | None,
    opt("PRESET", "Preset of the weights, or num_heads=N,dilation=true, where the file cannot tell.", "--as"),
]


_LONGEST_MESSAGE = 8000


@contextlib.contextmanager
def errors() -> Iterator[None]:
    """Turn errors into a message and an exit code: 2 asked wrongly, 1 failed, 130 interrupted (143 by SIGTERM)."""
    try:
        yield
    except UsageError as error:
        fail(str(error), 2)
    except DetrkitError as error:
        fail(str(error), 1)
    except ModuleNotFoundError as error:  # an install without torch, which runs bundles and no more
        if error.name is None or error.name.startswith("detrkit"):
            raise
        fail(
            f"{error.name.partition('.')[0]} is not installed, which this needs; run: pip install detrkit. "
            "Without torch, there are detrkit verify BUNDLE, detrkit doctor and detrkit.runtime",
            2,
        )
    except BrokenPipeError:
        raise
    except OSError as error:  # a full disk, a folder taken away: the world's fault, and no traceback helps
        where = f"{error.filename}: " if error.filename else ""
        fail(f"{where}{error.strerror or error}", 1)
    except KeyboardInterrupt as error:  # a training tells the number of its signal
        fail("interrupted", 128 + next(iter(error.args), 2))


def fail(message: str, code: int) -> NoReturn:
    """Say what went wrong on standard error and end the command.

    Of several training processes, all find what was asked wrongly; other faults may be one process's own.
    """
    if len(message) > _LONGEST_MESSAGE:  # a value of a damaged file may be all of it; what to do stands at the end
        message = f"{message[: _LONGEST_MESSAGE // 2]} ... {message[-_LONGEST_MESSAGE // 4 :]}"
    if _is_first_process():
        typer.echo(f"error: {message}", err=True)
    elif code != 2:
        typer.echo(f"process {os.environ.get('RANK', os.environ.get('LOCAL_RANK'))}: error: {message}", err=True)
    raise typer.Exit(code)


def say(message: str) -> None:
    """Print for people; of several training processes, only the first does."""
    if _is_first_process():
        typer.echo(message)


def print_json(value: object) -> None:
    """Print a result for programs."""
    from detrkit.files import to_plain

    typer.echo(json.dumps(value, indent=1, default=to_plain, allow_nan=False))


def report(found: Any, as_json: bool, written: str = "", *, passed: bool = True) -> None:
    """Print a result: its ``to_dict()`` for programs, or its ``lines()`` and where it was written.

    Raises:
        typer.Exit: With 1, where the result is that something did not pass.
    """
    if as_json:
        print_json(found.to_dict())
    else:
        for line in [*found.lines(), *([written] if written else [])]:
            say(line)
    if not passed:
        raise typer.Exit(1)


def _is_first_process() -> bool:
    """By what torchrun, or Fabric's launcher, told this process."""
    return all(os.environ.get(rank, "0") == "0" for rank in ("RANK", "LOCAL_RANK", "NODE_RANK"))


def quiet(_message: str) -> None:
    """Say nothing: where a program reads the output."""


def given(**options: Any) -> dict[str, Any]:
    """Return the options that a person gave; the others keep the default of the function that is called.

    Raises:
        UsageError: A precision is none.
    """
    if options.get("precision") not in (None, *PRECISIONS):
        raise UsageError(f"--precision is {options['precision']!r}, expected one of {', '.join(PRECISIONS)}")
    return {name: value for name, value in options.items() if value is not None}


def free_folder(folder: Path) -> Path:
    """Return the folder, or with the first number behind it under which nothing lies, so that no result is lost.

    Folders without content, such as those of commands that failed, count as free.
    """
    names = (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(2))
    candidates = itertools.chain([folder], names)
    return next(
        path for path in candidates if not (any(path.iterdir()) if path.is_dir() else os.path.lexists(path))
    )


@contextlib.contextmanager
def progress_bar(title: str, hidden: bool) -> Iterator[Any]:
    """Show a progress bar on standard error; give a function of images done and images in all."""
    with step_bar(hidden) as update:
        yield functools.partial(update, title)


@contextlib.contextmanager
def step_bar(hidden: bool) -> Iterator[Any]:
    """Show progress bars on standard error, one below the other; give a function of step, done and in all."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    title = TextColumn("{task.description}", markup=False)
    columns = (title, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    tasks: dict[str, Any] = {}
    with Progress(*columns, console=console, disable=hidden or not sys.stderr.isatty()) as bar:

        def update(step: str, done: int, total: int) -> None:
            if step not in tasks:
                tasks[step] = bar.add_task(step, total=total)
            bar.update(tasks[step], completed=done, total=total)

        yield update


def run_drawings() -> Drawings:
    """Return the functions that draw a training's curves and sample detections."""
    from detrkit.detectors.on_split import draw_found
    from detrkit.training.run import Drawings
    from detrkit.visual.curves import plot_curves

    return Drawings(plot_curves, draw_found)


def report_run(result: Any) -> None:
    """Say how a training ended, and exit as it did."""
    from detrkit.training.telemetry.log import best_metric

    without = "no AP could be measured: best.pt is the newest state" if result.last_metrics else "not evaluated"
    best = without if result.best is None else f"best {best_metric(result.last_metrics)} {result.best:.3f}"
    done = f"{counted(result.epochs, 'epoch')}, {counted(result.steps, 'step')}"
    say(f"{done}, {best}. Run folder: {result.run_dir}")
    end_of_training(result)


def end_of_training(result: Any) -> None:
    """Exit with the number of the signal that ended a training, if one did."""
    if result.stopped == "interrupted":
        raise typer.Exit(128 + (result.signal_number or 2))


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """Turn ``["train.lr=1e-4", ...]`` of the command line into changes for :func:`update_config`.

    Raises:
        ConfigError: A piece has no ``=`` or its value is not YAML.
    """
    changes: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {assignment!r}: expected KEY=VALUE, for instance train.lr=1e-4")
        try:
            parsed = parse_yaml(value)
        except ValueError as error:
            raise ConfigError(f"--set {assignment!r}: the value is not valid YAML: {error}") from error
        # precision=16 or =32 reads as a number, but those are names
        changes[key.strip()] = value.strip() if key.strip() == "train.precision" else parsed
    return changes
