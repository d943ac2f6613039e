"""The command line. Nothing heavy is imported before a command runs, so that ``--help`` answers at once."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import typer

from detrkit.cli import data as data_verbs
from detrkit.cli.benchmark import benchmark
from detrkit.cli.compare import compare
from detrkit.cli.demo import demo
from detrkit.cli.deploy import deploy
from detrkit.cli.doctor import doctor
from detrkit.cli.drift import drift
from detrkit.cli.eval import evaluate
from detrkit.cli.export import export
from detrkit.cli.gate import gate
from detrkit.cli.models import models
from detrkit.cli.optimize import optimize
from detrkit.cli.plot import plot
from detrkit.cli.predict import predict
from detrkit.cli.preflight import preflight
from detrkit.cli.profile import profile
from detrkit.cli.release import release
from detrkit.cli.resume import resume
from detrkit.cli.serve import serve
from detrkit.cli.thresholds import thresholds
from detrkit.cli.train import train
from detrkit.cli.tune import tune
from detrkit.cli.verify import verify

app = typer.Typer(
    name="detrkit",
    help="From a folder of images to a DETR detector in production.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
)
app.add_typer(data_verbs.app, name="data")


app.command(short_help="The whole road on a built-in data set, on a CPU.")(demo)
app.command(short_help="Versions, devices, what is missing, what clashes.")(doctor)
app.command("eval", short_help="How good a model is, how sure that is, and why.")(evaluate)
app.command(short_help="Which of several detectors is better, and how sure that is.")(compare)
app.command(short_help="The score from which detections are taken.")(thresholds)
app.command(short_help="Presets, and which have published weights.")(models)
app.command(short_help="Will it learn? Faults found before the long run.")(preflight)
app.command(short_help="Search for settings by many short trainings.")(tune)
app.command(short_help="Where a training step's time and memory go.")(profile)
app.command(short_help="How fast models are on this machine.")(benchmark)
app.command(short_help="Curves of one or several runs.")(plot)
app.command(short_help="Train or fine-tune on your data set.")(train)
app.command(short_help="Go on with a training that was stopped.")(resume)
app.command(short_help="Detect objects in images and draw them.")(predict)
app.command(short_help="Write a model as a bundle that runs without torch.")(export)
app.command(short_help="The fastest variant of a model that is as good.")(optimize)
app.command(short_help="Prove that a bundle finds what its model found.")(verify)
app.command(short_help="Stop a model that is worse or slower than the released one.")(gate)
app.command(short_help="Publish a model if the gate lets it through, and go back.")(release)
app.command(short_help="Serve bundles over HTTP.")(serve)
app.command(short_help="Files that serve a bundle in containers, clusters, services.")(deploy)
app.command(short_help="Are a served model's pictures like those it was made for?")(drift)


def main() -> None:
    """Entry point of the ``detrkit`` command."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    app()


def _show_warning(message: Warning | str, *_where: Any) -> None:
    """Print a warning as people want it: what, not the line of Python that it came from."""
    typer.echo(f"WARNING: {message}", err=True)
