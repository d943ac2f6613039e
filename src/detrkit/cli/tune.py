"""``detrkit tune``: search for settings, and the learning-rate range test."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from detrkit.cli import shared
from detrkit.cli.shared import opt
from detrkit.config import DEFAULT_PRESET
from detrkit.errors import UsageError

SHOWN_TRIALS = 5


def tune(
    model: Annotated[str | None, opt("PRESET", "Which model to train; detr-r50 if not given.")] = None,
    data: shared.DataOption = None,
    trials: Annotated[int | None, opt("N", "Trials in all, finished ones counted; 20 at first.", min=1)] = None,
    epochs: Annotated[int | None, opt("N", "Epochs of each trial.", min=1)] = None,
    out: Annotated[
        Path | None,
        opt("DIR", "Folder of the study; give it again to go on. tune, or lr-range with a free number."),
    ] = None,
    workers: Annotated[int, typer.Option(hidden=True)] = 1,
    space: Annotated[
        Path | None, opt("FILE", "YAML of config keys and their ranges or choices; see docs/tuning.md.")
    ] = None,
    pruner: Annotated[
        str | None, opt("NAME", "How hopeless trials end early: median (if not given), hyperband or none.")
    ] = None,
    no_prune: Annotated[bool, opt(None, "Train every trial to its end.", "--no-prune")] = False,
    storage: Annotated[str | None, opt("URL", "Database for several machines; DIR/study.db if not given.")] = None,
    study: Annotated[str | None, opt("NAME", "Name in that database; that of DIR if not given.")] = None,
    init: shared.InitOption = None,
    config: shared.ConfigOption = None,
    assignments: shared.SetOption = None,
    lr_range: Annotated[
        bool, opt(None, "No search: one short training with a rising learning rate suggests one.", "--lr-range")
    ] = False,
    steps: Annotated[int, opt("N", "Steps of --lr-range.", min=20)] = 120,
    as_json: shared.JsonOption = False,
) -> None:
    """Search for settings: many short trainings, the best config ready to train. Needs detrkit[tune].

    Stopped in any way, it goes on with: detrkit tune --out DIR
    """
    with shared.errors():
        from detrkit.api import tune as verbs

        tell = shared.quiet if as_json else shared.say
        changes = shared.parse_assignments(assignments or [])
        training: dict[str, Any] = {"data": data, "config": config, "init": init, "changes": changes, "say": tell}
        if lr_range:
            _only_search(trials=trials, space=space, pruner=pruner, storage=storage, study=study)
            folder = out or shared.free_folder(Path("lr-range"))
            found = verbs.lr_range(model or DEFAULT_PRESET, out=folder, steps=steps, **training)
            written = f"Curve: {folder / 'lr_range.png'}; figures: {folder / 'lr_range.json'}"
            shared.report(found, as_json, written)
            return
        result = verbs.tune(
            model,
            epochs=epochs,
            out=out or Path("tune"),
            trials=trials,
            space=space,
            pruner=_pruner(pruner, no_prune),
            storage=storage,
            study=study,
            workers=workers,
            **training,
        )
        if as_json:
            shared.print_json(result.to_dict())
        else:
            _report(result)
    shared.end_of_training(result)
    if result.best is None:
        shared.fail("no trial is complete; the reasons are in trials.csv", 1)


def _pruner(name: str | None, no_prune: bool) -> Any:
    if name not in (None, "median", "hyperband", "none"):
        raise UsageError(f"--pruner is {name!r}, expected median, hyperband or none")
    if no_prune and name not in (None, "none"):
        raise UsageError(f"--no-prune and --pruner {name} contradict each other; give one")
    return "none" if no_prune else name


def _only_search(**options: object) -> None:
    given = [f"--{name}" for name, value in options.items() if value is not None]
    if given:
        raise UsageError(f"{', '.join(given)} belong to the search; --lr-range takes none of them")


def _report(result: Any) -> None:
    from detrkit.tuning.results import trials_table

    if result.best is not None:
        shown = [trial for place, trial in enumerate(result.ranked) if place < SHOWN_TRIALS or trial.number == 0]
        names = result.best.parameters
        shared.say("\n".join(trials_table(shown).only("trial", "best AP", "epochs", *names).lines()))
        shared.say(f"Train the best: detrkit train --config {result.out / 'best.yaml'}")
    shared.say(
        f"Page: {result.out / 'tune.html'}; table: {result.out / 'trials.csv'}; runs: {result.out / 'trials'}"
    )
    if result.stopped == "interrupted":
        shared.say(f"Stopped; go on with: detrkit tune --out {result.out}")
