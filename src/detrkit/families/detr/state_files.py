"""Opening files of weights: ``.pth`` of training scripts, safetensors, and folders with shards; no code is run."""

from __future__ import annotations

import argparse
import pathlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from detrkit.checkpoint import FORMAT, torch_fault
from detrkit.errors import WeightsError, listed
from detrkit.families.detr.layouts import BOX_PREFIX, MASK_PARTS, QUERIES, State
from detrkit.files import parse_json

_STATES = ("model", "state_dict", "model_state_dict")
"""Keys under which training scripts save the weights that they train, the authors' first."""

_PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path", "PurePath")


def read_file(path: Path, states: Sequence[str] = _STATES) -> tuple[State, Any, str]:
    """Return the tensors of a file, its ``args`` or None, and which of its tensors they are if it has others.

    Args:
        path: ``.safetensors``, or what torch saved.
        states: Keys under which the model's tensors lie, the first that is there counting.
    """
    if not path.is_file():
        raise WeightsError(f"no weights file at {path}")
    if path.suffix == ".safetensors":
        try:
            return load_file(path), None, ""
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{path} is damaged or not a safetensors file: {error}") from error
    return _find_state(load_tensors_only(path), path, states)


def _find_state(content: Any, path: Path, states: Sequence[str]) -> tuple[State, Any, str]:
    """Return the tensors of a model out of what a training script saved, its ``args``, and which they are.

    Raises:
        WeightsError: There is no model, or several and none that is the one.
    """
    keys = listed([str(key) for key in content]) if isinstance(content, dict) else type(content).__name__
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds no state dict but a {keys}; expected tensors by name")
    if content.get("format") == FORMAT:
        raise WeightsError(
            f"{path} is a checkpoint of detrkit that was cut off or saved anew: the hash at its end is missing; "
            "give the run's own file or folder"
        )
    if _is_state(content):
        return content, None, ""
    # some keep averaged weights one level further down
    found: dict[str, State] = {}
    for key, value in content.items():
        inner = [value, *value.values()] if isinstance(value, dict) else []
        found |= {str(key): state for state in reversed(inner) if _is_state(state)}
    place = next((key for key in states if key in found), None)
    if place is None and len(found) != 1:
        what = f"several, under {', '.join(found)}" if found else "no state dict"
        raise WeightsError(f"{path} holds {what}; its keys are {keys}, expected tensors by name under model")
    place = place or next(iter(found))
    others = ", ".join(key for key in found if key != place)
    note = f"the weights are those under {place}" if others or place not in states else ""
    return found[place], content.get("args"), note + (others and f"; others, under {others}, are passed over")


def _is_state(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(tensor, Tensor) for tensor in value.values())


def unwrap_names(state: Mapping[Any, Tensor], path: Path) -> tuple[State, tuple[str, ...]]:
    """Return tensors without what DDP, torch.compile or Lightning put before their names, and what is passed over.

    Raises:
        WeightsError: There are several models.
    """
    names = [str(name) for name in state]
    prefixes = {name.removesuffix(end) for name in names for end in QUERIES if name.endswith(end)}
    prefixes = {prefix for prefix in prefixes if prefix.endswith(".") or not prefix}
    if len(prefixes) > 1:
        raise WeightsError(f"{path} holds several models, under {', '.join(sorted(prefixes))}; expected one")
    prefix = next(iter(prefixes), "")
    # a model with masks has its own parts beside the one that detects
    whole = prefix.removesuffix(BOX_PREFIX)
    beside = tuple(whole + part for part in MASK_PARTS) if prefix.endswith(BOX_PREFIX) else ()
    own = {name: name.removeprefix(prefix) for name in names if name.startswith(prefix)}
    own |= {name: name.removeprefix(whole) for name in names if beside and name.startswith(beside)}
    outside = [name for name in names if name not in own]
    inside = {own[str(name)]: tensor for name, tensor in state.items() if str(name) in own}
    return inside, (f"tensors besides the model {prefix} are passed over: {listed(outside)}",) if outside else ()


def load_tensors_only(path: Path) -> Any:
    """Open a ``torch.save`` file of tensors and primitives, never running code from it.

    The published training script also stores its argparse arguments, which hold plain values only, and paths where
    it was started by submitit.

    Raises:
        WeightsError: The file is damaged, or holds objects whose loading could run code.
    """
    allowed: list[Any] = [argparse.Namespace]
    for name in _PATHS:  # as pure paths: those of another system cannot be made here
        pure = pathlib.PureWindowsPath if "Windows" in name else pathlib.PurePosixPath
        allowed += [(pure, f"{module}.{name}") for module in ("pathlib", "pathlib._local")]
    try:
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch only guesses at what the error below says
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # any file may be given, and torch's old formats fail in many ways on what is none
        raise WeightsError(
            f"{path} is refused: {torch_fault(error, path)}. Expected tensors and plain values, as in "
            "detr-r50.pth, or a safetensors file"
        ) from error


def read_folder(folder: Path) -> State:
    """Return the tensors of a folder: of the file that transformers takes, or of an index's shards."""
    index = folder / "model.safetensors.index.json"
    usual = [folder / name for name in ("model.safetensors", "pytorch_model.bin")]
    files = sorted(folder.glob("*.safetensors"))
    if usual[0] in files or not files:
        files = [path for path in usual if path.is_file()][:1]
    if len(files) == 1 and (files[0] in usual or not index.is_file()):
        return read_file(files[0])[0]
    if not index.is_file():
        raise WeightsError(
            f"{folder} holds {len(files)} .safetensors files, expected model.safetensors beside config.json, or "
            f"{index.name} that lists its shards"
        )
    try:
        places = {
            str(name): str(file) for name, file in parse_json(index.read_text("utf-8"))["weight_map"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{index} cannot be read, expected weight_map with a file by tensor: {error!r}"
        ) from error
    shards = sorted(set(places.values()))
    outside = [shard for shard in shards if shard != Path(shard).name]
    if outside:
        raise WeightsError(f"{index} names files outside its folder, such as {outside[0]!r}; expected names only")
    state: State = {}
    for shard in shards:
        state |= read_file(folder / shard)[0]
    absent = [name for name in places if name not in state]
    if absent:
        raise WeightsError(f"the shards of {folder} lack {len(absent)} tensors of {index.name}: {listed(absent)}")
    return state
