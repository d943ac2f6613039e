"""``detrkit resume``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from detrkit.cli.shared import SetOption, errors, opt, parse_assignments, report_run, say


def resume(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of the run to go on with.")],
    epochs: Annotated[int | None, opt("N", "A new total, to train longer than planned.", min=1)] = None,
    assignments: SetOption = None,
) -> None:
    """Go on with a training that was stopped, from its last checkpoint and with its config."""
    with errors():
        from detrkit.api.resume import resume as go_on
        from detrkit.cli.shared import run_drawings

        changes = parse_assignments(assignments or [])
        report_run(go_on(run, epochs=epochs, changes=changes, drawings=run_drawings(), say=say))
