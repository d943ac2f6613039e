"""``detrkit release``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from detrkit.cli import shared
from detrkit.cli.gate import DataSetsOption, MarkdownOption, MaxLossOption, MaxSlowdownOption, MinApOption
from detrkit.cli.shared import arg, opt
from detrkit.errors import UsageError


def release(
    to: Annotated[Path, opt("DIR", "Folder of releases.", "--to")],
    model: Annotated[str | None, arg("MODEL", "Run, checkpoint, or a bundle, published as it is.")] = None,
    data: DataSetsOption = None,
    version: Annotated[str, opt("NAME", "Name of the release; v1, v2 and so on if not given.")] = "",
    split: shared.SplitOption = None,
    min_ap: MinApOption = None,
    max_loss: MaxLossOption = None,
    max_slowdown: MaxSlowdownOption = 10.0,
    rollback: Annotated[bool, opt(None, "Put the release before into use again.", "--rollback")] = False,
    markdown: MarkdownOption = None,
    as_json: shared.JsonOption = False,
) -> None:
    """Export, verify, gate and publish a model with its model card; DIR/current is the release in use.

    Exit code 1 if the gate stops it: the release in use stays.
    """
    with shared.errors():
        from detrkit.api.release import release as publish
        from detrkit.api.release import rollback as go_back
        from detrkit.files import check_free, write_text

        if rollback:
            if model is not None:
                raise UsageError(f"--rollback needs no model, {model} is given; leave it out")
            before, now = go_back(to)
            if as_json:
                shared.print_json({"version": now, "before": before})
            else:
                shared.say(f"{to}: {now} is in use again, {before} no more")
            return
        if model is None:
            raise UsageError("there is no model to release; give a run folder, a checkpoint or a bundle")
        if markdown is not None:
            check_free(markdown)
        with shared.step_bar(hidden=as_json) as progress:
            found = publish(
                model,
                to,
                data or (),
                version=version,
                max_slowdown=None if max_slowdown < 0 else max_slowdown,
                say=shared.quiet if as_json else shared.say,
                progress=progress,
                **shared.given(split=split, min_ap=min_ap, max_loss=max_loss),
            )
        if markdown is not None:
            write_text(markdown, found.gate.markdown())
        shared.report(found, as_json, passed=found.passed)
