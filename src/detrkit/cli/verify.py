"""``detrkit verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from detrkit.cli.shared import DataOption, JsonOption, SplitOption, arg, errors, given, opt, report, step_bar
from detrkit.errors import UsageError


def verify(
    bundle: Annotated[Path, arg("BUNDLE", "Folder or zip file that detrkit export wrote.")],
    runtime: Annotated[
        str,
        opt(
            "NAME",
            "onnxruntime, openvino, openvino-bf16, or auto for the faster in float32; the first if not given.",
        ),
    ] = "",
    threads: Annotated[int | None, opt("N", "Threads; all that may be used if not given.", min=1)] = None,
    data: DataOption = None,
    split: SplitOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a bundle's files, and that it finds what torch found; time it, and measure AP on --data.

    Another runtime or processor than when it was written is a warning as long as the results are the same. Exit
    code 1 if anything differs.
    """
    with errors():
        from detrkit.api.verify import verify as prove

        if split is not None and data is None:
            raise UsageError("--split is given without --data; name the data set too")
        with step_bar(hidden=as_json) as progress:
            found = prove(
                bundle, runtime=runtime, threads=threads, data=data, progress=progress, **given(split=split)
            )
        report(found, as_json, passed=found.passed)
