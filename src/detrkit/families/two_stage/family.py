"""The family of the two-stage DETR. Nobody publishes weights of it: they live in detrkit's own checkpoints."""

from __future__ import annotations

from detrkit.families.family import Family
from detrkit.families.two_stage.model import add_aids, build_two_stage

TWO_STAGE = Family(name="two_stage", build=build_two_stage, add_aids=add_aids, learned_queries=False)
