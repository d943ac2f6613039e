"""Processors and memory that this process may use: what it is bound to, and what a container leaves it."""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def usable_cpus(groups: Path = _GROUPS, own: Path = _OWN) -> int:
    """Return the number of processors that threads are worth making for, at least 1.

    A container with a quota of two processors on a machine of 64 shows all 64; as many threads as these would stop
    each other. Hyper-threads count, as for everything that the system says of processors.

    Args:
        groups: Where control groups lie.
        own: Names of those that this process is in; those around them count too, such as a service's slice.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(bound, _quota(groups, own)))


def memory_limit(groups: Path = _GROUPS, own: Path = _OWN) -> int | None:
    """Return the bytes that control groups leave this process; None where none limits them."""
    found = []
    for folder in _folders("memory", groups, own):
        for name in ("memory.max", "memory.limit_in_bytes"):
            with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
                found.append(int((folder / name).read_text(encoding="ascii")))
    least = min(found, default=1 << 60)
    return least if least < 1 << 60 else None  # without a limit, the first version says nearly 2**63


def _quota(groups: Path, own: Path) -> int:
    """Return the processors of control groups of either version, rounded up; very many where none is set."""
    found = []
    for folder in _folders("cpu", groups, own):
        with contextlib.suppress(OSError, ValueError):  # no such group, not ours to read, or "max"
            quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()[:2]
            found.append(int(quota) / int(period))
        with contextlib.suppress(OSError, ValueError):
            times = (folder / f"cpu.cfs_{name}_us" for name in ("quota", "period"))
            share, whole = (int(path.read_text(encoding="ascii")) for path in times)
            found.append(share / whole)
    return min((math.ceil(share) for share in found if share > 0), default=1 << 20)


def _folders(controller: str, groups: Path, own: Path) -> list[Path]:
    """Return the control groups that this process is in, and those around them, of both versions."""
    found = [groups, groups / controller]
    with contextlib.suppress(OSError, ValueError):
        for line in own.read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            base = groups if not controllers else groups / controller
            if not controllers or controller in controllers.split(","):
                place = base / path.strip("/")
                found += [each for each in (place, *place.parents) if each.is_relative_to(base)]
    return list(dict.fromkeys(found))
