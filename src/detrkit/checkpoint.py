"""Checkpoints that are whole or not there, prove it on load, and cannot run code.

A checkpoint is one file: what ``torch.save`` writes (``torch.load`` reads it as it is), then a seal of fixed
length with the SHA-256 of everything before it. It is written beside its final name, flushed to the disk and
renamed, so a crash or a full disk leaves the earlier file untouched.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Annotated, Any, NamedTuple, TypedDict, TypeVar

import msgspec
import torch
from torch import Tensor

from detrkit.classes import ClassMap
from detrkit.config import Config, update_config
from detrkit.errors import CheckpointError, ConfigError, DataError
from detrkit.files import atomic_bytes, remove_leftovers, sync_folder

_Value = TypeVar("_Value")

AIDS = "aids."
"""With what the names of the weights begin that exist in training only, in every family."""

FORMAT = "detrkit-checkpoint"
VERSION = 1

_ONLY_TRAINING = ("optimizer", "scaler", "window", "health", "log")
"""What the best model is kept without."""

_PLAIN = ("torch._utils.", "collections.", "argparse.Namespace", "pathlib.")
"""Types and functions in pickles of tensors and plain values."""

_SEAL_START = b"\ndetrkit-checkpoint sha256 "
_SEAL_LENGTH = len(_SEAL_START) + 64 + 1
_ZIP_END_LENGTH = 22


Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]


class _Averages(TypedDict):
    count: Count
    weights: dict[str, Tensor]


class _Group(TypedDict, total=False):
    params: list[int]
    param_names: list[str]
    lr: float


class _Optimizer(TypedDict):
    state: dict[int, dict[str, Tensor]]
    param_groups: list[_Group]


class _LogPosition(TypedDict, total=False):
    records: Count
    elapsed_s: float
    of_step: dict[str, float] | None


class _Payload(TypedDict, total=False):
    """Types of what checkpoints hold, each part only where it is there; saved steps hold some of the same."""

    config: dict[str, Any]
    class_map: dict[str, Any]
    data: dict[str, int | str]
    model: dict[str, Tensor]
    ema: _Averages | None
    optimizer: _Optimizer
    progress: dict[str, Any]
    log: _LogPosition | None
    records: Count
    world_size: Count


class SavedModel(NamedTuple):
    """A model as a checkpoint holds it: averaged weights where the run averaged them."""

    config: Config
    class_map: ClassMap
    state_dict: dict[str, Tensor]


def save_checkpoint(path: str | Path, payload: Mapping[str, Any]) -> None:
    """Write a checkpoint, whole or not at all.

    Args:
        path: File to write; an existing file is replaced only when the new one is safe on the disk.
        payload: Tensors, primitives, and lists, tuples and dicts of them; nothing else could be loaded.

    Raises:
        CheckpointError: The disk is full or cannot be written; nothing has changed then.
    """
    with _disk_errors(Path(path)), atomic_bytes(Path(path), own_folder=True) as file:
        writer = _HashingWriter(file)
        torch.save({"format": FORMAT, "version": VERSION, **payload}, writer)  # type: ignore[arg-type]
        if writer.error is not None:
            raise writer.error
        file.write(_seal(writer.digest.hexdigest()))


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU, after checking its hash.

    Raises:
        CheckpointError: The file is missing, damaged, not of detrkit, of a newer detrkit, or holds anything
            but tensors and primitives, or these where they do not belong.
    """
    path = Path(path)
    try:
        _check_seal(path)
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"cannot read checkpoint {path}: {error.strerror or error}") from error
    except CheckpointError:
        raise
    except Exception as error:  # crafted content can make the restricted unpickler raise anything
        raise CheckpointError(
            f"{path} cannot be loaded safely, expected tensors and primitives only: {torch_fault(error, path)}"
        ) from error
    if not isinstance(payload, dict) or payload.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a detrkit checkpoint: it has no format: {FORMAT}")
    if payload.get("version") != VERSION:
        raise CheckpointError(
            f"{path} has checkpoint version {payload.get('version')}, this detrkit reads version {VERSION}; "
            "use the detrkit that wrote it"
        )
    try:
        msgspec.convert(payload, _Payload)
    except (msgspec.ValidationError, AttributeError, TypeError) as error:  # a tensor passes for a mapping
        raise CheckpointError(f"{path} holds what no checkpoint does: {error}; use another checkpoint") from error
    return payload


def torch_fault(error: Exception, path: Path) -> str:
    """Return why torch could not open a file, in a line, by the type that it stumbled on.

    Torch's own words are not repeated where they advise to switch its safety off.
    """
    text = str(error).strip()
    if "TorchScript" in text:
        return "it is a TorchScript archive, which is a program"
    named = re.search(r"GLOBAL ([\w.]+)", text)
    name, protocol = (named[1], 2) if named else _look_into_pickle(path)
    if name:
        return f"it holds {name}, which is neither tensor nor plain value and could run code when opened"
    with contextlib.suppress(OSError, ValueError), path.open("rb") as file:
        head = file.read(40).decode()
        if re.fullmatch(r"[^\x00-\x08\x0e-\x1f]{4,}", head):
            return f"it is a text, which begins {head.splitlines()[0]!r}"
    if protocol not in (2, 3):
        return f"it is pickled by protocol {protocol}, not by torch.save's own, 2, which alone is opened safely"
    if isinstance(error, pickle.UnpicklingError):
        return "it is damaged, or holds more than tensors and plain values, which could run code when opened"
    reason = text.splitlines()[0] if isinstance(error, RuntimeError | EOFError | OSError) and text else ""
    return f"it is damaged or not a PyTorch file{reason and f': {reason}'}"


def _look_into_pickle(path: Path) -> tuple[str, int]:
    """Return the first type or function of a pickle that is not allowed, and its protocol; nothing is run."""
    protocol = 2
    with contextlib.suppress(Exception), contextlib.ExitStack() as stack:  # any bytes may lie there
        file: IO[bytes] = stack.enter_context(path.open("rb"))
        if zipfile.is_zipfile(file):
            archive = stack.enter_context(zipfile.ZipFile(file))
            name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
            file = stack.enter_context(archive.open(name))
        file.seek(0)
        texts: list[str] = []
        for code, argument, _ in pickletools.genops(file):
            if isinstance(argument, str):
                texts.append(argument)
            elif code.name == "PROTO" and isinstance(argument, int):
                protocol = argument
            if code.name in ("GLOBAL", "INST", "STACK_GLOBAL"):
                found = ".".join(texts[-2:]) if code.name == "STACK_GLOBAL" else texts[-1].replace(" ", ".")
                if not found.startswith(_PLAIN) and not found.endswith("Storage"):
                    return found, protocol
    return "", protocol


def is_checkpoint(path: str | Path) -> bool:
    """Tell whether a file ends as detrkit's checkpoints do; reads the last 92 bytes only."""
    try:
        with Path(path).open("rb") as file:
            return _read_seal(file) is not None
    except OSError:
        return False


def _is_foreign(path: Path) -> bool:
    """Tell whether a file is another program's: no checkpoint, cut off or damaged, begins and ends so."""
    try:
        with path.open("rb") as file:
            if _read_seal(file) is not None:
                return False
            file.seek(-min(file.tell(), _ZIP_END_LENGTH), os.SEEK_END)
            is_whole_zip = file.read(4) == b"PK\x05\x06"
            file.seek(0)
            head = file.read(4)
    except OSError:
        return path.is_dir()
    return is_whole_zip if head == b"PK\x03\x04" else bool(head.strip(b"\0"))


def read_model(path: str | Path) -> SavedModel:
    """Read the model of a run folder or a checkpoint file.

    Args:
        path: A run folder (its best checkpoint, or its last if there is no sound best) or a checkpoint.

    Raises:
        CheckpointError: There is no checkpoint, it is damaged, or it holds no model.
    """
    path = Path(path)
    payload = CheckpointStore(path).load_model() if path.is_dir() else load_checkpoint(path)
    missing = [key for key in ("config", "class_map", "model") if key not in payload]
    if missing:
        raise CheckpointError(f"{path} holds no model: {', '.join(missing)} missing")
    try:
        config = update_config(Config(), payload["config"])
        class_map = ClassMap.from_dict(payload["class_map"])
    except (ConfigError, DataError) as error:
        raise CheckpointError(f"{path}: its config or classes cannot be used: {error}") from error
    averages = payload["ema"]["weights"] if payload.get("ema") else {}
    return SavedModel(config, class_map, without_aids({**payload["model"], **averages}))


class CheckpointStore:
    """The checkpoints of a run folder: ``last.pt``, the one before as ``previous.pt``, and ``best.pt``.

    Args:
        run_dir: The run folder; checkpoints lie in its ``checkpoints/``.
    """

    def __init__(self, run_dir: str | Path):
        self.folder = Path(run_dir) / "checkpoints"
        self.last_path = self.folder / "last.pt"
        self.previous_path = self.folder / "previous.pt"
        self.best_path = self.folder / "best.pt"
        self._fresh_path = self.folder / "next.pt"  # there only if a crash came between the two renames
        self._last_is_sound = False

    def save_last(self, payload: Mapping[str, Any]) -> None:
        """Save the state to resume from; the former one becomes ``previous.pt``, unless it is damaged.

        Raises:
            CheckpointError: The disk is full or cannot be written; both earlier generations are untouched.
        """
        save_checkpoint(self._fresh_path, payload)
        with _disk_errors(self.last_path):
            self._put_in_place()

    def _put_in_place(self) -> None:
        """Make the fresh checkpoint the last, the last the previous."""
        if self._last_is_sound or _is_sound(self.last_path):
            self.last_path.replace(self.previous_path)
        self._fresh_path.replace(self.last_path)
        sync_folder(self.folder)
        self._last_is_sound = True

    def save_best(self, payload: Mapping[str, Any]) -> None:
        """Save the model that evaluated best, without what only training needs.

        Raises:
            CheckpointError: The disk is full or cannot be written; the former best is untouched.
        """
        kept = {key: payload[key] for key in payload if key not in _ONLY_TRAINING}
        kept["model"] = without_aids(payload["model"])
        if payload.get("ema"):
            kept["ema"] = {**payload["ema"], "weights": without_aids(payload["ema"]["weights"])}
        save_checkpoint(self.best_path, kept)

    def tidy_up(self) -> None:
        """End what a killed training had begun: give a whole checkpoint its name, delete what is half written.

        Raises:
            CheckpointError: The folder cannot be written.
        """
        with _disk_errors(self.last_path):
            remove_leftovers(self.folder)
            remove_leftovers(self.folder.parent)
            if _is_sound(self._fresh_path):
                self._put_in_place()

    def has_any(self) -> bool:
        """Tell whether there is a state to resume from, be it damaged."""
        return any(path.exists() for path in (self._fresh_path, self.last_path, self.previous_path))

    def foreign(self) -> list[Path]:
        """Return the files of other programs that lie where checkpoints are written."""
        paths = (self._fresh_path, self.last_path, self.previous_path, self.best_path)
        return [path for path in paths if _is_foreign(path)]

    def load_latest(self) -> dict[str, Any]:
        """Return the newest state that is whole; warn when that is not the newest written.

        Raises:
            CheckpointError: There is none.
        """
        return self._load_first((self._fresh_path, self.last_path, self.previous_path))

    def load_model(self) -> dict[str, Any]:
        """Return the best checkpoint, or the latest state if there is no sound best.

        Raises:
            CheckpointError: There is none.
        """
        return self._load_first((self.best_path, self._fresh_path, self.last_path, self.previous_path))

    def _load_first(self, paths: tuple[Path, ...]) -> dict[str, Any]:
        problems: list[str] = []
        for path in (path for path in paths if path.exists()):
            try:
                payload = load_checkpoint(path)
            except CheckpointError as error:
                problems.append(str(error))
                continue
            if problems:
                warnings.warn(f"{'; '.join(problems)}; using {path.name} instead", stacklevel=3)
            return payload
        reason = "; ".join(problems) or "it is empty; is this a run folder that was trained?"
        if problems and self.best_path not in paths and _is_sound(self.best_path):
            reason += f"; its {self.best_path.name} is whole: begin a new run with --init {self.best_path}"
        raise CheckpointError(f"no usable checkpoint in {self.folder}: {reason}")


class _HashingWriter:
    """A file for ``torch.save`` that hashes what passes and keeps the first error.

    The error is kept, not raised: torch's zip writer goes on to write its directory while it unwinds, and
    would end the process or hide the cause.
    """

    def __init__(self, file: IO[bytes]):
        self.file = file
        self.digest = hashlib.sha256()
        self.error: OSError | KeyboardInterrupt | None = None

    def write(self, data: bytes) -> int:
        size = memoryview(data).nbytes
        if self.error is None:
            try:
                self.file.write(data)
                self.digest.update(data)
            except (OSError, KeyboardInterrupt) as error:
                self.error = error
        return size

    def flush(self) -> None:
        """Do nothing: flushed once, at the end."""


def _seal(digest: str) -> bytes:
    return _SEAL_START + digest.encode("ascii") + b"\n"


def _read_seal(file: IO[bytes]) -> bytes | None:
    """Return the seal at the end of an open file, if there is one."""
    if file.seek(0, os.SEEK_END) < _SEAL_LENGTH:
        return None
    file.seek(-_SEAL_LENGTH, os.SEEK_END)
    seal = file.read(_SEAL_LENGTH)
    return seal if seal.startswith(_SEAL_START) and seal.endswith(b"\n") else None


def _check_seal(path: Path) -> None:
    """Raise CheckpointError unless the file's content has the hash that its seal tells."""
    with path.open("rb") as file:
        seal = _read_seal(file)
        if seal is None:
            raise CheckpointError(f"{path} is cut off or not a detrkit checkpoint: the hash at its end is missing")
        left = file.tell() - _SEAL_LENGTH
        file.seek(0)
        digest = hashlib.sha256()
        while left:
            chunk = file.read(min(left, 1 << 22))
            digest.update(chunk)
            left -= len(chunk)
    if seal != _seal(digest.hexdigest()):
        raise CheckpointError(f"{path} is damaged: its content does not have the SHA-256 recorded at its end")


def _is_sound(path: Path) -> bool:
    try:
        _check_seal(path)
    except (OSError, CheckpointError):
        return False
    return True


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Tell an error of the disk inside as one of writing a checkpoint."""
    try:
        yield
    except OSError as error:
        problem, advice = f"cannot write checkpoint {path}: {error.strerror or error}", ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            problem, advice = f"no space left for checkpoint {path}", "; free space and resume"
        raise CheckpointError(f"{problem}; earlier checkpoints are untouched{advice}") from error


def without_aids(state: Mapping[str, _Value]) -> dict[str, _Value]:
    """Return the weights of the model that detects."""
    return {name: value for name, value in state.items() if not name.startswith(AIDS)}
