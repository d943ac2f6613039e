"""Page and picture of a study: Optuna's own plots, and a table of all trials."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from detrkit.tuning.results import StudyResult, trials_table
from detrkit.tuning.settings import Settings
from detrkit.tuning.study import current_trials, import_optuna, no_experimental_warnings
from detrkit.visual.drawing import save_png
from detrkit.visual.page import Block, Card, Cards, Gallery, Picture, Section, Text, write_page

if TYPE_CHECKING:
    import optuna

FEW_TRIALS = 12
"""Number of complete trials below which importances and slopes are mostly chance."""


def write_study_page(path: Path, study: optuna.Study, settings: Settings, result: StudyResult) -> Path:
    """Write the page, and a picture of the search beside it."""
    plots = _draw_plots(study, result) if result.ranked else {}
    sections = [Section("Result", _summary(result))]
    if plots:
        save_png(path.with_suffix(".png"), next(iter(plots.values())))
        blocks: list[Block] = [Gallery([Picture.of(plots[title], title, 1600) for title in plots], wide=True)]
        if len(result.ranked) < FEW_TRIALS:
            few = f"Only {len(result.ranked)} complete trials: what mattered is mostly chance."
            blocks.insert(0, Text(few, "warning"))
        sections.append(Section("Search", blocks))
    sections.append(Section("All trials", [trials_table(result.trials)]))
    config = settings.config
    subtitle = f"{config.model.preset} on {config.data.root or config.data.train_annotations}"
    return write_page(path, "Search for settings", subtitle, sections)


def _summary(result: StudyResult) -> list[Block]:
    best, states = result.best, [trial.state for trial in result.trials]
    finished = sum(states.count(state) for state in ("complete", "pruned", "fail"))
    hours = sum(trial.seconds for trial in result.trials) / 3600
    note = f"{states.count('pruned')} pruned, {states.count('fail')} failed"
    progress = [Card("Trials", f"{finished} of {result.total}", note), Card("Training time", f"{hours:.2f} h")]
    if best is None:
        return [Cards(progress), Text("No trial is complete yet.", "warning")]
    cards = [Card("Best AP", f"{best.best_ap:.3f}", f"trial {best.number}")]
    own = next((trial.best_ap for trial in result.ranked if trial.number == 0), None)
    if own is not None:
        gain = f"the best has {(best.best_ap or 0.0) - own:+.3f}"
        cards.append(Card("Config's own values", f"{own:.3f}", gain))
    caution = (
        "The best of many noisy trials looks better than it is. Train it and the config's own values again with "
        "other seeds (train.seed) before you believe a small gain."
    )
    return [Cards([*cards, *progress]), Text(caution)]


def _draw_plots(study: optuna.Study, result: StudyResult) -> dict[str, np.ndarray]:
    """Draw Optuna's plots: uint8 ``[H, W, 3]`` by title."""
    from optuna.visualization import matplotlib as plots

    with _quiet_pyplot(), no_experimental_warnings():
        # under the numbers that people know
        shown = import_optuna().create_study(direction="maximize")
        shown.add_trials(current_trials(study))
        drawn: dict[str, Any] = {
            "AP of each trial": plots.plot_optimization_history(shown, target_name="AP"),
            "AP by epoch": plots.plot_intermediate_values(shown),
        }
        values = {trial.best_ap for trial in result.ranked}
        if len(result.ranked) > 3 and len(values) > 1:
            drawn["What mattered (PED-ANOVA)"] = plots.plot_param_importances(shown, target_name="AP")
        drawn["Each parameter"] = plots.plot_slice(shown, target_name="AP")
        return {title: _pixels(axes) for title, axes in drawn.items()}


@contextlib.contextmanager
def _quiet_pyplot() -> Iterator[None]:
    """Draw with pyplot, as Optuna does, without a window and without changing its settings."""
    import matplotlib.pyplot as plt

    former = set(plt.get_fignums())
    with plt.ioff(), plt.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a parameter that had one value only
        try:
            yield
        finally:
            for number in set(plt.get_fignums()) - former:
                plt.close(number)


def _pixels(axes: Any) -> np.ndarray:
    content = io.BytesIO()
    np.ravel(axes)[0].figure.savefig(content, format="png", bbox_inches="tight", dpi=110)
    with Image.open(content) as picture:
        return np.array(picture.convert("RGB"))
