"""``detrkit.replay``: repeat a training step that was not finite."""

from __future__ import annotations

from detrkit.api.common import Source
from detrkit.families.build import build_model
from detrkit.training.nonfinite.diagnosis import Diagnosis
from detrkit.training.nonfinite.replay import find_step, read_step, replay_step


def replay(source: Source) -> Diagnosis:
    """Repeat a training step whose loss or gradient was not finite, and find where it began; nothing is trained.

    Args:
        source: A file that training saved (``RUN/nonfinite/step-...pt``), or the run: the first step saved in it.

    Returns:
        Whether the step was repeated bit for bit, and the first module, loss term, weight or box at fault.

    Raises:
        UsageError: There is no such file.
        CheckpointError: It is damaged, or no saved step.
    """
    saved = read_step(find_step(source))
    built = build_model(saved.config, saved.class_map)
    return replay_step(saved, built.model, built.family.build_criterion(saved.config, saved.class_map))
