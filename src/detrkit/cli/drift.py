"""``detrkit drift``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from detrkit.cli import shared
from detrkit.cli.shared import arg, opt


def drift(
    samples: Annotated[Path, arg("SAMPLES", "Folder of detrkit serve --sample-dir, or of pictures.")],
    model: Annotated[str, arg("MODEL", "The model that is served: bundle, run, checkpoint.")],
    data: Annotated[
        Path | None, opt("DATA", "Data set that the model was made for; a run's own if not given.")
    ] = None,
    split: Annotated[
        str | None, opt("NAME", "Its split, not one that the model was trained on; val if not given.")
    ] = None,
    reference: Annotated[
        Path | None, opt("FILE", "reference.json of an earlier call, where the data set is not at hand.")
    ] = None,
    out: Annotated[Path | None, opt("DIR", "Folder of results, drift if not given.")] = None,
    images: Annotated[
        int | None, opt("N", "Most pictures of either side, drawn at random; 1,000 if not given.", min=30)
    ] = None,
    label: Annotated[
        int, opt("N", "Write the N least sure pictures for labelling, with detections as proposals.", min=0)
    ] = 0,
    device: shared.DeviceOption = None,
    as_json: shared.JsonOption = False,
) -> None:
    """Tell whether the pictures that a model is sent are still like those that it was made for.

    Exit code 0 if no drift is seen, 1 if there is, or something failed, 2 if asked wrongly.
    """
    with shared.errors():
        from detrkit.api.drift import FILES
        from detrkit.api.drift import drift as find

        options = shared.given(split=split, reference=reference, out=out, images=images, device=device)
        with shared.step_bar(hidden=as_json) as progress:
            say = shared.quiet if as_json else shared.say
            found = find(samples, model, data, label=label, say=say, progress=progress, **options)
        written = f"Written to {out or 'drift'}: {', '.join(FILES)}{', label/' if label else ''}"
        shared.report(found, as_json, written, passed=not found.drifted)
