"""Studies whose trainings are played: they report APs and end as a test wants."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from detrkit.config import Config, update_config, write_config
from detrkit.curation.synthetic import write_synthetic
from detrkit.families.recipes import preset_config
from detrkit.training.loop import FitResult

OnEvaluation = Callable[[int, Mapping[str, float]], bool]


class Played:
    """A training that reports ``ap(config, epoch)`` after each epoch; ``before`` may raise or look."""

    def __init__(self, ap: Callable[[Config, int], float], before: Callable[[int, int], None] | None = None):
        self.ap = ap
        self.before = before
        self.configs: list[tuple[int, Config]] = []

    def __call__(self, config: Config, run_dir: Path, on_evaluation: OnEvaluation) -> FitResult:
        number = int(run_dir.name)
        self.configs.append((number, config))
        (run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
        write_config(config, run_dir / "config.yaml")
        for name in ("last", "previous", "best"):
            (run_dir / "checkpoints" / f"{name}.pt").touch()
        best = None
        for epoch in range(1, config.train.epochs + 1):
            if self.before is not None:
                self.before(number, epoch)
            ap = self.ap(config, epoch)
            best = ap if best is None else max(best, ap)
            if on_evaluation(epoch, {"AP": ap}):
                return FitResult(run_dir, epoch, epoch, best, {"AP": ap}, "pruned")
        return FitResult(run_dir, epoch, epoch, best, {"AP": ap}, "finished")

    @property
    def numbers(self) -> list[int]:
        """Of the trials trained, in order."""
        return [number for number, _ in self.configs]


@pytest.fixture(scope="session")
def few_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("few"), train_images=4, val_images=2, size=32)


@pytest.fixture
def config(few_images: Path) -> Config:
    train = {"epochs": 3, "eval_every": 1, "ema_decay": None}
    return update_config(preset_config("detr-tiny"), {"data.root": str(few_images), "train": train})
