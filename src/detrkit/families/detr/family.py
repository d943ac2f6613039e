"""The family of classic DETR."""

from __future__ import annotations

from detrkit.families.detr.model import add_aids, build_detr
from detrkit.families.detr.weights import read_weights, write_hub, write_published
from detrkit.families.family import Family, WeightsLayouts

DETR = Family(
    name="detr",
    build=build_detr,
    add_aids=add_aids,
    layouts=WeightsLayouts(read_weights, write_published, write_hub),
)
