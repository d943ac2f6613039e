"""The questions of a preflight in their order, and the page of their answers."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torchvision import tv_tensors

from detrkit.classes import ClassMap
from detrkit.config import Config
from detrkit.curation.check.run import examine
from detrkit.curation.preview import draw_sample
from detrkit.data.formats import canonical_split, find_split
from detrkit.data.read import load_table
from detrkit.data.split import Split, read_split
from detrkit.data.table import AnnotationTable
from detrkit.detectors.stages import resolve_device
from detrkit.errors import DataError, DetrkitError, UsageError
from detrkit.families.build import load_model
from detrkit.families.presets import PRESETS
from detrkit.families.recipes import preset_config
from detrkit.families.registry import get_family
from detrkit.files import atomic_file, make_folder
from detrkit.ops.boxes import cxcywh_to_xyxy
from detrkit.preflight import data_questions, training_questions
from detrkit.preflight.cost import judge_cost, measure_cost
from detrkit.preflight.evidence import Patches, collect_patches, offset_evidence
from detrkit.preflight.overfit_test import Rehearsal, gather_handful, rehearse
from detrkit.preflight.page import write_preflight_page
from detrkit.preflight.verdict import Judgement, Outcome, Verdict
from detrkit.training.prepare import prepare_model, training_dataset
from detrkit.types import Batch, Target

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class _Candidate:
    """The model to be trained, and what is known of its head."""

    model: nn.Module
    config: Config
    class_map: ClassMap
    lines: tuple[str, ...]
    pretrained: bool
    as_it_is: bool


def run_preflight(
    config: Config,
    out: Path,
    *,
    trained_model: str | os.PathLike[str] | None = None,
    budget_s: float = 15.0,
    say: Say = print,
) -> Verdict:
    """Ask everything that can be known of a training in about a minute.

    Args:
        config: Of the training to come; its data section says which data set.
        out: Folder for verdict.json and preflight.html.
        trained_model: A run, checkpoint or weights file to go on with as it is; otherwise the model of ``config``
            with its starting weights and a new head, as ``detrkit train`` makes it.
        budget_s: Seconds to over-fit a handful of images at the config's learning rate.
        say: Told each judgement as it is made.

    Raises:
        UsageError: The data or model is asked for wrongly, or ``out`` cannot be written.
        WeightsError: The model's weights cannot be had.
    """
    if config.data.root is None and config.data.train_annotations is None:
        raise UsageError("no data given; give the folder of a data set: --data DATA")
    make_folder(out)
    judgements: list[Judgement] = []
    batch: Batch | None = None
    rehearsal: Rehearsal | None = None

    def tell(found: list[Judgement]) -> None:
        judgements.extend(found)
        for judgement in found:
            say(judgement.line())

    tables = _check(config, tell)
    splits = _read_splits(config, tell)
    for name in (config.data.train_split, config.data.val_split):
        tell(_judge_ids(config, name, tables))
    tables.clear()
    if splits is not None:
        train, val = splits
        seen = _look_at_data(config, train, val, tell)
        candidate = _candidate(config, train, trained_model)
        known, head = _judge_head(candidate, train, val)
        tell([head])
        if known is not None and len(train.index.labels) and seen.images_read:
            say(f"...     over-fitting a handful of images, some {2 * budget_s:.0f} s at most on a slow machine")
            rehearsal, batch = _try(candidate, known, train, val, budget_s, tell)
    verdict = Verdict(tuple(judgements))
    with atomic_file(out / "verdict.json") as file:
        file.write(json.dumps(verdict.to_dict(), indent=1) + "\n")
    pictures = [] if batch is None or splits is None else draw_batch(batch, splits[0].index.class_map)
    write_preflight_page(out / "preflight.html", config, verdict, pictures, rehearsal)
    return verdict


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


def _read_splits(config: Config, tell: Callable[[list[Judgement]], None]) -> tuple[Split, Split] | None:
    """Both splits, or None where one cannot be read, which is told."""
    found = []
    for name in (config.data.train_split, config.data.val_split):
        try:
            found.append(read_split(config, name))
        except UsageError:
            raise
        except DataError as error:
            tell([Judgement("data_unreadable", Outcome.FAULT, f"{name}: {error}", "run: detrkit data check")])
    return (found[0], found[1]) if len(found) == 2 else None


def _check(config: Config, tell: Callable[[list[Judgement]], None]) -> dict[str, AnnotationTable]:
    """Check the annotations; gives the table of each split, by canonical name."""
    if config.data.root is None:
        found = "not checked, since data.train_annotations names files and no folder; run: detrkit data check FILE"
        tell([Judgement("annotations", Outcome.NOTE, found)])
        return {}
    queries = config.model.num_queries
    checked = examine(config.data.root, layout=config.data.layout, images=False, duplicates=False, queries=queries)
    tell(data_questions.judge_check(checked.result))
    return {split.name: split.table for split in checked.splits}


def _judge_ids(config: Config, name: str, tables: Mapping[str, AnnotationTable]) -> list[Judgement]:
    """Asked even of a split of which not one annotation can be used: the ids may tell why."""
    try:
        table = tables.get(canonical_split(name))
        if table is None:
            table = load_table(find_split(config.data.root, name, config.data))
    except DetrkitError:
        return []
    return data_questions.judge_category_ids(name, table)


def _look_at_data(config: Config, train: Split, val: Split, tell: Callable[[list[Judgement]], None]) -> Patches:
    """Everything that annotations and pixels say; gives what was seen of the training split."""
    looked = {}
    sound = True
    same = (train.files.annotations, train.files.listings) == (val.files.annotations, val.files.listings)
    for name, split in {"train": train, "val": val}.items():
        if name == "val" and same:
            tell([Judgement("val_is_train", Outcome.WARNING, "the validation split is the training split")])
            continue
        patches = collect_patches(split.index, split.files.images, seed=config.train.seed)
        looked[name] = patches
        found = data_questions.judge_objects(name, split.index, patches)
        if len(split.index.labels) and not any(item.outcome is Outcome.FAULT for item in found):
            found += data_questions.judge_boxes_and_labels(name, patches)
            if name == "train" and not any(item.outcome is Outcome.FAULT for item in found):
                moved = offset_evidence(split.index, split.files.images, seed=config.train.seed)
                found += data_questions.judge_offset(name, moved)
        sound &= not any(item.outcome is Outcome.FAULT for item in found)
        tell(found)
    if sound and "val" in looked and _same_classes(train, val):
        tell(data_questions.judge_splits(looked["train"], looked["val"], len(train.index.class_map)))
    return looked["train"]


def _candidate(config: Config, train: Split, trained_model: str | os.PathLike[str] | None) -> _Candidate:
    if trained_model is None:
        prepared = prepare_model(config, train)
        lines = () if prepared.report is None else tuple(prepared.report.lines())
        pretrained = prepared.report is not None
        return _Candidate(prepared.model, prepared.config, prepared.class_map, lines, pretrained, as_it_is=False)
    loaded = load_model(trained_model)
    resolved = config.model_copy(update={"model": loaded.config.model, "transforms": loaded.config.transforms})
    return _Candidate(loaded.model, resolved, loaded.class_map, tuple(loaded.report.lines()), True, as_it_is=True)


def _judge_head(candidate: _Candidate, train: Split, val: Split) -> tuple[ClassMap | None, Judgement]:
    """The class map to train with, None if the head is not one for this data, and the judgement."""
    data = train.index.class_map
    used = np.unique(np.concatenate([train.index.labels, val.index.labels])) if _same_classes(train, val) else None
    wanted = data if used is None else _only(data, used)
    slots = _logit_slots(candidate)
    judgement = training_questions.judge_head(
        candidate.class_map, slots, wanted, candidate.lines, candidate.as_it_is
    )
    if judgement.outcome is not Outcome.OK:
        return None, judgement
    if not candidate.as_it_is:
        return candidate.class_map, judgement
    return get_family(candidate.config.model.family).match_slots(data, candidate.class_map), judgement


def _same_classes(train: Split, val: Split) -> bool:
    return train.index.class_map.names == val.index.class_map.names


def _only(classes: ClassMap, used: np.ndarray) -> ClassMap:
    """The classes that have objects: a heading that is listed as a category need not be in a head."""
    return ClassMap(
        names=tuple(classes.names[class_id] for class_id in used),
        category_ids=tuple(classes.category_ids[class_id] for class_id in used),
    )


def _logit_slots(candidate: _Candidate) -> int:
    """Rows of the class head, asked of the model itself on a small black image."""
    side = 64
    with torch.inference_mode():
        outputs = candidate.model.eval()(torch.zeros(1, 3, side, side), None)
    return int(outputs.logits.shape[-1]) - 1


def _try(
    candidate: _Candidate,
    class_map: ClassMap,
    train: Split,
    val: Split,
    budget_s: float,
    tell: Callable[[list[Judgement]], None],
) -> tuple[Rehearsal | None, Batch | None]:
    """Train a little, and measure what it takes."""
    config = candidate.config
    device = resolve_device(config.train.device)
    dataset = training_dataset(config, train, None, device.type)
    try:
        handful = gather_handful(config, train.index, dataset, config.train.seed)
        rehearsal = rehearse(config, candidate.model, class_map, handful, device, budget_s)
    except DataError as error:
        tell([Judgement("images_unreadable", Outcome.FAULT, str(error), "run: detrkit data check")])
        return None, None
    preset = config.model.preset
    usual = preset_config(preset).train.lr if preset in PRESETS else None
    tell(training_questions.judge_rehearsal(rehearsal, usual, candidate.pretrained))
    try:
        cost = measure_cost(config, candidate.model, class_map, dataset, device)
    except (torch.OutOfMemoryError, MemoryError) as error:
        found = f"a batch of {config.train.batch_size} does not fit: {str(error).splitlines()[0]}"
        advice = "lower train.batch_size and raise train.accumulate, or train.precision=bf16"
        tell([Judgement("out_of_memory", Outcome.FAULT, found, advice)])
        return rehearsal, rehearsal.batch
    tell(judge_cost(config, cost, len(train.index), len(val.index)))
    return rehearsal, cost.batch
