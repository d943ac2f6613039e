"""What the processor can do."""

from __future__ import annotations

from typing import Any

import torch


def has_fast_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 numbers itself; others emulate it, more slowly than float32."""
    capabilities: Any = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
