"""Processors that this process may use: those it is bound to, and the share that a container leaves it."""

from __future__ import annotations

import math
import os
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")


def usable_cpus(groups: Path = _GROUPS) -> int:
    """Return the number of processors that threads are worth making for, at least 1.

    A container with a quota of two processors on a machine of 64 shows all 64; as many threads as these would stop
    each other. Hyper-threads count, as for everything that the system says of processors.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(bound, _quota(groups)))


def _quota(groups: Path) -> int:
    """Return the processors of a control group of either version, rounded up; very many where none is set."""
    found = []
    try:
        quota, period = (groups / "cpu.max").read_text(encoding="ascii").split()[:2]
        if quota != "max":
            found.append(int(quota) / int(period))
    except (OSError, ValueError):  # no such group, or not ours to read
        pass
    try:
        quota, period = (
            (groups / "cpu" / f"cpu.cfs_{name}_us").read_text(encoding="ascii") for name in ("quota", "period")
        )
        if int(quota) > 0:
            found.append(int(quota) / int(period))
    except (OSError, ValueError):
        pass
    return min((math.ceil(share) for share in found if share > 0), default=1 << 20)
