"""The questions of a preflight in their order, and the page of their answers."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torchvision import tv_tensors

from detrkit.classes import ClassMap
from detrkit.config import Config, PixelRange, update_config
from detrkit.curation.check.run import CheckOptions, examine
from detrkit.curation.preview import draw_sample
from detrkit.data.formats import canonical_split, find_split
from detrkit.data.index import CocoIndex
from detrkit.data.pixel_range import measured_range
from detrkit.data.read import load_table
from detrkit.data.split import Split, read_split
from detrkit.data.table import AnnotationTable
from detrkit.errors import DataError, DetrkitError, UsageError
from detrkit.families.build import load_model, prepare_model
from detrkit.families.family import BuiltModel
from detrkit.families.presets import PRESETS
from detrkit.families.recipes import resolve_config
from detrkit.families.transfer import match_logit_index
from detrkit.files import make_folder, write_json
from detrkit.hardware import resolve_device
from detrkit.ops.boxes import cxcywh_to_xyxy
from detrkit.preflight import data_questions, training_questions
from detrkit.preflight.cost import check_cost, measure_cost
from detrkit.preflight.evidence import Patches, collect_patches, offset_evidence
from detrkit.preflight.overfit_test import OverfitTest, gather_handful, run_overfit_test
from detrkit.preflight.report import CheckResult, Outcome, PreflightReport, bad
from detrkit.training.run import training_dataset
from detrkit.types import Batch, Target
from detrkit.visual.chart import Chart, Series, make_lines
from detrkit.visual.interactive_charts import Charts
from detrkit.visual.page import Gallery, Picture, Section, Text, write_page
from detrkit.visual.table import Table, columns

Say = Callable[[str], None]
T = TypeVar("T")
Tell = Callable[[list[CheckResult]], None]


def run_preflight(
    config: Config,
    out: Path,
    *,
    trained_model: str | os.PathLike[str] | None = None,
    budget_s: float = 15.0,
    say: Say = print,
) -> PreflightReport:
    """Ask everything that can be known of a training in about a minute.

    Args:
        config: Of the training to come; its data section says which data set.
        out: Folder for verdict.json and preflight.html.
        trained_model: A run, checkpoint or weights file to go on with as it is; otherwise the model of ``config``
            with its starting weights and a new head, as ``detrkit train`` makes it.
        budget_s: Seconds to over-fit a handful of images at the config's learning rate.
        say: Told each result as it is made.

    Raises:
        UsageError: The data or model is asked for wrongly, or ``out`` cannot be written.
        WeightsError: The model's weights cannot be had.
    """
    if config.data.root is None and config.data.train_annotations is None:
        raise UsageError("no data given; give the folder of a data set: --data DATA")
    make_folder(out, "verdict.json", "preflight.html")
    results: list[CheckResult] = []
    batch, overfit = None, None

    def tell(found: list[CheckResult]) -> None:
        results.extend(found)
        for result in found:
            say(result.line())

    tables = _check(config, tell)
    splits = _read_splits(config, tell)
    for name in (config.data.train_split, config.data.val_split):
        tell(_check_ids(config, name, tables))
    tables.clear()
    if splits is not None:
        train, val = splits
        seen = look_at_data(config, train, val, tell)
        if trained_model is None:
            built = prepare_model(config, train.index.class_map)
        else:  # a trained model as it is
            built = load_model(trained_model)
            own = {name: getattr(built.config, name).model_dump() for name in ("model", "transforms")}
            built = dataclasses.replace(built, config=update_config(config, own))
        known, head = _check_head(built, trained_model is not None, train, val)
        tell([head])
        if known is not None and train.index.object_counts().any() and seen.images_read:
            say(f"...     over-fitting a handful of images, some {2 * budget_s:.0f} s at most on a slow machine")
            overfit, batch = _try(dataclasses.replace(built, class_map=known), train, val, budget_s, tell)
    report = PreflightReport(tuple(results))
    write_json(out / "verdict.json", report.to_dict())
    pictures = [] if batch is None or splits is None else draw_batch(batch, splits[0].index.class_map)
    _write_page(out / "preflight.html", config, report, pictures, overfit)
    return report


def draw_batch(batch: Batch, class_map: ClassMap) -> list[np.ndarray]:
    """Draw each image of a training batch with its objects, without its padding, uint8 ``[H, W, 3]``."""
    pictures = []
    for single, (height, width) in zip(batch.split(1), batch.sizes_hw, strict=True):
        boxes = cxcywh_to_xyxy(single.truth.boxes_cxcywh) * torch.tensor([width, height, width, height])
        target = Target(
            boxes=tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)),
            labels=single.truth.labels,
            area=torch.zeros(len(boxes)),
            iscrowd=torch.zeros(len(boxes), dtype=torch.bool),
            image_id=0,
            orig_size_hw=(height, width),
        )
        pictures.append(draw_sample(single.images[0], target, class_map))
    return pictures


def _read_splits(config: Config, tell: Tell) -> tuple[Split, Split] | None:
    """Read both splits; None where one cannot be read, which is told."""
    found = []
    for name in (config.data.train_split, config.data.val_split):
        try:
            found.append(read_split(config, name))
        except UsageError:
            raise
        except DataError as error:
            tell([bad("data_unreadable", f"{name}: {error}")])
    return (found[0], found[1]) if len(found) == 2 else None


def _check(config: Config, tell: Tell) -> dict[str, AnnotationTable]:
    """Check the annotations; gives the table of each split, by canonical name."""
    if config.data.root is None:
        found = "not checked, since data.train_annotations names files and no folder; run: detrkit data check FILE"
        tell([CheckResult("annotations", Outcome.NOTE, found)])
        return {}
    queries = config.model.num_queries
    layout = config.data.layout
    if config.model.masks and layout == "auto":  # the files that are trained on
        with contextlib.suppress(DataError):
            found_format = find_split(config.data.root, config.data.train_split, config.data, stuff=True).format
            layout = "panoptic" if found_format == "panoptic" else layout
    options = CheckOptions(layout=layout, images=False, duplicates=False, queries=queries)
    checked = examine(config.data.root, options)
    tell(data_questions.check_annotations(checked.result))
    return {split.name: split.table for split in checked.splits}


def _check_ids(config: Config, name: str, tables: Mapping[str, AnnotationTable]) -> list[CheckResult]:
    """Asked even of a split of which not one annotation can be used: the ids may tell why."""
    try:
        table = tables.get(canonical_split(name)) or load_table(
            find_split(config.data.root, name, config.data, stuff=config.model.masks)
        )
    except DetrkitError:
        return []
    return data_questions.check_category_ids(name, table)


def look_at_data(config: Config, train: Split, val: Split, tell: Tell) -> Patches:
    """Check annotations against pixels; returns what was seen of the training split."""
    looked = {}
    sound = True
    pixel_range = measured_range(config.data.pixel_range, train.index, train.files.images)
    same = (train.files.annotations, train.files.listings) == (val.files.annotations, val.files.listings)
    for name, split in {"train": train, "val": val}.items():
        if name == "val" and same:
            tell([bad("val_is_train", "the validation split is the training split", fault=False)])
            continue
        # further draws only where the first leaves doubt
        seen = (split.index, split.files.images, pixel_range, config.train.seed)
        draw = functools.cache(functools.partial(_draw, collect_patches, *seen))
        looked[name] = patches = draw(0)
        found = data_questions.check_objects(name, split.index, patches)
        if len(split.index.labels) and not _has_fault(found):
            found += data_questions.check_boxes_and_labels(name, draw)
            if name == "train" and not _has_fault(found):
                found += data_questions.check_offset(name, functools.partial(_draw, offset_evidence, *seen))
        sound &= not _has_fault(found)
        tell(found)
    if sound and "val" in looked and _same_classes(train, val):
        tell(data_questions.check_splits(looked["train"], looked["val"], len(train.index.class_map)))
    return looked["train"]


def _draw(
    measure: Callable[..., T], index: CocoIndex, images: Path, pixel_range: PixelRange, seed: int, number: int
) -> T:
    """Look at a split once more, with another seed."""
    return measure(index, images, pixel_range=pixel_range, seed=seed + number)


def _check_head(
    built: BuiltModel, as_it_is: bool, train: Split, val: Split
) -> tuple[ClassMap | None, CheckResult]:
    """Return the class map to train with, None if the head is not one for this data, and what was found."""
    data = train.index.class_map
    used = np.unique(np.concatenate([train.index.labels, val.index.labels])) if _same_classes(train, val) else None
    wanted = data if used is None else data.select(used.tolist())  # a mere heading need not be in a head
    lines = () if built.report is None else tuple(built.report.lines())
    result = training_questions.check_head(built.class_map, _count_labels(built), wanted, lines, as_it_is)
    if result.outcome is not Outcome.OK:
        return None, result
    return match_logit_index(data, built.class_map) if as_it_is else built.class_map, result


def _has_fault(found: Sequence[CheckResult]) -> bool:
    return any(item.outcome is Outcome.FAULT for item in found)


def _same_classes(train: Split, val: Split) -> bool:
    return train.index.class_map.names == val.index.class_map.names


def _count_labels(built: BuiltModel) -> int:
    """Count the labels of the class head, asked of the model itself on a small black image."""
    with torch.inference_mode():
        outputs = built.model.eval()(torch.zeros(1, 3, 64, 64), None)
    return int(outputs.logits.shape[-1]) - built.family.scoring.extra_columns


def _try(
    built: BuiltModel, train: Split, val: Split, budget_s: float, tell: Tell
) -> tuple[OverfitTest | None, Batch | None]:
    """Train a little, and measure what it takes."""
    config = built.config
    device = resolve_device(config.train.device)
    dataset = training_dataset(config, train, None, device.type)
    try:
        handful = gather_handful(config, train.index, dataset, config.train.seed)
        overfit = run_overfit_test(built, handful, device, budget_s)
    except DataError as error:
        tell([bad("images_unreadable", str(error))])
        return None, None
    preset = config.model.preset
    # of the recipe that suits the same start
    start = {"train.init": config.train.init, "train.recipe": config.train.recipe}
    usual = resolve_config(preset, None, start).train.lr if preset in PRESETS else None
    tell(training_questions.check_overfit_test(overfit, usual, pretrained=built.report is not None))
    try:
        cost = measure_cost(built, dataset, device)
    except (torch.OutOfMemoryError, MemoryError) as error:
        found = f"a batch of {config.train.batch_size} does not fit: {str(error).splitlines()[0]}"
        tell([bad("out_of_memory", found)])
        return overfit, overfit.batch
    tell(check_cost(config, cost, len(train.index), len(val.index)))
    return overfit, cost.batch


def _write_page(
    path: Path,
    config: Config,
    report: PreflightReport,
    pictures: Sequence[np.ndarray],
    overfit: OverfitTest | None,
) -> Path:
    """Write verdict, results, the first training batch as drawn, and the losses of the overfit test."""
    heads = columns("text", "outcome", "question or fault", "found", "what to do")
    rows = [[item.outcome.value, item.name, item.found, item.advice] for item in report.results]
    summary = Text(report.summary(), "plain" if report.ready else "warning")
    sections = [Section("Verdict", [summary, Table(heads, rows, "What was asked and found")])]
    if pictures:
        drawn = [Picture.of(picture, f"training image {number}") for number, picture in enumerate(pictures, 1)]
        note = "The first batch of the first epoch, after augmentation, with the boxes and names to be learnt."
        sections.append(Section("What the model will see", [Text(note), Gallery(drawn)]))
    if overfit is not None:
        sections.append(Section("Learning a handful of images", [Charts([_curves(overfit)])]))
    return write_page(path, "Preflight", f"{config.model.preset} on {config.data.root}", sections)


def _curves(overfit: OverfitTest) -> Chart:
    lines = {}
    for trial in (overfit.main, *overfit.slower):
        losses = np.array(trial.losses)
        steps = np.flatnonzero(np.isfinite(losses))
        lines[f"train.lr={trial.lr:g}"] = Series(steps + 1.0, losses[steps])
    images, _, height, width = overfit.batch.images.shape
    across = f"steps on {images} images of {height} x {width}"
    return Chart("Loss of a handful of images, by learning rate", across, lines=make_lines(lines), legend=True)
