"""Run folders without a training."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml


def make_records(
    steps: int, per_epoch: int = 10, timed: bool = True, evaluated: bool = True
) -> Iterator[dict[str, Any]]:
    for step in range(1, steps + 1):
        loss = 5 * math.exp(-step / 50) + 1
        values = {"loss": loss, "loss_class": loss / 3, "lr": 1e-4, "lr_backbone": 1e-5, "grad_norm": 2.0}
        times = {"elapsed_s": 60.0 * step} if timed else {}
        layers = {"class": [loss, None, loss / 2]}
        epoch = (step - 1) // per_epoch + 1
        yield {"kind": "step", "step": step, "epoch": epoch, **times, **values, "layers": layers}
        if step % per_epoch == 0:
            yield {"kind": "epoch", "step": step, "epoch": epoch, "seconds": 600.0}
            if evaluated:
                metrics = {"AP": 0.05 * epoch, "AP50": 0.08 * epoch, "APl": -1.0, "AR1": None}
                yield {"kind": "eval", "step": step, "epoch": epoch, **metrics}


def make_run(folder: Path, steps: int = 40, config: dict[str, Any] | None = None, **options: Any) -> Path:
    folder.mkdir(parents=True)
    if config is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    lines = [json.dumps(record) for record in make_records(steps, **options)]
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return folder
