"""The family of classic DETR."""

from __future__ import annotations

from detrkit.families.detr.model import add_aids, build_detr
from detrkit.families.detr.weights import read_weights
from detrkit.families.family import Family

DETR = Family(name="detr", build=build_detr, add_aids=add_aids, read_published=read_weights)
