"""Options and output that the ``detrkit data`` verbs share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from detrkit.cli.shared import arg, opt, print_json, say
from detrkit.errors import DataError, UsageError, counted

if TYPE_CHECKING:
    from detrkit.config import Config, Layout
    from detrkit.curation.divide import DivideResult
    from detrkit.data.faults import ReadReport

DataArgument = Annotated[Path, arg("DATA", "Data set: folder in any layout, a COCO JSON file, or a data.yaml.")]
LayoutOption = Annotated[str, opt("LAYOUT", "How to read it: auto, coco, yolo, voc or panoptic.")]
OutOption = Annotated[Path, opt("DIR", "New or empty folder to write to.")]
CopyOption = Annotated[bool, opt(None, "Copy images; otherwise they are hard-linked where possible.", "--copy")]
SeedOption = Annotated[int, opt("N", "The same seed gives the same images.", min=0)]
SplitsOption = Annotated[list[str] | None, opt("NAME", "Only this split; may repeat.", "--split")]
PresetOption = Annotated[
    str, opt("PRESET", "Whose training transforms are meant; see: detrkit models.", "--model")
]
TransformsOption = Annotated[
    list[str] | None, opt("KEY=VALUE", "Any config value, as transforms.recipe=mosaic; may repeat.", "--set")
]


def checked_layout(text: str) -> Layout:
    """Return the layout if it is one.

    Raises:
        UsageError: It is none.
    """
    from typing import get_args

    from detrkit.config import Layout

    if text not in get_args(Layout):
        raise UsageError(f"--layout is {text!r}, expected one of {', '.join(get_args(Layout))}")
    return text  # type: ignore[return-value]


def changed_config(preset: str, assignments: list[str] | None) -> Config:
    """Return the config of a preset with the values of ``--set``."""
    from detrkit.cli.shared import parse_assignments
    from detrkit.config import update_config
    from detrkit.families.recipes import preset_config

    return update_config(preset_config(preset), parse_assignments(assignments or []))


def refuse_unfit(out: Path, reasons: Sequence[str]) -> None:
    """Fail where a data set that was written has lost too much.

    Raises:
        DataError: There is a reason.
    """
    if reasons:
        raise DataError(f"{out}: is not fit for training: {'; '.join(reasons)}; it is kept, to be looked at")


def print_read(result: Any, reading: Mapping[str, ReadReport]) -> None:
    """Print a result for programs, with what reading each split found and left out."""
    print_json({**result.to_dict(), "reading": {name: report.to_dict() for name, report in reading.items()}})


def report_parts(result: DivideResult, as_json: bool, ending: str) -> None:
    """Print the parts of a data set that was divided or sampled, and where they lie."""
    if as_json:
        print_json(result.to_dict())
        return
    for part in result.parts:
        classes = counted(part.classes, "class", "classes")
        say(f"{part.name}: {counted(part.images, 'image')}, {counted(part.objects, 'object')} of {classes}")
    for note in result.notes:
        say(f"note: {note}")
    say(f"Written to {result.path}{ending}")
