"""The machine that a program runs on, and what a process may use of it, container or not; free of torch."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import re
import sys
from pathlib import Path

import msgspec

_CPU_INFO = Path("/proc/cpuinfo")
_STATUS = Path("/proc/self/status")
_GROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")
_INSTRUCTIONS = (
    *("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "amx_fp16"),
    *("asimd", "sve", "i8mm", "bf16"),
)


class Machine(msgspec.Struct, frozen=True):
    """A machine, as far as results and times depend on it.

    Args:
        system: Operating system and kind of processor.
        processor: Name of the processor.
        cores: Logical processors of the machine, whoever may use them.
        instructions: Of those that matrix products profit by, the ones that it has; empty where nothing tells.
    """

    system: str = ""
    processor: str = ""
    cores: int = 0
    instructions: tuple[str, ...] = ()

    def __str__(self) -> str:
        known = f" ({', '.join(self.instructions)})" if self.instructions else ""
        return f"{self.processor or 'unknown processor'}, {self.cores} cores{known}, {self.system}"


def this_machine() -> Machine:
    """Describe the machine that this runs on."""
    text = _CPU_INFO.read_text(encoding="utf-8", errors="replace") if _CPU_INFO.is_file() else ""
    named, flags = (
        re.search(rf"^(?:{name})\s*:\s*(.+)$", text, re.MULTILINE) for name in ("model name", "flags|Features")
    )
    known = set(flags[1].split()) if flags else set()
    return Machine(
        f"{platform.system()} {platform.machine()}",
        named[1].strip() if named else platform.processor() or platform.machine(),
        os.cpu_count() or 1,
        tuple(name for name in _INSTRUCTIONS if name in known),
    )


def peak_resident_bytes() -> int:
    """Return the most resident memory of this process, in bytes; 0 where the system does not tell.

    Linux notes it by page, and a reset of ``/proc/self/clear_refs`` counts; elsewhere its whole life does.
    """
    if _STATUS.exists():
        for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


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
