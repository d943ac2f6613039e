"""The command line. Nothing heavy is imported before a command runs, so that ``--help`` answers at once."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from detrkit.cli import data as data_verbs
from detrkit.cli.benchmark import benchmark
from detrkit.cli.compare import compare
from detrkit.cli.eval import evaluate
from detrkit.cli.models import models
from detrkit.cli.plot import plot
from detrkit.cli.preflight import preflight
from detrkit.cli.profile import profile
from detrkit.cli.shared import (
    AsOption,
    BatchOption,
    ConfigOption,
    DataOption,
    DeviceOption,
    InitOption,
    JsonOption,
    ModelArgument,
    PrecisionOption,
    RecipeOption,
    SetOption,
    checked_precision,
    counted,
    errors,
    free_folder,
    quiet,
    say,
)
from detrkit.cli.thresholds import thresholds
from detrkit.cli.tune import tune
from detrkit.errors import UsageError

app = typer.Typer(
    name="detrkit",
    help="From a folder of images to a DETR detector in production.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
)
app.add_typer(data_verbs.app, name="data")


@app.command(short_help="The whole road on a built-in data set, on a CPU.")
def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for everything the demo makes.")] = Path("demo"),
    images: Annotated[int | None, typer.Option(min=8, metavar="N", help="Training images to make.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, metavar="N", help="Passes over them.")] = None,
    model: Annotated[
        str, typer.Option(metavar="PRESET", help="Model to train, such as detr-tiny, the classic one.")
    ] = "detr-tiny-two-stage",
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of the data and the training.")] = 0,
) -> None:
    """The whole road on a built-in data set, in minutes, on a CPU: data, training, evaluation, pictures."""
    with errors():
        from detrkit.cli.demo import run_demo

        result = run_demo(out, images=images, epochs=epochs, model=model, seed=seed, say=say)
        _end_of_training(result.stopped, result.signal_number)


@app.command(short_help="Versions, devices, what is missing, what clashes.")
def doctor(as_json: JsonOption = False) -> None:
    """Versions, devices, what is missing, what is known to clash. Exits with 1 if detrkit cannot work."""
    from detrkit.cli.doctor import examine

    findings = examine()
    if as_json:
        typer.echo(json.dumps([vars(finding) for finding in findings], indent=1))
    else:
        marks = {"ok": "ok     ", "warning": "WARNING", "error": "ERROR  "}
        for finding in findings:
            advice = f" -> {finding.advice}" if finding.advice else ""
            typer.echo(f"{marks[finding.status]}  {finding.name}: {finding.found}{advice}")
        worst = [finding for finding in findings if finding.status == "error"]
        typer.echo(f"{len(worst)} problems found." if worst else "detrkit can work here.")
    if any(finding.status == "error" for finding in findings):
        raise typer.Exit(1)


app.command("eval", short_help="How good a model is, how sure that is, and why.")(evaluate)
app.command(short_help="Which of several detectors is better, and how sure that is.")(compare)
app.command(short_help="The score from which detections are taken.")(thresholds)
app.command(short_help="Presets, and which have published weights.")(models)
app.command(short_help="Will it learn? Faults found before the long run.")(preflight)
app.command(short_help="Search for settings by many short trainings.")(tune)
app.command(short_help="Where a training step's time and memory go.")(profile)
app.command(short_help="How fast models are on this machine.")(benchmark)
app.command(short_help="Curves of one or several runs.")(plot)


@app.command(short_help="Train or fine-tune on your data set.")
def train(
    model: Annotated[str, typer.Option(metavar="PRESET", help="Which model; see: detrkit models.")] = "detr-r50",
    data: DataOption = None,
    run: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder for the run; runs/MODEL-1 and so on if not given."),
    ] = None,
    init: InitOption = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Passes over the training images.")
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(
            "--batch-size",
            "--batch",
            metavar="N|auto",
            help="Images a batch and process; auto: as configured, in the largest pieces that memory holds.",
        ),
    ] = None,
    go_on: Annotated[
        bool, typer.Option("--resume", help="If --run holds a training already, go on with that one.")
    ] = False,
    recipe: RecipeOption = None,
    config: ConfigOption = None,
    assignments: SetOption = None,
    ray: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Train on a Ray cluster, with N processes of a GPU or CPU each."),
    ] = None,
    replay: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Do not train: repeat a step that was not finite (RUN/nonfinite) and find where it began.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="With --replay: print what it found as JSON.")] = False,
) -> None:
    """Train or fine-tune on your data set. Ctrl-C saves; go on with: detrkit resume RUN."""
    with errors():
        if replay is not None:
            _replay(replay, as_json)
            return
        from detrkit.config import parse_assignments

        changes = parse_assignments(assignments or [])
        from detrkit.api import verbs as api

        result = api.train(
            model,
            data,
            run=run,
            config=config,
            init=init,
            epochs=epochs,
            batch_size=_batch_size(batch),
            recipe=recipe,  # type: ignore[arg-type]
            go_on=go_on,
            ray_workers=ray,
            changes=changes,
            say=say,
        )
        _report_run(result)


@app.command(short_help="Go on with a training that was stopped.")
def resume(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of the run to go on with.")],
    epochs: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="A new total, to train longer than planned.")
    ] = None,
) -> None:
    """Go on with a training that was stopped, from its last checkpoint."""
    with errors():
        from detrkit.api import verbs as api

        _report_run(api.resume(run, epochs=epochs, say=say))


@app.command(short_help="Detect objects in images and draw them.")
def predict(
    model: ModelArgument,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Image files or folders.")],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder for drawn pictures and predictions.json; predictions, with a number if it is taken.",
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            metavar="SCORE",
            help="Least score; thresholds.json of a run if it has one, otherwise 0.5.",
        ),
    ] = None,
    threshold_file: Annotated[
        Path | None,
        typer.Option(
            "--thresholds", metavar="FILE", help="Least scores by class, as detrkit thresholds writes them."
        ),
    ] = None,
    batch_size: BatchOption = 4,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "32",
    preset: AsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Detect objects in images: draws them and writes predictions.json in COCO format."""
    failures: list[str] = []
    with errors():
        from detrkit.api import verbs as api

        detector = api.load(model, preset, device=device, precision=checked_precision(precision))
        chosen = _threshold(detector, model, threshold, threshold_file, quiet if as_json else say)
        folder = out or free_folder(Path("predictions"))
        found = api.predict(
            detector,
            [str(image) for image in images],
            threshold=chosen,
            out=folder,
            batch_size=batch_size,
            on_error=lambda _name, error: failures.append(str(error)),
        )
        for failure in failures:
            typer.echo(f"skipped {failure}", err=True)
        if as_json:
            typer.echo((folder / "predictions.json").read_text(encoding="utf-8"), nl=False)
        else:
            count = sum(len(detections) for detections in found)
            what = f"{counted(count, 'object')} in {counted(len(found), 'image')}"
            say(f"{what}; drawn pictures and predictions.json in {folder}")
    if failures:
        raise typer.Exit(1)


@app.command(short_help="Write a model's weights in another layout.")
def export(
    model: ModelArgument,
    out: Annotated[Path, typer.Option(metavar="PATH", help="A .pth file for published, a folder for hub.")],
    layout: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="published: as the DETR authors' files; hub: for Hugging Face transformers.",
        ),
    ] = "hub",
    preset: AsOption = None,
) -> None:
    """Write a model's weights in another layout, bit-equal."""
    with errors():
        from detrkit.api import verbs as api

        if layout not in ("published", "hub"):
            raise UsageError(f"--format is {layout!r}, expected published or hub")
        path = api.export(model, out, layout=layout, preset=preset)  # type: ignore[arg-type]
        say(f"Written to {path}")


def main() -> None:
    """Entry point of the ``detrkit`` command."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    app()


def _show_warning(message: Warning | str, *_where: Any) -> None:
    """A warning as people want it: what, not the line of Python that it came from."""
    typer.echo(f"WARNING: {message}", err=True)


def _threshold(detector: Any, model: str, number: float | None, file: Path | None, say: Any) -> Any:
    """The threshold that was asked for, and which one it is said where it was not."""
    from detrkit.threshold_file import FILE_NAME, read_thresholds

    if number is not None and file is not None:
        raise UsageError("--threshold and --thresholds both say from which score on; give one")
    if file is not None:
        return read_thresholds(file, detector.class_map)
    if number is None and detector.thresholds is not None:
        say(f"Thresholds of {Path(model) / FILE_NAME}; --threshold SCORE for another")
    return number


def _batch_size(text: str | None) -> int | Literal["auto"] | None:
    if text is None or text == "auto":
        return text  # type: ignore[return-value]
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"--batch-size is {text!r}, expected a number of images, at least 1, or auto")
    return int(text)


def _replay(source: Path, as_json: bool) -> None:
    from detrkit.api import verbs as api

    diagnosis = api.replay(source)
    if as_json:
        typer.echo(json.dumps(diagnosis.to_dict(), indent=1, allow_nan=False))
        return
    for line in [f"{diagnosis.file}:", *diagnosis.lines()]:
        say(line)


def _report_run(result: Any) -> None:
    best = "not evaluated" if result.best is None else f"best AP {result.best:.3f}"
    done = f"{counted(result.epochs, 'epoch')}, {counted(result.steps, 'step')}"
    say(f"{done}, {best}. Run folder: {result.run_dir}")
    _end_of_training(result.stopped, result.signal_number)


def _end_of_training(stopped: str, signal_number: int | None) -> None:
    if stopped == "interrupted":
        raise typer.Exit(128 + (signal_number or 2))
