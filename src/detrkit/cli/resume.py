"""``detrkit resume``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from detrkit.cli.shared import LrOption, SetOption, arg, errors, given, opt, parse_assignments, report_run, say


def resume(
    run: Annotated[Path, arg("RUN", "Folder of the run to go on with.")],
    data: Annotated[Path | None, opt("DATA", "Where the data set lies now, if it has moved.")] = None,
    epochs: Annotated[int | None, opt("N", "A new total, to train longer than planned.", min=1)] = None,
    lr: LrOption = None,
    assignments: SetOption = None,
) -> None:
    """Go on with a training that was stopped, from its last checkpoint and with its config.

    What is given differently is changed from here on, or refused where a run that has begun cannot change it.
    """
    with errors():
        from detrkit.api.resume import resume as go_on
        from detrkit.cli.shared import run_drawings

        changes = parse_assignments(assignments or [])
        options = given(data=data, epochs=epochs, lr=lr)
        report_run(go_on(run, changes=changes, drawings=run_drawings(), say=say, **options))
