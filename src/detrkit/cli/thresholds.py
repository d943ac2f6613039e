"""``detrkit thresholds``: from which score on detections are taken, class by class."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from detrkit.cli import shared
from detrkit.cli.shared import arg, opt
from detrkit.errors import UsageError, listed

if TYPE_CHECKING:
    from detrkit.api.thresholds import ThresholdChoice
    from detrkit.visual.table import Table


def thresholds(
    model: Annotated[
        str, arg("MODEL", "Whatever detects, as for detrkit compare; also a COCO result file of the split.")
    ],
    data: Annotated[
        Path | None, opt("DATA", "Folder of the data set, or one COCO JSON file; a run's own if not given.")
    ] = None,
    image_folder: shared.ImageFolderOption = None,
    split: Annotated[
        str | None, opt("NAME", "Split to choose on, not one that the model was trained on; val if not given.")
    ] = None,
    check_split: Annotated[
        str | None, opt("NAME", "Split to check on; if not given, the halves of --split on each other.")
    ] = None,
    precision: Annotated[
        float | None, opt("P", "Precision wished, such as 0.9; as much recall as it leaves.")
    ] = None,
    recall: Annotated[
        float | None, opt("R", "Recall wished, such as 0.9; as much precision as it leaves.")
    ] = None,
    f1: Annotated[bool, opt(None, "The best F1, if nothing else is wished.", "--f1")] = False,
    calibrate: Annotated[
        bool, opt(None, "Turn scores into probabilities first, which predict then shows.", "--calibrate")
    ] = False,
    least_objects: Annotated[
        int | None, opt("N", "A class with fewer gets the threshold of all classes; 10 if not given.", min=1)
    ] = None,
    out: Annotated[Path | None, opt("FILE", "thresholds.json in a run, where predict finds it, or here.")] = None,
    tiles: shared.TilesOption = None,
    batch_size: shared.BatchOption = 4,
    device: shared.DeviceOption = None,
    as_json: shared.JsonOption = False,
) -> None:
    """Choose the score from which detections are taken, class by class, and check it on other images."""
    with shared.errors():
        from detrkit.api.thresholds import choose_thresholds
        from detrkit.families.build import is_run
        from detrkit.threshold_file import FILE_NAME

        if f1 and (precision is not None or recall is not None):
            raise UsageError("--f1 goes with neither --precision nor --recall; give one of the three")
        # where to write: into a run, otherwise here
        folder = Path(model).expanduser()
        file = out or (folder / FILE_NAME if folder.is_dir() and is_run(folder) else Path(FILE_NAME))
        if file.is_dir():
            raise UsageError(f"{file} is a folder, expected the file to write, such as {file / FILE_NAME}")
        options = shared.given(
            split=split,
            image_folder=image_folder,
            check_split=check_split,
            recall=recall,
            least_objects=least_objects,
            batch_size=batch_size,
            tiles=tiles,
            device=device,
        )
        with shared.progress_bar("detecting", as_json) as progress:
            choice = choose_thresholds(
                model,
                data,
                precision=precision,
                calibrate=calibrate,
                out=file,
                say=shared.quiet if as_json else shared.say,
                progress=progress,
                **options,
            )
        if as_json:
            shared.print_json(choice.to_dict())
            return
        _table(choice).show()
        for line in _lines(choice):
            shared.say(line)
        shared.say(f"Written to {file}")


def _table(choice: ThresholdChoice) -> Table:
    """Lay out wished, expected and found on other images, class by class."""
    from detrkit.visual.table import Column, Table, Value

    chosen, check = choice.thresholds, choice.check
    # what was chosen, and what is expected of it
    columns = [
        Column("class", "name"),
        Column("objects", "count"),
        Column("threshold", "number", digits=3),
        *(Column(name, "percent") for name in ("precision", "recall")),
    ]
    rows: list[list[Value]] = [
        [
            entry.name,
            entry.objects,
            entry.score if entry.own else f"{entry.score:.3f}*",
            entry.precision,
            entry.recall,
        ]
        for entry in chosen.classes
    ]
    # what was found on other images
    if check is not None:
        columns += [Column(name, "percent") for name in ("checked P", "checked R")]
        rows.append(["all", chosen.objects, "", "", ""])
        for place, row in enumerate(rows):
            class_id = place if place < len(chosen.classes) else None
            row += [check.precision(class_id), check.recall(class_id)]
    notes = () if check is None else ("checked P and R: precision and recall on other images",)
    return Table(columns, rows, f"thresholds for {_wish(chosen)}", notes)


def _lines(choice: ThresholdChoice) -> list[str]:
    """List what the table does not say."""
    from detrkit.visual.text import printable

    chosen, check = choice.thresholds, choice.check
    lines = []
    borrowed = sum(not entry.own for entry in chosen.classes)
    if borrowed:
        lines.append(
            f"* {borrowed} of {len(chosen.classes)} classes have few objects or none found, and take the "
            f"threshold of all classes together, {chosen.default:.3f}"
        )
    short = [entry for entry in chosen.classes if entry.own and not entry.reached]
    if short:
        names = listed([printable(entry.name)[:60] for entry in short])
        lines.append(f"WARNING: {_wish(chosen)} cannot be had at any score for {names}; the nearest is taken")
    if choice.panoptic:
        listed_scores = ", ".join(f"{score:g}: {100 * quality:.1f}" for score, quality in choice.panoptic.items())
        lines.append(f"panoptic pictures from a score of {chosen.panoptic_score:g}; PQ by score {listed_scores}")
    lines.append(f"checked on {choice.checked_on}" if check is not None else choice.checked_on)
    if chosen.scale.temperature != 1 or chosen.scale.bias:
        kind = "Platt scaling" if chosen.scale.bias else "temperature scaling"
        values = f"temperature {chosen.scale.temperature:.3f}, bias {chosen.scale.bias:.3f}"
        lines.append(f"scores become probabilities by {kind}: {values}")
        if check is not None:
            lines.append(
                f"calibration error on the check: {check.ece:.4f} before, {check.ece_calibrated:.4f} after"
            )
            if check.ece_calibrated >= check.ece:
                lines.append("WARNING: calibration does not help on other images; better leave --calibrate out")
    return lines


def _wish(chosen: Any) -> str:
    return "the best F1" if chosen.wished is None else f"{chosen.criterion} {chosen.wished:g}"
