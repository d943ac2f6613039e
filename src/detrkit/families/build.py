"""From what a person calls a model to weights and a model: preset, run, checkpoint, folder, address or hub id."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from detrkit.checkpoint import AIDS, CheckpointStore, is_checkpoint, read_model
from detrkit.classes import COCO_CATEGORY_IDS, COCO_NAMES, ClassMap, take_names
from detrkit.config import AidsConfig, Config, ModelConfig, parse_yaml, update_config
from detrkit.download import download_hub_model, download_weights, is_url
from detrkit.errors import ConfigError, DataError, UsageError, WeightsError, listed
from detrkit.families.configs import DEFAULT_MODEL
from detrkit.families.detr.family import DETR
from detrkit.families.detr.state_files import read_file, read_folder
from detrkit.families.dfine.family import DFINE
from detrkit.families.family import BuiltModel, Family
from detrkit.families.parts import check_parts, find_places, freeze_parts
from detrkit.families.preset import PublishedWeights
from detrkit.families.presets import PRESETS, get_preset
from detrkit.families.recipes import preset_config
from detrkit.families.rtdetr.family import RTDETR
from detrkit.families.transfer import load_exactly, match_logit_index, transfer, transfer_backbone
from detrkit.families.two_stage.family import TWO_STAGE
from detrkit.families.weights import LoadReport, Weights
from detrkit.files import parse_json
from detrkit.nn.recompute import set_recompute

FAMILIES: dict[str, Family] = {family.name: family for family in (DETR, TWO_STAGE, RTDETR, DFINE)}

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
CLASSES_SUFFIX = ".classes.json"
"""Of the file beside an exported ``.pth``, which has no room for names."""

logger = logging.getLogger(__name__)

_SILENT_FIELDS = (
    "activation",
    "norm_between",
    "num_heads",
    "dilation",
    "pre_norm",
    "position",
    "position_temperature",
    "position_scale",
    "position_at_input",
    "query_reference",
)

_PREPROCESSING = (
    ("transforms", "mean"),
    ("transforms", "std"),
    ("transforms", "eval_size"),
    ("transforms", "max_size"),
    ("data", "pixel_range"),
)

_TORCHVISION_URL = "https://download.pytorch.org/models/"


def read_weights(
    source: str | os.PathLike[str], model: str | None = None, classes: str | os.PathLike[str] | None = None
) -> tuple[Weights, Config]:
    """Read the weights that a source names, and the config they go with.

    Args:
        source: A preset with published weights, a run folder, a checkpoint of a run, a published ``.pth``, a
            ``.safetensors`` file or a folder from the Hugging Face hub, an address, or a hub id.
        model: What the file cannot tell: the preset the weights are for (DC5 changes no tensor's shape), fields of
            the model as ``num_heads=4``, ``classes=...`` as below, or several of them with commas between.
        classes: Names of the head's rows where the file holds none: ``coco``, a COCO JSON file, a classes.json, or
            a text file with a name a line.

    Raises:
        UsageError: The source is nothing that is known.
        WeightsError: The weights cannot be fetched, are damaged, or are of another model.
        CheckpointError: A run's checkpoint is damaged.
    """
    text = os.fspath(source)
    path = Path(text).expanduser()
    wanted = _parse_wanted(model, classes)
    if path.exists():
        return _read_path(path, wanted)
    if text in PRESETS:
        published = get_preset(text).published
        if published is None:
            having = ", ".join(name for name, preset in PRESETS.items() if preset.published)
            raise UsageError(
                f"{text} has no published weights; train it first and give the run folder. Published: {having}"
            )
        wanted = wanted._replace(preset=wanted.preset or text)
        return _read_published(fetch_published(published), wanted)
    if is_url(text):
        return _read_published(download_weights(text), wanted)
    if _HUB_ID.fullmatch(text) and path.suffix not in (".pth", ".pt", ".safetensors"):
        return _read_published(download_hub_model(text), wanted)
    try:
        get_preset(text)
    except UsageError as error:
        raise UsageError(f"no file or folder at {text}; as a preset: {error}") from None
    raise AssertionError(text)


def fetch_published(published: PublishedWeights) -> Path:
    """Return the path of published weights, from the authors' address or else the hub, downloaded if need be."""
    if published.url:
        return download_weights(published.url, published.sha256)
    return download_hub_model(published.hub_id)


class _Wanted(NamedTuple):
    """What a person says of weights: preset, fields of the model, and classes."""

    preset: str | None
    fields: dict[str, Any]
    classes: str | None


def _parse_wanted(model: str | None, classes: str | os.PathLike[str] | None) -> _Wanted:
    """Take ``detr-r50,num_heads=4`` apart.

    Raises:
        UsageError: There is no such preset.
    """
    preset: str | None = None
    fields: dict[str, Any] = {}
    for part in (model or "").split(",") if model is not None else ():
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if equals:
            try:
                fields[name] = parse_yaml(value)
            except ValueError as error:
                raise UsageError(f"{part!r}: the value is not valid YAML: {error}") from error
        else:
            get_preset(name)
            preset = name
    named = fields.pop("classes", None)
    return _Wanted(preset, fields, os.fspath(classes) if classes is not None else named and str(named))


def get_family(model: ModelConfig) -> Family:
    """Return the family of a model section."""
    return FAMILIES[model.family]


def load_model(
    source: str | os.PathLike[str],
    model: str | None = None,
    *,
    classes: str | os.PathLike[str] | None = None,
    padding: str | None = None,
) -> BuiltModel:
    """Read weights and build the model they belong to; see :func:`read_weights`. What was assumed is logged."""
    weights, config = read_weights(source, model, classes)
    for note in (*weights.notes, weights.class_map.guessed):
        if note:
            logger.warning("%s: %s", source, note)
    if padding is not None:
        config = update_config(config, {"model.padding": padding})
    with _Undrawn():  # every tensor is loaded next, or that fails
        built = build_model(config, weights.class_map)
    try:
        report = load_exactly(built.model, weights)
    except WeightsError as error:
        if model is not None:
            raise
        raise WeightsError(
            f"{error}; if {source} is not a {config.model.preset}, name its preset: --as"
        ) from error
    return dataclasses.replace(built, report=report)


class _Undrawn(TorchFunctionMode):
    """Leaves tensors as memory is where they would be drawn at random, which takes a large model half a second."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call what was called, unless it draws."""
        return args[0] if func in (Tensor.uniform_, Tensor.normal_) else func(*args, **(kwargs or {}))


def build_model(config: Config, class_map: ClassMap) -> BuiltModel:
    """Build a model with random weights and a head for the classes, with the training aids that the config names.

    It is frozen, and frugal in training, as ``train`` says.

    Raises:
        ConfigError: The config names a part that the model does not have, or freezes everything.
    """
    family = get_family(config.model)
    model = family.build(config.model, class_map.num_labels)
    family.add_aids(model, config.model, config.aids)
    places = find_places(model)
    check_parts(places, config.train, config.model.preset)
    freeze_parts(model, places, config.train)
    set_recompute(model, config.train.recompute)
    return BuiltModel(model, family, config, class_map)


def prepare_model(config: Config, class_map: ClassMap) -> BuiltModel:
    """Build the model that a training begins with, drawn from ``train.seed``; its config has nothing left at auto.

    Args:
        config: Of the training.
        class_map: The data set's classes.

    Raises:
        WeightsError: The starting weights cannot be had.
    """
    config, weights = starting_weights(config)
    if weights is not None:
        weights = _under_names_of(class_map, weights)
        class_map = match_logit_index(class_map, weights.class_map)
    torch.manual_seed(config.train.seed)
    built = build_model(config, class_map)
    return dataclasses.replace(built, report=initialize(built, weights))


def _under_names_of(data_classes: ClassMap, weights: Weights) -> Weights:
    """Return weights under the data's names, where theirs are guessed and nothing contradicts it."""
    guessed = weights.class_map.guessed
    try:
        named = take_names(weights.class_map, data_classes)
    except DataError as error:
        return dataclasses.replace(weights, notes=(*weights.notes, f"classes go by name: {error}"))
    how = "rows of the head go to the data's classes by category id" if named != weights.class_map else guessed
    return dataclasses.replace(weights, class_map=named, notes=(*weights.notes, *([how] if guessed else [])))


def initialize(built: BuiltModel, weights: Weights | None) -> LoadReport | None:
    """Give a new model its starting weights as ``train.init`` says; None when it starts from random weights.

    Args:
        built: Its network is changed in place; its config has ``train.init`` resolved.
        weights: What :func:`starting_weights` returned.
    """
    model, config = built.model, built.config
    if weights is not None:
        report = transfer(model, weights, built.class_map, built.family.scoring.extra_columns)
        notes = [*report.notes, *weights.notes, *_differences(weights.config, config.model)]
    elif config.train.init == "backbone":
        file = get_preset(config.model.preset).backbone_file
        if file is None:
            raise UsageError(
                f"train.init is backbone, but there are no ImageNet weights for {config.model.preset}"
            )
        state = torch.load(download_weights(_TORCHVISION_URL + file), map_location="cpu", weights_only=True)
        report = transfer_backbone(model, state, f"torchvision {file}", built.class_map)
        notes = [*report.notes]
    else:
        if config.train.only:
            _check_frozen(model, config, dict(model.named_parameters()))
        return None
    return dataclasses.replace(report, notes=(*notes, *_training_notes(model, config, report)))


def _differences(before: ModelConfig, now: ModelConfig) -> list[str]:
    """Warn of what no tensor's shape shows and yet makes another function of the same weights."""
    return [
        f"WARNING: the weights were trained with model.{field} {getattr(before, field, None)}, and go on with "
        f"{getattr(now, field, None)}"
        for field in _SILENT_FIELDS
        if getattr(before, field, None) != getattr(now, field, None)
    ]


def _check_frozen(model: nn.Module, config: Config, new: Collection[str]) -> None:
    """Check that nothing rests which begins at random; training aids may.

    Raises:
        ConfigError: Something does.
    """
    places, parameters = find_places(model), dict(model.named_parameters())
    resting = [name for name in new if name in parameters and not parameters[name].requires_grad]
    parts = dict.fromkeys(places[name].part for name in resting if not name.startswith(AIDS))
    if parts:
        raise ConfigError(
            f"train.only is {', '.join(config.train.only)}, but {', '.join(parts)} would begin at random and not "
            f"learn: the starting weights ({config.train.init}) have no such part, or other classes. Name it in "
            "train.only too, or give weights that have it"
        )


def _training_notes(model: nn.Module, config: Config, report: LoadReport) -> list[str]:
    """Say what is frozen, and what learns alone at first."""
    notes = []
    parameters = dict(model.named_parameters())
    if config.train.freeze or config.train.only:
        trained = sum(parameter.numel() for parameter in parameters.values() if parameter.requires_grad)
        total = sum(parameter.numel() for parameter in parameters.values())
        share = f"{trained / 1e6:.2f} of {total / 1e6:.2f} million parameters are trained"
        frozen = [
            *config.train.freeze,
            *(["all but " + ", ".join(config.train.only)] if config.train.only else []),
        ]
        notes.append(f"frozen: {', '.join(frozen)}; {share}")
    if config.train.only:
        _check_frozen(model, config, report.new_tensors)
    if config.train.head_steps:
        places = find_places(model)
        new = [name for name in parameters if name in report.new_tensors and parameters[name].requires_grad]
        parts = ", ".join(dict.fromkeys(places[name].part for name in new))
        steps = f"train.head_steps {config.train.head_steps}"
        notes.append(
            f"{steps}: at first only what is new learns, {parts}"
            if new
            else f"{steps} has no effect: nothing that is trained starts anew"
        )
    return notes


def starting_weights(config: Config) -> tuple[Config, Weights | None]:
    """Resolve everything in the config that depends on the starting weights, and read these if there are any.

    ``init: auto`` becomes what the preset has; a backbone norm of ``auto`` becomes frozen batch norm with
    pretrained weights and group norm without, since a frozen norm that was never trained only does harm.
    """
    preset = PRESETS.get(config.model.preset)
    init = config.train.init
    if init == "auto":
        init = "none"
        if preset is not None and preset.published is not None:
            init = "published"
        elif preset is not None and preset.backbone_file is not None:
            init = "backbone"
    weights = None
    if init == "published":
        if preset is None or preset.published is None:
            raise UsageError(f"train.init is published, but {config.model.preset} has no published weights")
        try:
            weights, _ = read_weights(config.model.preset)
        except WeightsError as error:
            raise WeightsError(f"{error}. Or start from random weights with --init none") from error
    elif init not in ("none", "backbone"):
        weights, source = read_weights(init)
        config, notes = _take_preprocessing(config, source)
        weights = dataclasses.replace(weights, notes=(*weights.notes, *notes))
    norm = config.model.backbone_norm
    frozen = config.model.frozen_stages
    if norm == "auto":
        norm = "frozen" if weights is None and init != "none" else "group"
        if weights is not None:
            norm = weights.config.backbone_norm
    if init == "none" and preset is not None and norm == "frozen" == preset.config().model.backbone_norm:
        norm, frozen = "batch", 0  # the preset's is meant for its weights
    if frozen == "auto":
        frozen = 2 if norm == "frozen" else 0
    resolved = {"model.backbone_norm": norm, "model.frozen_stages": frozen, "train.init": init}
    return update_config(config, resolved), weights


def _take_preprocessing(config: Config, source: Config) -> tuple[Config, list[str]]:
    """Return the config with pixels scaled as the weights know them, and what of preprocessing differs, in words.

    What the config has otherwise than its preset was chosen, and stays.
    """
    preset = PRESETS.get(config.model.preset)
    usual = Config() if preset is None else preset.config()
    changes: dict[str, Any] = {}
    notes = []
    for section, field in _PREPROCESSING:
        own, theirs, default = (getattr(getattr(each, section), field) for each in (config, source, usual))
        key, is_scale = f"{section}.{field}", field in ("mean", "std")
        text = json.dumps(theirs, separators=(",", ":"))
        if own == theirs or (own != default and not is_scale):
            continue
        if is_scale and own == default:
            changes[key] = theirs
            notes.append(f"{key} is {text}, as for the weights; {json.dumps(own)} would be this preset's")
        else:
            warning = f"the weights were trained with {key} {text}, and go on with {json.dumps(own)}"
            notes.append(f"WARNING: {warning}; to keep theirs: --set {key}={text}")
    return update_config(config, changes), notes


def is_run(path: str | Path) -> bool:
    """Return whether a folder is the folder of a run."""
    return (Path(path) / "config.yaml").is_file() or CheckpointStore(path).folder.is_dir()


def _read_path(path: Path, wanted: _Wanted) -> tuple[Weights, Config]:
    if (path.is_dir() and is_run(path)) or (path.is_file() and is_checkpoint(path)):
        saved = read_model(path)
        if wanted.preset not in (None, saved.config.model.preset):
            raise WeightsError(f"{path} holds a {saved.config.model.preset}, but {wanted.preset} was asked for")
        if wanted.fields or wanted.classes:
            said = ", ".join([*wanted.fields, *(["classes"] if wanted.classes else [])])
            raise UsageError(f"{path} is a run's, which holds its model and classes itself; leave out {said}")
        config = update_config(saved.config, {"aids": AidsConfig().model_dump()})  # what detects has none
        return Weights(saved.state_dict, config.model, saved.class_map, str(path)), config
    if path.suffix in (".yaml", ".yml"):
        raise UsageError(f"{path} is a config, not a model; give --config {path} to detrkit train")
    if path.is_dir() and not any((path / name).exists() for name in ("config.json", "model.safetensors")):
        raise UsageError(
            f"{path} is a folder without a model; expected a run folder (config.yaml, checkpoints/) or one from "
            "the Hugging Face hub (config.json, model.safetensors)"
        )
    return _read_published(path, wanted)


def _read_published(path: Path, wanted: _Wanted) -> tuple[Weights, Config]:
    preset = None if wanted.preset is None else preset_config(wanted.preset).model
    family = get_family(preset) if preset else _recognize(path)
    if family.read_published is None:
        raise family.no_published_layout(f"{path} cannot be read as {wanted.preset}")
    weights = family.read_published(path, preset, wanted.fields)
    base = preset_config(weights.config.preset) if weights.config.preset in PRESETS else Config()
    beside = path.with_suffix(CLASSES_SUFFIX)
    rows = weights.class_map.num_labels
    if wanted.classes is not None:
        weights = dataclasses.replace(weights, class_map=_named_classes(wanted.classes, rows))
    elif beside.is_file():
        weights = dataclasses.replace(weights, class_map=read_classes(beside, rows))
    try:
        of_file = {"model": weights.config.model_dump(), "aids": AidsConfig().model_dump(), **weights.settings}
        return weights, update_config(base, of_file)
    except ConfigError as error:
        raise WeightsError(f"{path} cannot be honoured: {error}") from error


def _recognize(path: Path) -> Family:
    """Return the family that weights are of; the default's where none knows them."""
    try:
        names = read_folder(path) if path.is_dir() else read_file(path)[0]
    except WeightsError:  # whoever reads them will say why
        names = {}
    known = (family for family in FAMILIES.values() if family.recognize(names))
    return next(known, get_family(DEFAULT_MODEL))


def _named_classes(text: str, num_labels: int) -> ClassMap:
    """Return the classes that a person names for a head: COCO's, or those of a file.

    Raises:
        WeightsError: They cannot be read, or are of another head.
    """
    path = Path(text).expanduser()
    if text == "coco" and not path.exists():
        rows = dict(zip(COCO_CATEGORY_IDS, COCO_NAMES, strict=True))
    else:
        try:
            content = path.read_text(encoding="utf-8-sig")
            if path.suffix != ".json":
                rows = dict(enumerate(line.strip() for line in content.splitlines() if line.strip()))
                if len(rows) != num_labels:
                    raise WeightsError(
                        f"{path} has {len(rows)} names, the head {num_labels} rows; expected as many"
                    )
            elif "categories" not in (read := parse_json(content)):
                return read_classes(path, num_labels)
            else:
                rows = {int(category["id"]): str(category["name"]) for category in read["categories"]}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise WeightsError(
                f"classes {text}: expected coco, a COCO JSON file or a text file with a name a line: {error}"
            ) from error
    if not rows or not 0 <= min(rows) <= max(rows) < num_labels:
        raise WeightsError(
            f"classes {text}: ids are {listed(sorted(rows))}, the head has rows 0 to {num_labels - 1}"
        )
    # rows that nobody names stay classes: they may have been trained
    unnamed = () if text == "coco" else range(num_labels)
    named = dict(sorted({**{row: f"class_{row}" for row in unnamed}, **rows}.items()))
    return ClassMap(tuple(named.values()), tuple(named), logit_index=tuple(named), num_labels=num_labels)


def read_classes(path: Path, num_labels: int) -> ClassMap:
    """Read the classes that were written beside a file of weights, which holds no names itself.

    Raises:
        WeightsError: They cannot be read, or are of another head.
    """
    try:
        class_map = ClassMap.from_dict(parse_json(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, DataError) as error:
        raise WeightsError(f"{path} does not hold names, category_ids, slots and num_slots: {error}") from error
    if class_map.num_labels != num_labels:
        raise WeightsError(
            f"{path} is of a head with {class_map.num_labels} labels, the weights have {num_labels}"
        )
    return class_map
