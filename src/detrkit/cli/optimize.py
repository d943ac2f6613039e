"""``detrkit optimize``: the frontier of accuracy against latency."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from detrkit.cli import shared
from detrkit.cli.shared import arg, opt


def optimize(
    model: Annotated[str, arg("MODEL", "Run folder, checkpoint or other weights of a trained model.")],
    data: shared.DataOption = None,
    image_folder: shared.ImageFolderOption = None,
    split: shared.SplitOption = None,
    target: Annotated[str | None, opt("DEVICE", "Where it shall run: cpu, this machine's.")] = None,
    out: Annotated[
        Path | None, opt("DIR", "Folder of results, optimize if not given; give it again to go on.")
    ] = None,
    pick: Annotated[
        str | None, opt("NAME", "Write a point of the table as a bundle: its name, or knee for the recommended.")
    ] = None,
    gate: Annotated[
        float | None, opt("POINTS", "AP that may be lost, at the worse end of the interval; 0.5 if not given.")
    ] = None,
    preset: shared.AsOption = None,
    as_json: shared.JsonOption = False,
) -> None:
    """Find the fastest variant of a trained model that is as good: layers, queries, size, runtime, precision."""
    with shared.errors():
        from detrkit.api.optimize import BUNDLE, JOURNAL, RESULTS
        from detrkit.api.optimize import optimize as search

        options = shared.given(
            image_folder=image_folder, split=split, target=target, out=out, pick=pick, gate=gate, preset=preset
        )
        with shared.step_bar(hidden=as_json) as progress:
            say = shared.quiet if as_json else shared.say
            found = search(model, data, say=say, progress=progress, **options)
        if as_json:
            shared.print_json(found.to_dict())
            return
        found.table().show()
        for line in (*found.refused, *found.verdict(), *found.throughput_lines()):
            shared.say(line)
        folder = out or Path("optimize")
        shared.say(f"Written to {folder}: {', '.join((*RESULTS, JOURNAL))}")
        if found.picked:
            shared.say(f"Bundle: {found.picked}; check it anywhere with: detrkit verify {folder / BUNDLE}")
