"""``detrkit eval``: how good a model is, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from detrkit.cli import shared
from detrkit.cli.shared import opt
from detrkit.errors import UsageError

if TYPE_CHECKING:
    from detrkit.evaluation.analysis import Evaluation


def evaluate(
    model: shared.ModelArgument,
    data: Annotated[
        list[Path] | None,
        opt("DATA", "Data set folder or COCO JSON file; a run's own if not given. Several: one table of all."),
    ] = None,
    image_folder: shared.ImageFolderOption = None,
    split: shared.SplitOption = None,
    out: Annotated[
        Path | None, opt("DIR", "Folder for report.html and the rest; RUN/eval, or eval with a number if taken.")
    ] = None,
    resamples: Annotated[
        int | None, opt("N", "Of the images, for intervals; 0 for none, 1,000 if not given.", min=0)
    ] = None,
    explain: Annotated[
        bool, opt(None, "Find out why: errors, thresholds, calibration, failures, suspect labels.")
    ] = True,
    latency: Annotated[int, opt("N", "Images to time the model on, one by one; 0 for none.", min=0)] = 24,
    classes: Annotated[
        Path | None,
        opt("FILE", "YAML of the data's class names and the model's, where they differ; gives the table."),
    ] = None,
    corruptions: Annotated[
        str | None,
        opt("N,N", "AP under corruptions instead: common, all, noise, blur, weather, digital, extra or names."),
    ] = None,
    severities: Annotated[str | None, opt("N,N", "Of --corruptions, 1 to 5; all if not given.")] = None,
    pq: Annotated[bool, opt(None, "PQ, SQ and RQ alone, as a table, fast.")] = False,
    tiles: shared.TilesOption = None,
    batch_size: shared.BatchOption = 4,
    device: shared.DeviceOption = None,
    precision: shared.PrecisionOption = None,
    preset: shared.AsOption = None,
    as_json: shared.JsonOption = False,
) -> None:
    """Measure how good a model is on a data set, how sure that is, and why: numbers, intervals and a report.

    MODEL may also be torchvision:NAME, hf:ID_OR_FOLDER, or a COCO result file (detections.json). Several --data,
    or --classes, give one table instead of the report; --corruptions AP on worse and worse images; --pq PQ alone.
    """
    with shared.errors():
        sets = data or []
        options = shared.given(
            split=split, batch_size=batch_size, device=device, precision=precision, preset=preset
        )
        options["say"] = shared.quiet if as_json else shared.say
        for option, value in (("--tiles", tiles), ("--image-folder", image_folder), ("--pq", pq or None)):
            if value is not None and (corruptions is not None or classes is not None or len(sets) > 1):
                raise UsageError(f"{option} goes with one --data, without --corruptions and --classes")
        # corruptions, or several data sets: a table instead of a report
        if corruptions is not None:
            if classes is not None or len(sets) > 1:
                raise UsageError("--corruptions takes one --data and no --classes")
            _corrupt(model, next(iter(sets), None), corruptions, severities, out, as_json, options)
            return
        if classes is not None or len(sets) > 1:
            _generalize(model, sets, classes, out, as_json, options)
            return
        if pq:
            if tiles is not None or out is not None:
                raise UsageError("--pq writes no files, and takes no --tiles; leave --pq out for the report")
            _panoptic(model, next(iter(sets), None), image_folder, as_json, options)
            return
        from detrkit.api.evaluate import evaluate as measure
        from detrkit.evaluation.report import metrics_content

        # one data set: the report
        folder = out or _default_eval_folder(model)
        with shared.step_bar(hidden=as_json) as progress:
            evaluation = measure(
                model,
                next(iter(sets), None),
                image_folder=image_folder,
                out=folder,
                explain=explain,
                latency_images=latency,
                tiles=tiles,
                progress=progress,
                **shared.given(resamples=resamples),
                **options,
            )
        if as_json:
            shared.print_json(metrics_content(evaluation))
            return
        _print(evaluation)
        shared.say(
            f"Written to {folder}: report.html, summary.md, metrics.json, detections.json (COCO result format)"
        )
        if evaluation.panoptic is not None:
            shared.say("  panoptic.json and a PNG file of each image in panoptic/ (COCO panoptic)")
        if evaluation.failures is not None:
            shared.say("  images.csv, failures.csv, label_errors.csv, label_errors.json, precision_recall.png")


def _panoptic(
    model: str, data: Path | None, image_folder: Path | None, as_json: bool, options: Mapping[str, Any]
) -> None:
    """Show panoptic quality alone."""
    from detrkit.api.evaluate import panoptic_quality
    from detrkit.evaluation.report import panoptic_content, panoptic_table

    with shared.step_bar(hidden=as_json) as progress:
        found = panoptic_quality(model, data, image_folder=image_folder, progress=progress, **options)
    if as_json:
        shared.print_json(panoptic_content(found))
    else:
        panoptic_table(found).show()


def _generalize(
    model: str,
    data: Sequence[Path],
    classes: Path | None,
    out: Path | None,
    as_json: bool,
    options: Mapping[str, Any],
) -> None:
    """Show one table of several data sets."""
    from detrkit.api.generalize import generalize

    folder = out or shared.free_folder(Path("generalization"))
    with shared.progress_bar("evaluating", as_json) as progress:
        found = generalize(model, data, classes=classes, out=folder, progress=progress, **options)
    shared.report(found, as_json, f"Written to {folder}: generalization.html, generalization.json")


def _corrupt(
    model: str,
    data: Path | None,
    corruptions: str,
    severities: str | None,
    out: Path | None,
    as_json: bool,
    options: Mapping[str, Any],
) -> None:
    """Show AP against corruption and severity; ``--out`` of one that was stopped goes on with it."""
    from detrkit.api.generalize import corrupt

    numbers = None
    if severities is not None:
        if not all(number.strip() in {"1", "2", "3", "4", "5"} for number in severities.split(",")):
            raise UsageError(f"--severities is {severities!r}, expected numbers 1 to 5 with commas between")
        numbers = sorted({int(number) for number in severities.split(",")})
    folder = out or shared.free_folder(Path("robustness"))
    if out is None and not as_json:
        shared.say(f"Results go to {folder}; if this is stopped, go on with --out {folder}")
    with shared.progress_bar("evaluating", as_json) as progress:
        found = corrupt(
            model,
            data,
            corruptions=[name.strip() for name in corruptions.split(",")],
            out=folder,
            progress=progress,
            **shared.given(severities=numbers),
            **options,
        )
    shared.report(found, as_json, f"Written to {folder}: robustness.html, robustness.json")


def _print(evaluation: Evaluation) -> None:
    """Print the tables, then what they come to."""
    from detrkit.evaluation import report

    tables = [
        report.class_table(evaluation).only(*report.CLASS_COLUMNS),
        report.metrics_table(evaluation.metrics, evaluation.intervals),
        *report.mask_tables(evaluation),
    ]
    if evaluation.errors is not None:
        tables.append(report.errors_table(evaluation.errors, evaluation.score))
    for table in tables:
        table.show()
    for line in report.warnings(evaluation):
        shared.say(f"WARNING: {line}")
    for line in report.verdict(evaluation):
        shared.say(line)


def _default_eval_folder(model: str) -> Path:
    from detrkit.families.build import is_run

    path = Path(model)
    return shared.free_folder(path / "eval" if path.is_dir() and is_run(path) else Path("eval"))
