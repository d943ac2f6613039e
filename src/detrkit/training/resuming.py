"""What a run may go on with: values of its config that can be changed, and the data of its beginning."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detrkit.checkpoint import CheckpointStore
from detrkit.config import Config, count_keys, flat_changes, update_config
from detrkit.data.split import Split
from detrkit.errors import ConfigError, DataError, UsageError, counted, listed
from detrkit.files import read_facts

FIXED: Mapping[str, str] = read_facts(__file__)
"""Keys and sections that cannot be changed once a run has begun, and why; every other value can be."""

_WRITTEN_BY_HAND = 40
"""Most keys of a config that a person writes; a run's printout has all of its version, 80 and more."""
_RESOLVED = (
    *("model.backbone_norm", "model.frozen_stages", "train.init", "train.recipe", "train.micro_batch"),
    "data.cache",
)
"""Keys whose auto was replaced by a choice when the run began."""
_DATA_PATHS = ("train_annotations", "train_images", "val_annotations", "val_images")
_INIT_WORDS = ("auto", "none", "published", "backbone")


def choices_kept(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a command asks for that began a run and is repeated: what it left to detrkit stays as chosen."""
    flat = flat_changes(asked).items()
    return {key: value for key, value in flat if not (key in _RESOLVED and value == "auto")}


def resumed_config(config: Config, asked: Mapping[str, Any]) -> tuple[Config, list[str]]:
    """Return the config that a run goes on with, and what of it is not as it was, in words.

    Args:
        config: The run's own config.
        asked: Values that are asked for, dotted or nested. Paths inside a former ``data.root`` move with it.

    Raises:
        ConfigError: A value cannot be changed any more, or cannot be at all.
    """
    asked = flat_changes(asked)
    changed = absolute_paths(update_config(config, asked))
    if "data.root" in asked and changed.data.root != config.data.root:
        moved = _moved(config, str(changed.data.root))
        changed = absolute_paths(update_config(config, {**moved, **asked}))
    # what differs, and whether it may
    before, after = flat_changes(config.model_dump()), flat_changes(changed.model_dump())
    lines, refused = list[str](), list[str]()
    for key in (key for key in after if before[key] != after[key]):
        reason = FIXED.get(key) or FIXED.get(key.partition(".")[0])
        words = f"{key} from {before[key]} to {after[key]}"
        (lines if reason is None else refused).append(words if reason is None else f"{words} ({reason})")
    if refused:
        raise ConfigError(
            f"a run that has begun cannot change {'; '.join(refused)}; leave that out, or begin a new run from "
            "its weights: detrkit train --init RUN"
        )
    return changed, [f"changed: {line}" for line in lines]


def check_own_files(run_dir: Path, *, begins_anew: bool) -> None:
    """Check that what a run that goes on replaces was written by one.

    Raises:
        UsageError: Something is somebody else's.
    """
    foreign = CheckpointStore(run_dir).foreign()
    # a log begins with a record, or with the part of one that a kill left
    log, began = run_dir / "metrics.jsonl", b'{"kind": "'
    if os.path.lexists(log):
        is_file = log.is_file() and not log.is_symlink()
        with log.open("rb") if is_file else io.BytesIO(b"-") as file:
            foreign += [] if began.startswith(file.read(len(began))) else [log]
    # each file is written once those before it are there, so that none comes alone
    if begins_anew:
        names = ("config.yaml", "classes.json", "weights.txt", "metrics.jsonl", "events.out.tfevents.*")
        there = [sorted(run_dir.glob(name)) for name in names]
        whole = count_keys(run_dir / "config.yaml") > _WRITTEN_BY_HAND
        for paths in there:
            foreign += [] if whole else [path for path in paths if path not in foreign]
            whole &= bool(paths)
    if foreign:
        raise UsageError(
            f"{listed(foreign)}: not written by a run of detrkit, which would replace it; move it away, or begin "
            "a run in another folder: detrkit train --run RUN"
        )


def _moved(config: Config, root: str) -> dict[str, Any]:
    """Return the data paths of a config whose data set lies in another folder now."""
    paths: dict[str, Any] = {"data.cache": config.data.cache if config.data.cache == "none" else "auto"}
    for key in _DATA_PATHS:
        path = getattr(config.data, key)
        if config.data.root is None:
            paths[f"data.{key}"] = None
        elif path is not None and Path(path).is_relative_to(config.data.root):
            paths[f"data.{key}"] = str(Path(root, Path(path).relative_to(config.data.root)))
    return paths


def absolute_paths(config: Config) -> Config:
    """Return the config with paths that hold from any working directory; what does not exist stays as it is."""
    root = Path(config.data.root or ".").expanduser()
    found = {f"data.{key}": _existing(getattr(config.data, key), root, Path()) for key in _DATA_PATHS}
    found["data.root"] = _existing(config.data.root, Path())
    for key, value, words in (
        ("train.init", config.train.init, _INIT_WORDS),
        ("data.cache", config.data.cache, ("auto", "none")),
    ):
        found[key] = None if value in words else _existing(value, Path())
    return update_config(config, {key: path for key, path in found.items() if path is not None})


def _existing(path: str | None, *folders: Path) -> str | None:
    """Return the absolute form of a path that is there, seen from one of the folders."""
    places = [folder / Path(path).expanduser() for folder in folders] if path is not None else []
    return next((str(place.resolve()) for place in places if place.exists()), None)


def identify_data(split: Split) -> dict[str, Any]:
    """Return what the images and objects of a split are known again by, wherever they lie; primitives only."""
    index, digest = split.index, hashlib.sha256()
    for array in (index.name_offsets, index.name_bytes, index.offsets, index.boxes_xyxy, index.labels):
        digest.update(array.tobytes())
    return {"images": len(index), "objects": len(index.labels), "sha256": digest.hexdigest()}


def check_same_data(saved: Mapping[str, Any], split: Split) -> None:
    """Refuse to go on with other training data than a run was begun with.

    Args:
        saved: Result of :func:`identify_data` in its checkpoint; empty if an earlier version wrote that.
        split: Training split now.

    Raises:
        DataError: It is another one.
    """
    if not saved or saved == (found := identify_data(split)):
        return
    counts = [
        f"{counted(each['images'], 'image')} with {counted(each['objects'], 'object')}" for each in (found, saved)
    ]
    other = f"got {counts[0]}, expected {counts[1]}"
    if counts[0] == counts[1]:
        other = f"both have {counts[0]}, but with other names, boxes or classes"
    raise DataError(
        f"{split.files.annotations} is not the data that the run was begun with: {other}. Name the place where "
        "that lies now (--data DATA), or begin a new run from its weights: detrkit train --init RUN"
    )
