"""``detrkit gate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from detrkit.cli import shared
from detrkit.cli.shared import arg, opt

DataSetsOption = Annotated[list[Path] | None, opt("DATA", "Data set to measure on; may repeat.", "--data")]
MinApOption = Annotated[
    float | None,
    opt("POINTS", "Least AP on every data set, 0 to 100; needed for a first release.", "--min-ap", min=0, max=100),
]
MaxLossOption = Annotated[
    float | None,
    opt(
        "POINTS",
        "AP that may be lost at the worse end of the interval; if not given, a loss beyond chance stops.",
        "--max-loss",
        min=0,
    ),
]
MaxSlowdownOption = Annotated[
    float,
    opt("PERCENT", "Time that an image may take longer; -1 leaves the speed unchecked.", "--max-slowdown", min=-1),
]
MarkdownOption = Annotated[
    Path | None, opt("FILE", "Write the gate's result as Markdown, for a pull request.", "--markdown")
]


def gate(
    new: Annotated[str, arg("NEW", "The new model: run, checkpoint, bundle, file, hub id.")],
    old: Annotated[str | None, arg("OLD", "The released model; none for a first release.")] = None,
    data: DataSetsOption = None,
    split: shared.SplitOption = None,
    out: Annotated[
        Path | None, opt("DIR", "Folder for the comparison on each data set, gate if not given.")
    ] = None,
    min_ap: MinApOption = None,
    max_loss: MaxLossOption = None,
    max_slowdown: MaxSlowdownOption = 10.0,
    latency: Annotated[int | None, opt("N", "Images to time on, 10 if not given.", min=1)] = None,
    resamples: Annotated[int | None, opt("N", "Of the images, for intervals; 1,000 if not given.", min=10)] = None,
    device: shared.DeviceOption = None,
    markdown: MarkdownOption = None,
    as_json: shared.JsonOption = False,
) -> None:
    """Stop a model that is worse than the released one beyond chance on any data set, or slower.

    Exit code 0 if it may be released, 1 if a check stops it, or something failed, 2 if asked wrongly.
    """
    with shared.errors():
        from detrkit.api.gate import gate as decide
        from detrkit.files import check_free, write_text

        if markdown is not None:
            check_free(markdown)
        options = shared.given(
            split=split,
            out=out,
            min_ap=min_ap,
            max_loss=max_loss,
            latency_images=latency,
            resamples=resamples,
            device=device,
        )
        with shared.step_bar(hidden=as_json) as progress:
            found = decide(
                new,
                old,
                data or (),
                max_slowdown=None if max_slowdown < 0 else max_slowdown,
                say=shared.quiet if as_json else shared.say,
                progress=progress,
                **options,
            )
        if markdown is not None:
            write_text(markdown, found.markdown())
        shared.report(found, as_json, passed=found.passed)
