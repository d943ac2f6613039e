"""The family of D-FINE."""

from __future__ import annotations

import dataclasses
from functools import partial

from detrkit.families.dfine.model import build_dfine
from detrkit.families.dfine.weights import DFINE_WEIGHTS
from detrkit.families.family import build_criterion
from detrkit.families.rtdetr.family import RTDETR
from detrkit.families.rtdetr.model import SCORING
from detrkit.losses.distribution import DistributionCriterion

DFINE = dataclasses.replace(
    RTDETR,
    name="dfine",
    build=build_dfine,
    read_published=DFINE_WEIGHTS.read,
    recognize=DFINE_WEIGHTS.recognize,
    build_criterion=partial(build_criterion, scoring=SCORING, kind=DistributionCriterion),
)
