"""Names of a real-time DETR's tensors: detrkit's, the authors' and the hub's.

All three hold the same tensors, but for attention projections, which the hub cuts in three, and for buffers that
follow from the model's sizes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from torch import Tensor

from detrkit.families.detr.layouts import State, join_attention, split_attention
from detrkit.files import read_facts

_FACTS = read_facts(__file__)
RESNET: Sequence[Sequence[str]] = _FACTS["resnet"]
SHARED: Sequence[Sequence[str]] = _FACTS["shared"]
_COLUMNS = ("own", "native", "hub")

LayoutName = Literal["own", "native", "hub"]


class Layouts:
    """Translation between the layouts of a family.

    Args:
        rows: Beginnings of names in the three layouts, those that are tried first at first.
        memory: Patterns of names that transformers has in memory, and what its files have there.
        inside: Parts of the backbone's names in the three layouts, behind what the rows rename.
    """

    def __init__(
        self,
        rows: Iterable[Sequence[str]],
        memory: Iterable[Sequence[str]] = (),
        inside: Iterable[Sequence[str]] = (),
    ):
        self._inside = list(inside)
        self._rows = [row for pattern in rows for row in _stages(pattern)]
        self._memory = [(re.compile(pattern), new) for pattern, new in (*_FACTS["memory"], *memory)]

    def to_own(self, state: Mapping[str, Tensor]) -> State:
        """Return tensors of the authors' or the hub's layout under detrkit's names; unknown names stay."""
        hub = is_hub(state)
        kept: State = {}
        for name, tensor in state.items():
            for pattern, new in self._memory if hub else ():
                name = pattern.sub(new, name)
            if not any(re.search(pattern, name) for pattern in _FACTS["drop"]):
                kept[name] = tensor
        if hub:
            kept = join_attention(kept)
        return {self.rename(name, "hub" if hub else "native", "own"): tensor for name, tensor in kept.items()}

    def from_own(self, state: Mapping[str, Tensor], layout: LayoutName) -> State:
        """Return detrkit's tensors in another layout, without the buffers that it has besides."""
        found = {self.rename(name, "own", layout): tensor for name, tensor in state.items()}
        return split_attention(found) if layout == "hub" else found

    def rename(self, name: str, source: LayoutName, target: LayoutName) -> str:
        """Return a name of one layout in another."""
        before, after = _COLUMNS.index(source), _COLUMNS.index(target)
        for row in self._rows:
            match = re.match(re.escape(row[before]).replace(r"\#", r"(\d+)"), name)
            if match:
                parts = zip(("", *match.groups()), row[after].split("#"), strict=True)
                rest = name[match.end() :]
                for part in self._inside if "backbone." in row[before] else ():
                    rest = rest.replace(part[before], part[after])
                return "".join(number + part for number, part in parts) + rest
        return name


def is_hub(state: Mapping[str, Tensor]) -> bool:
    """Return whether names are those of transformers."""
    return "model.enc_score_head.weight" in state


def _stages(row: Sequence[str]) -> list[list[str]]:
    if not any("@" in part for part in row):
        return [list(row)]
    return [[part.replace("@0", str(n)).replace("@1", str(n + 1)) for part in row] for n in range(4)]


RTDETR_LAYOUTS = Layouts((*RESNET, *SHARED))
