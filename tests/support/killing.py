"""Processes that are made to end at a chosen moment, and what a run has come to, bit by bit.

``python -m tests.support.killing`` imports detrkit once and forks a process for each order that it reads, so
that a kill costs no start of Python. An order may name a moment, at whose n-th coming the process signals
itself: by SIGKILL, which nothing can catch, or another. Nothing in detrkit knows of this.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import json
import os
import pkgutil
import re
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

Hit = Callable[[], None]

_REPOSITORY = Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Moment:
    """When a process signals itself.

    Args:
        name: One of MOMENTS.
        at: At which coming, from 1; 0 for never.
        signals: What it sends itself, one after the other.
        group: Send them to the loader's workers too.
    """

    name: str
    at: int
    signals: tuple[int, ...] = (signal.SIGKILL,)
    group: bool = False


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a process ended: exit code, or minus the signal; how long it took; all that it said."""

    code: int
    seconds: float
    said: str
    counts: Mapping[str, int]

    @property
    def was_killed(self) -> bool:
        """Whether it was SIGKILL."""
        return self.code == -signal.SIGKILL


class Victims:
    """Runs detrkit commands in forked processes; to be used in ``with``.

    Args:
        folder: For what the processes say.
        temporary: TMPDIR of the processes.
    """

    def __init__(self, folder: Path, temporary: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(temporary), "PYTHONWARNINGS": "default"}
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.support.killing"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            cwd=_REPOSITORY,
            env=environment,
        )

    def __enter__(self) -> Victims:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait(60)
        self._server.stdout.close()

    def run(
        self,
        arguments: Sequence[str],
        moment: Moment | None = None,
        *,
        kill_after_s: float | None = None,
        file_limit: int | None = None,
        without: str | None = None,
    ) -> Ended:
        """Run a command to its end.

        Args:
            arguments: Of detrkit.
            moment: When it signals itself.
            kill_after_s: Kill it from outside after so long.
            file_limit: Largest file that it may write, in bytes.
            without: What it finds missing in a checkpoint, as ``progress.step``; it gets a fresh one.
        """
        said, counts = self.folder / "said.txt", self.folder / "counts.json"
        said.write_text("")
        counts.unlink(missing_ok=True)
        order = {
            "arguments": list(arguments),
            "moment": dataclasses.asdict(moment) if moment is not None else None,
            "said": str(said),
            "counts": str(counts),
            "file_limit": file_limit,
            "without": without,
        }
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        began_s = time.monotonic()
        self._server.stdin.write(json.dumps(order) + "\n")
        pid = int(self._server.stdout.readline())
        if kill_after_s is not None and not select.select([self._server.stdout], [], [], kill_after_s)[0]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(int(self._server.stdout.readline()))
        found = json.loads(counts.read_text()) if counts.exists() else {}
        return Ended(code, time.monotonic() - began_s, said.read_text(errors="replace"), found)


class _Counter:
    """Counts how often a moment comes in this process, and acts at one of them."""

    def __init__(self, moment: Moment | None):
        self.moment = moment
        self.count = 0
        self._owner = os.getpid()

    def __call__(self) -> None:
        if os.getpid() != self._owner:  # a worker of the loader
            return
        self.count += 1
        if self.moment is None or self.count != self.moment.at:
            return
        for number in self.moment.signals:
            if self.moment.group:
                os.killpg(0, number)
            else:
                os.kill(self._owner, number)


def _around(owner: Any, name: str, hit: Hit, *, before: bool = False, after: bool = False) -> None:
    """Make a moment of a function's beginning, its end, or both."""
    plain = getattr(owner, name)

    @functools.wraps(plain)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if before:
            hit()
        result = plain(*args, **kwargs)
        if after:
            hit()
        return result

    setattr(owner, name, wrapped)


# Functions whose beginning or end is a moment, by its name: while it starts, around fsync and rename, inside an
# evaluation, between optimiser and averages, at the start of a loader, and while a resumed run cuts its log or
# reads its checkpoint.
_BEGINNINGS = {
    "start": (
        "detrkit.data.split:read_split_files",
        *(
            f"detrkit.training.run:{name}"
            for name in ("make_fabric", "prepare_model", "build_model", "write_config")
        ),
    ),
    "sync": ("os:fsync",),
    "rename": ("pathlib:Path.replace",),
    "cut": ("detrkit.training.telemetry.log:cut_lines", "detrkit.training.telemetry.log:TensorBoardLog"),
    "load": ("detrkit.training.loop:resume_state",),
}
_ENDS = {
    **{name: _BEGINNINGS[name] for name in ("start", "sync", "rename", "cut")},
    "evaluation": ("detrkit.evaluation.coco:BoxEvaluator.add",),
    "step": ("detrkit.training.step:apply_gradients",),
    "loader": ("torch.utils.data.dataloader:_BaseDataLoaderIter.__init__",),
    "load": ("detrkit.checkpoint:load_checkpoint", "detrkit.training.loop:resume_state"),
}


def _install(moment: str, hit: Hit) -> None:
    """Make a moment of the functions' beginnings and ends."""
    if moment in _INSIDE:
        return _INSIDE[moment](hit)
    beginnings, ends = _BEGINNINGS.get(moment, ()), _ENDS.get(moment, ())
    for place in dict.fromkeys((*beginnings, *ends)):
        owner, _, name = place.replace(":", ".").rpartition(".")
        _around(pkgutil.resolve_name(owner), name, hit, before=place in beginnings, after=place in ends)
    return None


def _in_write(hit: Hit) -> None:
    from detrkit import checkpoint

    plain = checkpoint._HashingWriter.write

    def write(self: Any, data: bytes) -> int:
        size = plain(self, data)
        self.file.flush()  # half a file is on the disk now
        hit()
        return size

    checkpoint._HashingWriter.write = write  # type: ignore[method-assign]


def _in_log(hit: Hit) -> None:
    from detrkit.training.telemetry.append import AppendFile

    plain = AppendFile._write_piece

    def write_piece(self: Any, file: int, piece: bytes) -> None:
        os.lseek(file, self._size, os.SEEK_SET)
        os.write(file, piece[: len(piece) // 2])  # half a line is in the file now
        hit()
        plain(self, file, piece)

    AppendFile._write_piece = write_piece  # type: ignore[method-assign]


# Inside the writing of a checkpoint, and inside a line of the log.
_INSIDE = {"write": _in_write, "log": _in_log}
MOMENTS = (*_ENDS, *_INSIDE)


def _forget(path: str) -> None:
    """Make a resumed run find a part of the checkpoint as it was at the beginning."""
    from detrkit.training import loop

    plain = loop.resume_state

    def resume_state(state: Any, resume: Mapping[str, Any], fabric: Any) -> Any:
        return plain(state, without(resume, state.state_dict(), path), fabric)

    loop.resume_state = resume_state


def without(saved: Mapping[str, Any], fresh: Mapping[str, Any], path: str) -> dict[str, Any]:
    """What was saved, with one part as in a fresh state; ``path`` as ``progress.step``."""
    changed = copy.deepcopy(dict(saved))
    *parents, last = path.split(".")
    place, source = changed, copy.deepcopy({**fresh, "log": {}})
    for name in parents:
        place, source = place[name], source[name]
    if last in source:
        place[last] = source[last]
    else:
        del place[last]
    return changed


def _serve() -> int:
    """Fork a process for each order on standard input; tell its number, then how it ended."""
    import matplotlib.pyplot  # noqa: F401  (imported once, for all)
    import torch._dynamo  # noqa: F401
    import torchvision  # noqa: F401
    from torch.utils.tensorboard import SummaryWriter  # noqa: F401

    from detrkit.api import train  # noqa: F401
    from detrkit.families import build  # noqa: F401

    while line := sys.stdin.readline():
        pid = os.fork()
        if pid == 0:
            return _become(json.loads(line))
        print(pid, flush=True)
        print(os.waitpid(pid, 0)[1], flush=True)
    return 0


def _become(order: Mapping[str, Any]) -> int:
    """Run one command; returns its exit code."""
    from detrkit.__main__ import main

    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell in the background takes away
    said = os.open(order["said"], os.O_WRONLY | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, nothing), (1, said), (2, said)):
        os.dup2(source, target)
    if order["file_limit"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["file_limit"], order["file_limit"]))
    moment = Moment(**order["moment"]) if order["moment"] else None
    counters = {name: _Counter(moment if moment and name == moment.name else None) for name in MOMENTS}
    for name, counter in counters.items():
        _install(name, counter)
    if order["without"]:
        _forget(order["without"])
    sys.argv = ["detrkit", *order["arguments"]]
    code: Any = 0
    try:
        main()
    except SystemExit as error:
        code = error.code
    Path(order["counts"]).write_text(json.dumps({name: counter.count for name, counter in counters.items()}))
    return int(code or 0)


# What depends on the clock or on the machine's load.
_TIMED = ("elapsed_s", "seconds", "images_per_s", "data_wait", "memory_gib", "host_gib")
_TIMED_TAGS = ("speed/", "memory/")
# What tells of the interruption itself, or of the configured number of workers.
_PASSING = ("resumed at step", "stopped by", "waiting for data")


def differences(reference: Path, run: Path) -> list[str]:
    """What a run folder has otherwise than that of the uninterrupted run; empty if all bits are equal."""
    found = []
    for name in ("last", "previous", "best"):
        path = f"checkpoints/{name}.pt"
        found += _unequal(_checkpoint(reference / path), _checkpoint(run / path), name)
    found += _unequal(_records(reference), _records(run), "metrics.jsonl")
    found += _unequal(_events(reference), _events(run), "TensorBoard")
    files = [{_file_name(path, folder) for path in folder.rglob("*")} for folder in (reference, run)]
    found += [f"file {name}" for name in sorted(files[0] ^ files[1])]
    return found


def _checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint without clocks, the position in the log (which has the lines of resuming) and the workers."""
    from detrkit.checkpoint import load_checkpoint

    payload = load_checkpoint(path)
    payload.pop("log", None)
    payload["config"]["data"].pop("workers")
    if "window" in payload:
        payload["window"] = {
            key: payload["window"][key] for key in payload["window"] if key not in ("seconds", "wait_s")
        }
    return payload


def _records(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(re.sub(r"[^ ]*/nonfinite", "nonfinite", line)) for line in lines]
    return [
        {key: value for key, value in record.items() if key not in _TIMED}
        for record in records
        if not record.get("message", "").startswith(_PASSING)
    ]


def read_tensorboard(run: Path) -> dict[str, list[tuple[int, Any]]]:
    """Return what TensorBoard shows of a run: step and value of every point by tag, in its order."""
    from tensorboard.backend.event_processing.event_accumulator import (
        STORE_EVERYTHING_SIZE_GUIDANCE,
        EventAccumulator,
    )

    board = EventAccumulator(str(run), STORE_EVERYTHING_SIZE_GUIDANCE)  # type: ignore[no-untyped-call]
    board.Reload()  # type: ignore[no-untyped-call]
    tags = board.Tags()  # type: ignore[no-untyped-call]
    found = {tag: [(point.step, point.value) for point in board.Scalars(tag)] for tag in tags["scalars"]}
    found |= {
        tag: [(image.step, image.encoded_image_string) for image in board.Images(tag)] for tag in tags["images"]
    }
    for tag in tags["tensors"]:
        found[tag] = [(event.step, event.tensor_proto.SerializeToString()) for event in board.Tensors(tag)]
    plugins = sorted(tag for tag in board.summary_metadata if tag.startswith("_hparams_"))
    return {**found, "hparams": [(0, tag) for tag in plugins]}


def _events(run: Path) -> dict[str, list[tuple[int, Any]]]:
    """What TensorBoard shows, without clocks and what tells of the number of workers."""
    return {
        tag: [
            (step, "timed") if tag.startswith((*_TIMED_TAGS, "config")) else (step, value)
            for step, value in points
        ]
        for tag, points in read_tensorboard(run).items()
    }


def _file_name(path: Path, folder: Path) -> str:
    name = str(path.relative_to(folder))  # a resumed run has an events file more
    return "events" if name.startswith("events.out.tfevents.") else name


def _unequal(one: Any, two: Any, where: str) -> list[str]:
    """Places where two values differ in a bit, tensors inside lists and dicts too."""
    import torch

    if type(one) is not type(two):
        return [f"{where}: {type(one).__name__} and {type(two).__name__}"]
    if isinstance(one, torch.Tensor):
        equal = (
            one.dtype == two.dtype and one.shape == two.shape and one.numpy().tobytes() == two.numpy().tobytes()
        )
        return [] if equal else [where]
    if isinstance(one, dict):
        other = [f"{where}.{key} missing or new" for key in sorted(map(str, one.keys() ^ two.keys()))]
        return other + [
            line for key in one.keys() & two.keys() for line in _unequal(one[key], two[key], f"{where}.{key}")
        ]
    if isinstance(one, list | tuple):
        if len(one) != len(two):
            return [f"{where}: {len(one)} and {len(two)} entries"]
        return [
            line for place in range(len(one)) for line in _unequal(one[place], two[place], f"{where}[{place}]")
        ]
    # NaN is equal to NaN here
    return [] if one == two or (one != one and two != two) else [f"{where}: {one} and {two}"]


if __name__ == "__main__":
    sys.exit(_serve())
