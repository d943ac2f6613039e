"""The machine that a program runs on: its processor, and the most memory that a process took; free of torch."""

from __future__ import annotations

import os
import platform
import re
import sys
from pathlib import Path

import msgspec

_CPU_INFO = Path("/proc/cpuinfo")
_STATUS = Path("/proc/self/status")
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
