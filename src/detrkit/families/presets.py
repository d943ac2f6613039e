"""Every preset by name. No torch in here."""

from __future__ import annotations

from detrkit.errors import UsageError, nearest
from detrkit.families.detr.presets import PRESETS as DETR_PRESETS
from detrkit.families.dfine.presets import PRESETS as DFINE_PRESETS
from detrkit.families.preset import Preset
from detrkit.families.rtdetr.presets import PRESETS as RTDETR_PRESETS
from detrkit.families.two_stage.presets import PRESETS as TWO_STAGE_PRESETS

PRESETS: dict[str, Preset] = {**DETR_PRESETS, **TWO_STAGE_PRESETS, **RTDETR_PRESETS, **DFINE_PRESETS}


def get_preset(name: str) -> Preset:
    """Return the preset of a name.

    Raises:
        UsageError: There is none; the nearest name is suggested.
    """
    if name not in PRESETS:
        hint = nearest(name, PRESETS, "see: detrkit models.")
        raise UsageError(f"no preset is called {name!r}; {hint} Known: {', '.join(PRESETS)}")
    return PRESETS[name]
