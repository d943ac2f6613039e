"""The whole road on a built-in data set: data, training, evaluation, drawn predictions, curves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from detrkit.cli.shared import end_of_training, errors, opt, say
from detrkit.errors import UsageError

if TYPE_CHECKING:
    from detrkit.training.loop import FitResult
    from detrkit.training.run import Say

PRESET = "detr-tiny-two-stage"
TRAIN_IMAGES = 3000
VAL_IMAGES = 300
DRAWN = 12


def demo(
    out: Annotated[Path, opt("DIR", "Folder for everything the demo makes.")] = Path("demo"),
    images: Annotated[int | None, opt("N", "Training images to make.", min=8)] = None,
    epochs: Annotated[int | None, opt("N", "Passes over them.", min=1)] = None,
    model: Annotated[str, opt("PRESET", "Model to train, such as detr-tiny, the classic one.")] = PRESET,
    seed: Annotated[int, opt("N", "Of the data and the training.", min=0)] = 0,
) -> None:
    """The whole road on a built-in data set, in minutes, on a CPU: data, training, evaluation, pictures."""
    with errors():
        result = run_demo(out, images=images, epochs=epochs, model=model, seed=seed, say=say)
        end_of_training(result)


def run_demo(
    out: Path,
    *,
    images: int | None = None,
    epochs: int | None = None,
    model: str = PRESET,
    seed: int = 0,
    say: Say = print,
) -> FitResult:
    """Make a data set of drawn shapes, train a small DETR on it, evaluate it on held-out images, draw.

    For a model with masks the shapes lie on stuff and have masks, and the panoptic files are what is learnt.

    Args:
        out: Folder for ``data/``, ``run/``, ``eval/`` and ``predictions/``.
        images: Training images to make.
        epochs: Passes over them; the preset's if not given.
        model: Preset to train, one for images of 128 pixels.
        seed: Of the data and the training.
        say: Where messages for people go.

    Raises:
        UsageError: The folder holds something already.
    """
    import torch

    import detrkit
    from detrkit.cli.shared import run_drawings
    from detrkit.curation.synthetic import write_synthetic
    from detrkit.evaluation.report import metrics_table
    from detrkit.families.recipes import preset_config
    from detrkit.hardware import has_fast_bf16

    out = Path(out)
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"{out} is not empty; remove it, or give another folder with --out")
    train_images = images or TRAIN_IMAGES
    say(f"1/4  drawing {train_images} images to train on and {VAL_IMAGES} to test on, into {out / 'data'}")
    masks = getattr(preset_config(model).model, "masks", False)
    write_synthetic(out / "data", train_images=train_images, val_images=VAL_IMAGES, seed=seed, masks=masks)
    say(f"2/4  training {model} from random weights")
    changes: dict[str, Any] = {"train.seed": seed}
    if not torch.cuda.is_available() and has_fast_bf16():
        changes["train.precision"] = "bf16"
    result = detrkit.train(
        model, out / "data", run=out / "run", epochs=epochs, changes=changes, drawings=run_drawings(), say=say
    )
    if result.stopped == "interrupted":
        return result
    say("3/4  evaluating on the held-out images")
    detector = detrkit.load(result)
    evaluation = detrkit.evaluate(detector, out / "data", out=out / "eval", batch_size=16)
    metrics_table(evaluation.metrics, evaluation.intervals).show()
    say("4/4  drawing predictions")
    files = sorted((out / "data" / "val2017").iterdir())[:DRAWN]
    detrkit.predict(detector, [str(file) for file in files], out=out / "predictions")
    numbers = f"AP {evaluation['AP']:.3f}"
    if evaluation.masks is not None:
        numbers += f", mask AP {evaluation.masks['AP']:.3f}"
    if evaluation.panoptic is not None:
        numbers += f", PQ {evaluation.panoptic.metrics.values['PQ']:.3f}"
    say(
        f"{numbers} on held-out images. Pictures: {out / 'predictions'}, "
        f"curves: {out / 'run' / 'curves.png'}, how good and why: {out / 'eval' / 'report.html'}"
    )
    return result
