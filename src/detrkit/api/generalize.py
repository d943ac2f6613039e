"""Evaluation on several data sets, and on corrupted images, as ``detrkit eval`` does them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detrkit.api.common import Progress, Say, Source
from detrkit.config import Precision
from detrkit.data.coco import CocoDataset
from detrkit.data.split import Split
from detrkit.detectors.find import find_target
from detrkit.detectors.on_split import EvalTarget, read_split_for
from detrkit.errors import DataError, UsageError
from detrkit.files import free_name, make_folder, write_json
from detrkit.robustness.classes import read_class_names, resolve_class_names
from detrkit.robustness.corruptions import SEVERITIES, find_corruptions
from detrkit.robustness.generalization import Generalization, evaluate_on_several
from detrkit.robustness.pages import write_generalization, write_robustness
from detrkit.robustness.study import Robustness, evaluate_corruptions

Model = Source | EvalTarget


def generalize(
    model: Model,
    data: Sequence[Source],
    *,
    split: str = "val",
    classes: Source | Mapping[str, Any] | None = None,
    out: Source | None = None,
    batch_size: int | None = None,
    preset: str | None = None,
    device: str = "auto",
    precision: Precision = "32",
    say: Say = lambda _line: None,
    progress: Progress | None = None,
) -> Generalization:
    """Measure one model on several data sets, in one table.

    Args:
        model: Anything that :func:`detrkit.detectors.find.find_target` takes, or what it returns, or a detector.
        data: Folders of data sets, or COCO JSON files; each is called by the name of its folder or file.
        split: Name of the split, of each.
        classes: The model's class names for those of the data where they differ; a YAML file or a mapping, see
            :func:`detrkit.robustness.classes.read_class_names`.
        out: Folder for ``generalization.json`` and ``generalization.html``; nothing is written if not given.
        batch_size: Images at once.
        preset: Preset of the weights, where the file cannot tell.
        device: Device, as in :func:`detrkit.load`.
        precision: Precision, as in :func:`detrkit.load`.
        say: Called with messages for people.
        progress: Called with images done and images in all.

    Raises:
        UsageError: Something is asked wrongly.
        DataError: Data cannot be read, or no class is shared with any.
    """
    if not data:
        raise UsageError("no data given; give at least one data set: --data DATA")
    named = _named(data)
    names = None
    if classes is not None:
        read = resolve_class_names if isinstance(classes, Mapping) else read_class_names
        names = read(classes, list(named))  # type: ignore[arg-type]
    subject = find_target(model, preset, device, precision)
    _say_boxes_alone(subject, say)
    folder = None if out is None else make_folder(out, "generalization.json", "generalization.html")
    splits = {name: read_split_for([subject], split, path)[0] for name, path in named.items()}
    for part in splits.values():
        for line in part.lines():
            say(line)
    if names is not None:
        names = _for_those_that_have_them(names, splits)
    found = evaluate_on_several(
        subject, splits, class_names=names, batch_size=batch_size, progress=progress, say=say
    )
    if folder is not None:
        write_json(folder / "generalization.json", found.to_dict())
        write_generalization(folder / "generalization.html", found)
    return found


def corrupt(
    model: Model,
    data: Source | None = None,
    *,
    split: str = "val",
    corruptions: Sequence[str] = ("common",),
    severities: Sequence[int] = SEVERITIES,
    seed: int = 0,
    out: Source | None = None,
    batch_size: int | None = None,
    preset: str | None = None,
    device: str = "auto",
    precision: Precision = "32",
    say: Say = lambda _line: None,
    progress: Progress | None = None,
) -> Robustness:
    """Measure a model on corrupted images, by corruption and severity.

    Called again with the same ``out`` after it was stopped, it goes on with what is not measured yet.

    Args:
        model: Model, as for :func:`generalize`.
        data: Folder of the data set, or a COCO JSON file; a run's own if not given.
        split: Name of the split.
        corruptions: Names of corruptions, or of groups of them: noise, blur, weather, digital, extra, common, all.
        severities: 1 to 5.
        seed: Seed of the corruptions' randomness.
        out: Folder for ``robustness.jsonl`` (each result as it comes), ``robustness.json`` and
            ``robustness.html``; nothing is written if not given.
        batch_size: Batch size, as for :func:`generalize`.
        preset: Preset, as for :func:`generalize`.
        device: Device, as for :func:`generalize`.
        precision: Precision, as for :func:`generalize`.
        say: Messages, as for :func:`generalize`.
        progress: Progress, as for :func:`generalize`; over all evaluations.

    Raises:
        UsageError: Something is asked wrongly.
        DataError: Data cannot be read, or shares no class with the model.
    """
    chosen = find_corruptions(corruptions)
    subject = find_target(model, preset, device, precision)
    _say_boxes_alone(subject, say)
    part, _ = read_split_for([subject], split, data, pixels=True)
    folder = None if out is None else make_folder(out, "robustness.json", "robustness.html")
    for line in part.lines():
        say(line)
    journal = None if folder is None else folder / "robustness.jsonl"
    how: dict[str, Any] = {"batch_size": batch_size, "progress": progress, "say": say}
    found = evaluate_corruptions(subject, part, chosen, severities, seed=seed, journal=journal, **how)
    if folder is not None:
        write_json(folder / "robustness.json", found.to_dict())
        images = CocoDataset(part.index, part.files.images, None)
        write_robustness(folder / "robustness.html", found, images.read_image(_busiest(part)))
    return found


def _say_boxes_alone(subject: EvalTarget, say: Say) -> None:
    if subject.has_masks:
        say(f"WARNING: AP is that of boxes; masks of {subject.name} are measured by eval with one --data alone")


def _named(data: Sequence[Source]) -> dict[str, Source]:
    """Name data sets by the names of their folders; two of the same name get a number."""
    named: dict[str, Source] = {}
    for path in data:
        resolved = Path(path).expanduser().resolve()
        is_file = resolved.suffix in (".json", ".yaml", ".yml")
        named[free_name(resolved.stem if is_file else resolved.name, named)] = path
    return named


def _for_those_that_have_them(
    names: Mapping[str, Mapping[str, tuple[str, ...]]], splits: Mapping[str, Split]
) -> dict[str, dict[str, tuple[str, ...]]]:
    """Restrict one map for all data sets to the classes that each of them has.

    Raises:
        UsageError: None of them has a class that is named.
    """
    maps = [dict(entry) for entry in names.values()]
    if len(maps) < 2 or any(entry != maps[0] for entry in maps):
        return {name: dict(entry) for name, entry in names.items()}
    known = {name: set(split.index.class_map.names) for name, split in splits.items()}
    nowhere = [theirs for theirs in maps[0] if not any(theirs in classes for classes in known.values())]
    if nowhere:
        raise UsageError(f"none of the data sets has a class {nowhere[0]!r}, which the map of classes names")
    return {
        name: {theirs: ours for theirs, ours in maps[0].items() if theirs in classes}
        for name, classes in known.items()
    }


def _busiest(split: Split) -> int:
    """Return the row of the image with most objects, to show corruptions on.

    Raises:
        DataError: There is no image.
    """
    counts = split.index.offsets[1:] - split.index.offsets[:-1]
    if len(counts) == 0:
        raise DataError(f"{split.files.annotations} lists no image")
    return int(counts.argmax())
