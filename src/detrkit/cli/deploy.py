"""``detrkit deploy``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from detrkit.cli.shared import JsonOption, arg, errors, given, opt, report
from detrkit.errors import UsageError


def deploy(
    bundle: Annotated[Path, arg("BUNDLE", "Folder or zip file that detrkit export wrote.")],
    to: Annotated[str, opt("TARGET", "docker, compose, kubernetes, kserve, triton, ray or systemd.", "--to")],
    out: Annotated[Path, opt("DIR", "Folder for the files.")],
    image: Annotated[
        str | None, opt("NAME", "Name of the container image; model and bundle's hash if not given.")
    ] = None,
    cpus: Annotated[int | None, opt("N", "Processors of a replica, 2 if not given.", min=1)] = None,
    replicas: Annotated[
        str | None, opt("MIN-MAX", "Least and greatest number of replicas, 1-4 if not given.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write complete, checked files that serve a bundle elsewhere; exits with 1 if a check fails."""
    with errors():
        from detrkit.api.deploy import deploy as write

        found = write(bundle, to, out, **given(image=image, cpus=cpus, replicas=_range(replicas)))
        report(found, as_json, passed=found.passed)


def _range(text: str | None) -> tuple[int, int] | None:
    """Return both ends of words like 1-4, or of one number."""
    if text is None:
        return None
    least, _, most = text.partition("-")
    if not (least.isdecimal() and (most or least).isdecimal()):
        raise UsageError(f"--replicas is {text!r}, expected least and greatest number, such as 1-4")
    return int(least), int(most or least)
