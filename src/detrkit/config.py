"""The configs of a run: frozen, strict, and the only home of defaults (presets override, nothing else does).

``model`` is the section of the family that it names, see :mod:`detrkit.families.configs`. No torch in here: the
command line reads this page to print help.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import pydantic
import yaml

from detrkit.errors import ConfigError
from detrkit.families.configs import DEFAULT_MODEL, MODEL_CONFIGS, AnyModelConfig
from detrkit.files import atomic_file, read_facts
from detrkit.model_config import DEFAULT_PRESET as DEFAULT_PRESET
from detrkit.model_config import BackboneName as BackboneName
from detrkit.model_config import ModelConfig as ModelConfig
from detrkit.model_config import Section

Layout = Literal["auto", "coco", "yolo", "voc", "panoptic"]
"""Layouts of data sets: the formats of :mod:`detrkit.data.formats`, and auto, by what lies there."""
Precision = Literal["32", "bf16", "16"]
PixelRange = Literal["full", "percentile", "data"] | tuple[float, float]
"""Gray values of 16- and 32-bit images that become black and white; see :mod:`detrkit.ops.pixel_range`."""


class DataConfig(Section):
    """Where the images and annotations are, and how they are loaded."""

    root: str | None = pydantic.Field(None, description="folder of the data set")
    layout: Layout = pydantic.Field("auto", description="layout of the data set; auto: by what lies in root")
    train_split: str = "train"
    val_split: str = "val"
    train_annotations: str | None = pydantic.Field(None, description="COCO JSON; found by layout if not given")
    train_images: str | None = pydantic.Field(None, description="image folder; found by layout if not given")
    val_annotations: str | None = None
    val_images: str | None = None
    workers: int | Literal["auto"] = pydantic.Field("auto", description="loader processes; auto: by CPU count")
    prefetch: int = pydantic.Field(2, ge=1, description="batches each worker keeps ready")
    pin_memory: bool | Literal["auto"] = pydantic.Field("auto", description="auto: on when training on CUDA")
    fast_decode: bool = pydantic.Field(
        True, description="in training, read a JPEG at 1/2, 1/4 or 1/8 of its size where that is large enough"
    )
    cache: str = pydantic.Field(
        "auto",
        description="folder that detrkit data cache made, for training; none: without; auto: one beside root",
    )
    buckets: bool = pydantic.Field(
        False, description="in training, batches of images of similar size: far less padding, same augmentation"
    )
    pixel_range: PixelRange = pydantic.Field(
        "full",
        description="gray values of 16- and 32-bit images that become 0 and 255: full, what their kind can hold; "
        "percentile, nearly all of each image; data, nearly all of the training set, measured once; or "
        "[LOW,HIGH]. Saved with the model, which predicts with the same",
    )
    on_bad_image: Literal["skip", "error"] = pydantic.Field(
        "skip", description="skip: report an unreadable image and train without it; error: stop"
    )
    on_lost_objects: Literal["error", "warn"] = pydantic.Field(
        "error",
        description="if reading loses all or most objects of a split or all of a class, or there is none to train "
        "on; error: stop; warn: go on, where none is left with images without objects",
    )

    @pydantic.field_validator("pixel_range")
    @classmethod
    def _low_first(cls, value: PixelRange) -> PixelRange:
        if isinstance(value, tuple) and not value[0] < value[1]:
            raise ValueError(f"pixel_range is {list(value)}, expected the lesser value first")
        return value


RunRecipe = Literal["auto", "plain", "fast", "deim"]
RecipeName = Literal["detr", "resize", "light", "strong", "mosaic"]

RECIPES: Mapping[str, Mapping[str, Any]] = read_facts(__file__, "recipes.toml")
"""What each recipe of augmentation sets; all else is the default of :class:`TransformConfig`.

detr: the paper's. resize: evaluation's resize, and a flip. light: for fine-tuning on few images. strong: that of
RT-DETR (arXiv:2304.08069) and D-FINE (arXiv:2410.13842), with detrkit's resize. mosaic: for many small objects.
"""

_RECIPE_KEYS = frozenset(key for changes in RECIPES.values() for key in changes)


class TransformConfig(Section):
    """Augmentation in training and the resize of evaluation; the default is DETR's (paper A.4). Sizes in pixels.

    Keys that are not given have the value of the recipe.
    """

    recipe: RecipeName = pydantic.Field(
        "detr", description="named set of the values below: detr (the paper's), resize, light, strong or mosaic"
    )
    multi_scale: bool = pydantic.Field(
        True, description="short side drawn from scales, with the crop branch; false: always eval_size, no branch"
    )
    scales: tuple[int, ...] = pydantic.Field(
        (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800),
        min_length=1,
        description="short sides to draw from",
    )
    max_size: int = pydantic.Field(1333, gt=0, description="longest side allowed")
    flip: float = pydantic.Field(0.5, ge=0, le=1, description="probability of a horizontal flip")
    vertical_flip: float = pydantic.Field(0.0, ge=0, le=1, description="probability of a vertical flip")
    crop: float = pydantic.Field(0.5, ge=0, le=1, description="probability of the crop branch")
    crop_scales: tuple[int, ...] = pydantic.Field((400, 500, 600), min_length=1)
    crop_range: tuple[int, int] = pydantic.Field((384, 600), description="least and greatest side of a crop")
    scale_jitter: tuple[float, float] = pydantic.Field(
        (1.0, 1.0),
        description="objects are shrunk or enlarged by a factor between these; enlarged images are cropped",
    )
    zoom_out: float = pydantic.Field(
        0.0, ge=0, le=1, description="probability of placing the image on a larger canvas"
    )
    zoom_out_factor: float = pydantic.Field(
        4.0, ge=1, le=16, description="greatest side of that canvas, in images"
    )
    iou_crop: float = pydantic.Field(
        0.0, ge=0, le=1, description="probability of a crop that keeps a drawn share of at least one object"
    )
    photometric: float = pydantic.Field(
        0.0, ge=0, le=1, description="probability each of changed brightness, contrast, saturation and hue"
    )
    photometric_strength: float = pydantic.Field(1.0, ge=0, le=2, description="1: as SSD; 0.5: half of it")
    channel_shuffle: float = pydantic.Field(
        0.0, ge=0, le=1, description="probability that red, green and blue change places"
    )
    mosaic: float = pydantic.Field(0.0, ge=0, le=1, description="probability that four images share one canvas")
    mixup: float = pydantic.Field(0.0, ge=0, le=1, description="probability that another image shines through")
    min_box_side: float = pydantic.Field(
        0.0, ge=0, description="objects with a shorter side than this, as the network would see them, are dropped"
    )
    close_after: float = pydantic.Field(
        1.0, ge=0, le=1, description="share of the epochs after which mosaic, mixup and zoom-out end"
    )
    on_device: bool | Literal["auto"] = pydantic.Field(
        "auto", description="flips and colours of whole batches on the device; auto: on CUDA if colours change"
    )
    eval_size: int = pydantic.Field(800, gt=0, description="short side in evaluation and prediction")
    keep_aspect: bool = pydantic.Field(
        True, description="false: images become squares of scales and eval_size, as in RT-DETR and D-FINE"
    )
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    @pydantic.model_validator(mode="before")
    @classmethod
    def _fill_in_recipe(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        recipe = values.get("recipe")
        return {**RECIPES.get(recipe, {}), **values} if isinstance(recipe, str) else values

    @pydantic.model_validator(mode="after")
    def _sizes_and_ranges(self) -> TransformConfig:
        for name in ("scales", "crop_scales", "crop_range"):
            if min(getattr(self, name)) < 1:
                raise ValueError(f"{name} has {min(getattr(self, name))}, expected pixels, at least 1")
        for name in ("crop_range", "scale_jitter"):
            least, greatest = getattr(self, name)
            if least > greatest:
                raise ValueError(f"{name} is from {least} to {greatest}; expected the lesser number first")
        if not 0.05 <= self.scale_jitter[0] <= self.scale_jitter[1] <= 20:
            raise ValueError(f"scale_jitter is {self.scale_jitter}, expected factors of 0.05 to 20")
        if min(self.std) <= 0:
            raise ValueError(f"std is {self.std}, expected numbers above 0")
        return self


class LossConfig(Section):
    """Matching costs and loss weights (paper equations 1 to 2 and A.2, and the published code)."""

    class_cost: float = 1.0
    l1_cost: float = 5.0
    giou_cost: float = 2.0
    class_weight: float = 1.0
    l1_weight: float = 5.0
    giou_weight: float = 2.0
    mask_weight: float = pydantic.Field(1.0, ge=0, description="weight of the masks' focal loss, if any")
    dice_weight: float = pydantic.Field(1.0, ge=0, description="weight of the masks' Dice loss, if any")
    no_object_weight: float = pydantic.Field(0.1, ge=0, description="weight of no-object in the class loss")
    class_targets: Literal["hard", "iou", "mal"] = pydantic.Field(
        "hard",
        description="what a matched query's class should score: 1, or the IoU of its box with the object (as in "
        "VarifocalNet, arXiv:2008.13367), the rest going to no-object; mal: the IoU^1.5, badly fitting boxes "
        "weighing no less (matchability-aware loss of DEIM, arXiv:2412.04234)",
    )
    dense_weight: float = pydantic.Field(1.0, ge=0, description="weight of the loss of image tokens, if any")
    group_weight: float = pydantic.Field(1.0, ge=0, description="weight of further sets of queries, if any")
    denoising_weight: float = pydantic.Field(1.0, ge=0, description="weight of noised objects' loss, if any")
    fgl_weight: float = pydantic.Field(
        0.15, ge=0, description="weight of the loss of boxes' edges as distributions, where a decoder has them"
    )
    ddf_weight: float = pydantic.Field(
        1.5, ge=0, description="weight of what layers learn from the last one's distributions"
    )
    union: bool = pydantic.Field(
        True, description="distributions: boxes of every layer learn from the pairs that any layer was matched by"
    )
    aux: bool = pydantic.Field(True, description="supervise every decoder layer, not only the last")


class MasksConfig(Section):
    """From the masks of queries to masks of objects and to a panoptic picture, as published where not said."""

    threshold: float = pydantic.Field(0.5, gt=0, lt=1, description="least probability of an object's pixel")
    panoptic_score: float = pydantic.Field(
        0.85, ge=0, lt=1, description="queries of a higher score take part in the panoptic picture"
    )
    min_pixels: int = pydantic.Field(
        4, ge=0, description="segments of the panoptic picture with no more pixels than this are dropped"
    )
    stuff: Literal["published", "union"] = pydantic.Field(
        "published",
        description="several queries of one stuff class; published: where the first wins against all others, once "
        "the rest of the class are dropped; union: one segment, where any of them wins",
    )


class AidsConfig(Section):
    """Parts that exist in training only; the model that detects has none of them, nor has any export."""

    dense: Literal["none", "center", "aligned"] = pydantic.Field(
        "none",
        description="the heads also read every image token of the encoder; the tokens of an object are those near "
        "its centre (FCOS, arXiv:1904.01355) or those that find it best (TOOD, arXiv:2108.07755)",
    )
    groups: int = pydantic.Field(
        1, ge=1, description="sets of queries, each matched by itself (Group DETR, arXiv:2207.13085)"
    )
    denoising: int = pydantic.Field(
        0,
        ge=0,
        description="times that each object is noised to make queries (DN-DETR, arXiv:2203.01305), as many again "
        "to find nothing (DINO, arXiv:2203.03605); RT-DETR, D-FINE: at most 100 by the most objects of an image",
    )
    label_noise: float = pydantic.Field(0.2, ge=0, le=1, description="share of noised objects with a random class")
    box_noise: float = pydantic.Field(
        0.4, gt=0, le=1, description="most that a noised corner moves, in halves of the box's side"
    )


class TrainConfig(Section):
    """The loop."""

    recipe: RunRecipe = pydantic.Field(
        "auto",
        description="named set of values for loss, aids and optimisation: plain (as published), fast, or deim "
        "(that of DEIM over either); auto: fast without pretrained weights",
    )
    init: str = pydantic.Field(
        "auto",
        description="starting weights: published, backbone (ImageNet), none, or a path or hub id; "
        "auto: published if the preset has them, else backbone, else none",
    )
    epochs: int = pydantic.Field(50, ge=1)
    batch_size: int = pydantic.Field(4, ge=1, description="images a batch and process")
    accumulate: int = pydantic.Field(1, ge=1, description="batches per optimiser step")
    micro_batch: Annotated[int, pydantic.Field(ge=1)] | Literal["auto"] | None = pydantic.Field(
        None,
        description="images through the network at once, if fewer than batch_size: less memory, same gradient; "
        "auto: the largest that fits",
    )
    on_oom: Literal["halve", "error"] = pydantic.Field(
        "halve", description="when memory runs out: halve the micro-batch and repeat the step, or stop"
    )
    pixel_budget: int | None = pydantic.Field(
        None, ge=1, description="pixels that a micro-batch may have; more is treated as memory that ran out"
    )
    recompute: bool = pydantic.Field(
        False,
        description="activation checkpointing: activations are computed again in the backward pass, not kept",
    )
    lr: float = pydantic.Field(1e-4, gt=0)
    backbone_lr: float = pydantic.Field(1e-5, ge=0)
    lr_scale: dict[str, Annotated[float, pydantic.Field(gt=0)]] = pydantic.Field(
        default_factory=dict,
        description="factor of the learning rate by part of the model, the most specific part counting; parts are "
        "listed by detrkit models --parts PRESET",
    )
    layer_decay: float = pydantic.Field(
        1.0, gt=0, le=1, description="each layer further from the heads learns at this times the rate of the next"
    )
    freeze: tuple[str, ...] = pydantic.Field((), description="parts of the model that are not trained")
    only: tuple[str, ...] = pydantic.Field(
        (), description="parts of the model that alone are trained, such as mask_head; empty: all"
    )
    box_epochs: int = pydantic.Field(
        0,
        ge=0,
        description="first epochs, in which a model with masks learns boxes alone, as if it had none; in the "
        "others its mask head alone learns (paper section 4.4); 0: both together",
    )
    head_steps: int = pydantic.Field(
        0, ge=0, description="first steps, in which only what has no pretrained weights (the heads) learns"
    )
    weight_decay: float = pydantic.Field(1e-4, ge=0)
    muon: float = pydantic.Field(
        0.0,
        ge=0,
        description="size of a matrix's step by Muon, in learning rates (AdamW's: about 0.2); 0: no Muon",
    )
    clip_norm: float = pydantic.Field(0.1, ge=0, description="largest gradient norm; 0 turns clipping off")
    schedule: Literal["step", "cosine", "flat_cosine", "constant"] = "step"
    drop_at: float = pydantic.Field(
        0.8, gt=0, le=1, description="share of training after which step drops lr, and flat_cosine begins to"
    )
    drop_factor: float = pydantic.Field(0.1, gt=0, le=1, description="what is left of lr then, or in the end")
    warmup_steps: int = pydantic.Field(0, ge=0)
    warmup_share: float | None = pydantic.Field(
        None, ge=0, le=1, description="share of all steps that the warm-up takes at most"
    )
    ema_decay: float | None = pydantic.Field(None, gt=0, lt=1, description="average weights; evaluated and saved")
    precision: Precision = pydantic.Field("32", description="32, bf16 or 16 (mixed)")
    deterministic: bool = pydantic.Field(
        False, description="on CUDA, only kernels that give the same bits each time: exact resume, somewhat slower"
    )
    on_nonfinite: Literal["skip", "stop"] = pydantic.Field(
        "skip", description="a step with a NaN or infinite loss or gradient changes no weight; then go on, or stop"
    )
    max_bad_steps: int = pydantic.Field(
        5, ge=1, description="steps of that kind in a row after which training stops"
    )
    alarms: bool = pydantic.Field(True, description="say so when training goes wrong in one of the known ways")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    devices: int = pydantic.Field(1, ge=1, description="processes, one GPU each")
    num_nodes: int = pydantic.Field(1, ge=1)
    seed: int = pydantic.Field(42, ge=0)
    eval_every: int = pydantic.Field(1, ge=1, description="epochs between evaluations")
    patience: int | None = pydantic.Field(None, ge=1, description="stop after so many evaluations without gain")
    save_every_min: float = pydantic.Field(15.0, gt=0, description="minutes between checkpoints inside an epoch")
    save_every_steps: int | None = pydantic.Field(
        None, ge=1, description="steps between checkpoints inside an epoch, besides the minutes"
    )
    log_every: int = pydantic.Field(10, ge=1, description="steps between log lines")
    log_images: int = pydantic.Field(4, ge=0, description="validation images drawn into TensorBoard")
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = pydantic.Field(
        ("tensorboard",), description="where curves go besides metrics.jsonl"
    )
    project: str = pydantic.Field("detrkit", min_length=1, description="project or experiment of wandb and mlflow")
    max_detections: int = pydantic.Field(100, ge=1, description="detections an image in evaluation")

    @pydantic.field_validator("freeze", "only", mode="before")
    @classmethod
    def _one_part(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @pydantic.model_validator(mode="after")
    def _epochs_of_masks(self) -> TrainConfig:
        if self.box_epochs >= max(self.epochs, 1) and self.box_epochs:
            raise ValueError(
                f"box_epochs is {self.box_epochs} of {self.epochs} epochs, which leaves none for masks"
            )
        return self


class Config(Section):
    """Everything a run is made from; ``config.yaml`` of a run folder repeats the run."""

    model: AnyModelConfig = DEFAULT_MODEL
    data: DataConfig = DataConfig()
    transforms: TransformConfig = TransformConfig()
    loss: LossConfig = LossConfig()
    aids: AidsConfig = AidsConfig()
    masks: MasksConfig = MasksConfig()
    train: TrainConfig = TrainConfig()

    @pydantic.model_validator(mode="after")
    def _masks_to_learn(self) -> Config:
        if self.train.box_epochs and not self.model.masks:
            raise ValueError(f"train.box_epochs is {self.train.box_epochs}, but {self.model.preset} has no masks")
        return self


def update_config(config: Config, changes: Mapping[str, Any]) -> Config:
    """Return a new config with some values changed.

    Args:
        config: Where to start from; never mutated.
        changes: Nested by section (``{"train": {"lr": 1e-4}}``) or dotted (``{"train.lr": 1e-4}``). A recipe
            named in ``transforms.recipe`` brings all its values; keys named beside it, or later, override them.

    Raises:
        ConfigError: An unknown key (the nearest name is suggested) or a value that cannot be.
    """
    flat = _renamed(_flatten(changes))
    merged = config.model_dump()
    merged["model"], flat = _of_one_family(merged["model"], flat)
    for key, value in flat:
        # one entry of a mapping, whose name may have dots
        mapping, entry = key[:2], ".".join(key[2:])
        if mapping in _MAPPINGS and entry:
            merged[mapping[0]][mapping[1]][entry] = value
            continue
        # any other key must be there already
        section = merged
        *parents, last = key
        for depth, name in enumerate(parents):
            if not isinstance(section.get(name), dict):
                raise ConfigError(_unknown_key(key[: depth + 1], section))
            section = section[name]
        if last not in section:
            raise ConfigError(_unknown_key(key, section))
        if isinstance(section[last], dict) and key not in _MAPPINGS:
            raise ConfigError(f"{'.'.join(key)} is a section; set one of its keys: {', '.join(section[last])}")
        section[last] = value
    # what a recipe sets comes with it, except what is named beside it
    named = {key for key, _ in flat}
    if ("transforms", "recipe") in named:
        for name in _RECIPE_KEYS:
            if ("transforms", name) not in named:
                del merged["transforms"][name]
    return _validated(merged)


def read_config(path: str | Path, base: Config | None = None) -> Config:
    """Read a YAML config file, over ``base`` or the defaults.

    Raises:
        ConfigError: The file is missing, is not a YAML mapping, or holds an unknown key or a bad value.
    """
    content = read_changes(path)
    try:
        return update_config(base or Config(), content)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def read_changes(path: str | Path) -> dict[str, Any]:
    """Read what a YAML config file names, nested, its keys and values not checked yet.

    Raises:
        ConfigError: The file is missing, or is not a YAML mapping.
    """
    content = read_yaml(path)
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds a {type(content).__name__}, expected sections such as train: and model:")
    return content


def read_yaml(path: str | Path) -> Any:
    """Read a YAML file that a person wrote.

    Raises:
        ConfigError: It cannot be read, or is none.
    """
    try:
        return parse_yaml(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error


def parse_yaml(text: str) -> Any:
    """Parse a YAML text.

    Raises:
        ValueError: It is none, is nested beyond all reason, or unfolds into a great many values: ten lines with
            aliases of aliases make a billion.
    """
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, LookupError, AttributeError, RecursionError) as error:  # LookupError by !!bool x
        raise ValueError(str(error)) from error
    left, count = [content], 0
    while left:
        value = left.pop()
        left += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        count += 1
        if count > _MOST_VALUES:
            raise ValueError(f"its aliases (*name) unfold into more than {_MOST_VALUES:,} values")
    return content


def flat_changes(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return changes, or a whole config as a dict, by dotted key."""
    return {".".join(key): value for key, value in _flatten(changes)}


def write_config(config: Config, path: str | Path, *, own_folder: bool = False) -> None:
    """Write every value, defaults included, as YAML; ``own_folder`` as for :func:`detrkit.files.atomic_bytes`."""
    with atomic_file(Path(path), own_folder=own_folder) as file:
        yaml.safe_dump(config.model_dump(mode="json"), file, sort_keys=False, default_flow_style=None)


def count_keys(path: Path) -> int:
    """Count the keys that a config file names; 0 where it is none, or another program's."""
    try:
        named = flat_changes(read_changes(path)).keys()
    except ConfigError:
        return 0
    known = len(named & flat_changes(Config().model_dump()).keys())
    return known if 2 * known > len(named) else 0


_MOST_VALUES = 1_000_000
_MAPPINGS = frozenset(
    (section, name)
    for section, values in Config().model_dump().items()
    for name, value in values.items()
    if isinstance(value, dict)
)
"""Keys whose value is a mapping with names of its own: given whole it replaces, by one of its names it adds."""


def _flatten(changes: Mapping[str, Any], above: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    flat: list[tuple[tuple[str, ...], Any]] = []
    for key, value in changes.items():
        path = (*above, *str(key).split("."))
        if isinstance(value, Mapping) and path not in _MAPPINGS:
            flat += _flatten(value, path)
        else:
            if isinstance(value, Mapping):
                value = {".".join(names): inner for names, inner in _flatten(value)}
            flat.append((path, value))
    return flat


def _renamed(flat: list[tuple[tuple[str, ...], Any]]) -> list[tuple[tuple[str, ...], Any]]:
    """Return the same changes by today's names; a key that is named by both names keeps what the new one says."""
    old, new = ("model", "dense_supervision"), ("aids", "dense")
    moved = [(new, {True: "center", False: "none"}.get(value, value)) for key, value in flat if key == old]
    return moved + [(key, value) for key, value in flat if key != old]


def _of_one_family(
    model: dict[str, Any], flat: list[tuple[tuple[str, ...], Any]]
) -> tuple[dict[str, Any], list[tuple[tuple[str, ...], Any]]]:
    """Return the model section in the terms of the family that it shall have, and the changes that concern it.

    Files written before families had sections of their own name every family's fields: a field of another family
    is passed over where it has its default, which says nothing.

    Raises:
        ConfigError: There is no such family, or a field is another family's.
    """
    family = dict(flat).get(("model", "family"), model["family"])
    if family not in MODEL_CONFIGS:
        raise ConfigError(f"model.family is {family!r}, expected one of {', '.join(MODEL_CONFIGS)}")
    own = MODEL_CONFIGS[family]().model_dump()
    kept = []
    for key, value in flat:
        others = {
            other: section.model_fields[key[1]].default
            for other, section in MODEL_CONFIGS.items()
            if len(key) == 2 and key[0] == "model" and key[1] not in own and key[1] in section.model_fields
        }
        if others and value not in others.values():
            raise ConfigError(f"unknown config key {'.'.join(key)}; {family} has none, only {', '.join(others)}")
        if not others:
            kept.append((key, value))
    return {name: model.get(name, default) for name, default in own.items()}, kept


def _unknown_key(key: tuple[str, ...], section: Mapping[str, Any]) -> str:
    """Say that a key is unknown, and which one may be meant: a near one, or the right one of another section."""
    every = sorted(f"{name}.{field}" for name, value in Config().model_dump().items() for field in value)
    near = [".".join((*key[:-1], name)) for name in difflib.get_close_matches(key[-1], section, n=1)]
    near += [name for name in every if name.rpartition(".")[2] == key[-1]]
    hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(section)}"
    return f"unknown config key {'.'.join(key)}; {hint}"


def _validated(values: dict[str, Any]) -> Config:
    try:
        return Config.model_validate(values)
    except pydantic.ValidationError as error:
        problems = []
        for item in error.errors():
            # pydantic puts the family between section and key
            place = [
                str(part) for number, part in enumerate(item["loc"]) if number != 1 or part not in MODEL_CONFIGS
            ]
            # of whole sections, or all of them, the value would fill the screen
            whole = isinstance(item["input"], (dict, Section))
            message = item["msg"].removeprefix("Value error, ")
            problems.append(message if whole else f"{'.'.join(place)} is {item['input']!r}: {message}")
        raise ConfigError("; ".join(problems)) from error


PRECISIONS: tuple[str, ...] = get_args(Precision)
