"""The family of RT-DETRv2."""

from __future__ import annotations

from functools import partial

from detrkit.families.family import Family, build_criterion
from detrkit.families.postprocess import postprocess
from detrkit.families.rtdetr.model import SCORING, build_rtdetr, rank_pairs
from detrkit.families.rtdetr.weights import RTDETR_WEIGHTS
from detrkit.families.two_stage.model import add_aids

RTDETR = Family(
    name="rtdetr",
    build=build_rtdetr,
    add_aids=add_aids,
    read_published=RTDETR_WEIGHTS.read,
    recognize=RTDETR_WEIGHTS.recognize,
    scoring=SCORING,
    build_criterion=partial(build_criterion, scoring=SCORING),
    postprocess=partial(postprocess, scoring=SCORING, rank=rank_pairs),
    rank=rank_pairs,  # type: ignore[arg-type]
    learned_queries=False,
)
