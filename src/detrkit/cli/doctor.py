"""What is installed, what is missing, and what is known to clash: ``detrkit doctor``."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import os
import platform
import re
import shutil
import sys
from pathlib import Path
from typing import Any, Literal

import typer
from packaging.requirements import Requirement
from packaging.version import Version

from detrkit.cli.shared import JsonOption, print_json
from detrkit.errors import listed
from detrkit.machine import memory_limit, this_machine, usable_cpus

_RUNTIME = ("onnxruntime", "openvino", "numpy", "pillow", "msgspec", "supervision")
"""What runs bundles."""
_OPTIONAL = ("openvino", "supervision")

_LEAST_GIB = 4
"""Memory limit, in GiB, under which a training or a large model may be killed."""

Status = Literal["ok", "warning", "error"]


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the report.

    Args:
        name: What was looked at.
        status: ``error`` means that detrkit cannot work.
        found: What was found.
        advice: What to do, if anything.
    """

    name: str
    status: Status
    found: str
    advice: str = ""


def doctor(as_json: JsonOption = False) -> None:
    """Versions, devices, what is missing, what is known to clash. Exits with 1 if detrkit cannot work."""
    findings = examine()
    if as_json:
        print_json([vars(finding) for finding in findings])
    else:
        marks = {"ok": "ok     ", "warning": "WARNING", "error": "ERROR  "}
        for finding in findings:
            advice = f" -> {finding.advice}" if finding.advice else ""
            typer.echo(f"{marks[finding.status]}  {finding.name}: {finding.found}{advice}")
        worst = [finding for finding in findings if finding.status == "error"]
        typer.echo(f"{len(worst)} problems found." if worst else "detrkit can work here.")
    if any(finding.status == "error" for finding in findings):
        raise typer.Exit(1)


def examine() -> list[Finding]:
    """Look at the machine; slow, since it imports torch and tries its parts out."""
    findings = [_python()]
    if _version(__name__.partition(".")[0]) is None:  # what it needs is written nowhere else
        return [*findings, Finding("detrkit", "error", "not installed", "pip install -e . in its folder")]
    if _version("torch") is None and _version("onnxruntime") is not None:
        findings += _runtime_alone()
    else:
        findings += _packages()
        findings += _torch_and_torchvision()
        findings += _devices()
    return [*findings, *_extras(), *_limits(), _shared_memory(), _disk()]


def _python() -> Finding:
    version = platform.python_version()
    if sys.version_info < (3, 11):  # noqa: UP036 (pip can be told to ignore it)
        return Finding("Python", "error", version, "install Python 3.11 or newer")
    return Finding("Python", "ok", f"{version} on {platform.system()} {platform.machine()}")


def _runtime_alone() -> list[Finding]:
    """Look at an install without torch, as it is for machines that run bundles and do nothing else."""
    found = []
    for name in _RUNTIME:
        version = _version(name)
        if version is not None:
            found.append(Finding(name, "ok", version))
        elif name not in _OPTIONAL:
            found.append(Finding(name, "error", "not installed", f"pip install {name}"))
    only = "not installed: bundles can be verified and run, models not trained, evaluated or exported"
    found.append(Finding("torch", "warning", only, "pip install detrkit, if that is wanted"))
    return [*found, Finding("CPU", "ok", str(this_machine()))]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _packages() -> list[Finding]:
    """Compare every requirement of detrkit, and the extras that are there, with what is installed."""
    findings = []
    for text in importlib.metadata.requires("detrkit") or []:
        requirement = Requirement(text)
        extra = _extra_of(requirement)
        version = _version(requirement.name)
        if version is None:
            if extra is None:
                advice = f'pip install "{requirement.name}{requirement.specifier}"'
                findings.append(Finding(requirement.name, "error", "not installed", advice))
            continue
        if not requirement.specifier.contains(Version(version), prereleases=True):
            advice = f'pip install "{requirement.name}{requirement.specifier}"'
            status: Status = "error" if extra is None else "warning"
            findings.append(Finding(requirement.name, status, version, advice))
        elif extra is None:
            findings.append(Finding(requirement.name, "ok", version))
    return findings


def _extra_of(requirement: Requirement) -> str | None:
    return None if requirement.marker is None or requirement.marker.evaluate({"extra": ""}) else "extra"


def _torch_and_torchvision() -> list[Finding]:
    """Try the pair that clashes most: torchvision's compiled parts fit exactly one torch."""
    try:
        wanted = [Requirement(text) for text in importlib.metadata.requires("torchvision") or []]
        torch_version = Version(importlib.metadata.version("torch"))
    except importlib.metadata.PackageNotFoundError:
        return []  # said already
    for requirement in wanted:
        if requirement.name == "torch" and not requirement.specifier.contains(torch_version, prereleases=True):
            return [
                Finding(
                    "torch and torchvision",
                    "error",
                    f"torch {torch_version}, but torchvision wants torch{requirement.specifier}",
                    "install the two together in one command: pip install --upgrade torch torchvision",
                )
            ]
    try:
        torch: Any = importlib.import_module("torch")
        ops: Any = importlib.import_module("torchvision.ops")
        ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        advice = "reinstall the two together: pip install --force-reinstall torch torchvision"
        return [Finding("torch and torchvision", "error", str(error).splitlines()[0], advice)]
    return [Finding("torch and torchvision", "ok", "torchvision's compiled operators work")]


def _devices() -> list[Finding]:
    try:
        torch: Any = importlib.import_module("torch")
    except (ImportError, OSError) as error:
        return [Finding("torch", "error", str(error).splitlines()[0], "reinstall torch")]
    findings = [Finding("CPU", "ok", f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads")]
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(number)
            memory = properties.total_memory / 2**30
            bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
            findings.append(Finding(f"cuda:{number}", "ok", f"{properties.name}, {memory:.0f} GiB, {bf16}"))
    elif torch.version.cuda and shutil.which("nvidia-smi"):
        advice = "run nvidia-smi; a driver older than this CUDA needs is the usual reason"
        found = f"a driver is there, but torch (CUDA {torch.version.cuda}) sees no GPU"
        findings.append(Finding("CUDA", "warning", found, advice))
    else:
        found = "no GPU; training runs on the CPU"
        findings.append(
            Finding("CUDA", "ok", found, "use detr-tiny or small images, or --set train.precision=bf16")
        )
    return findings


def _extras() -> list[Finding]:
    """Say of each extra of detrkit whether all that it needs is there."""
    missing: dict[str, list[str]] = {}
    for text in importlib.metadata.requires("detrkit") or []:
        requirement = Requirement(text)
        for extra in re.findall(r"extra == ['\"]([\w-]+)", str(requirement.marker or "")):
            lacking = missing.setdefault(extra, [])
            # an extra that consists of others has detrkit itself among its needs, which is there
            if _version(requirement.name) is None:
                lacking.append(requirement.name)
    missing.pop("dev", None)
    return [
        Finding(f"extra {extra}", "ok", f"without {listed(lacking)}", f'pip install "detrkit[{extra}]"')
        if lacking
        else Finding(f"extra {extra}", "ok", "installed")
        for extra, lacking in missing.items()
    ]


def _limits() -> list[Finding]:
    """Compare the processors and the memory that a container leaves with what programs see and take."""
    usable, shown = usable_cpus(), os.cpu_count() or 1
    advice = "the rest are not this process's; data.workers=auto takes that into account" if usable < shown else ""
    findings = [Finding("usable cores", "ok", f"{usable} of {shown}", advice)]
    torch: Any = sys.modules.get("torch")  # imported by what looked at it, if it is there
    threads = 0 if torch is None else torch.get_num_threads()
    if threads > usable:
        found = f"torch takes {threads}, a container or a quota leaves {usable} processors"
        advice = (
            f"export OMP_NUM_THREADS={usable}, or they stop each other; servers and bundles know it themselves"
        )
        findings.append(Finding("threads", "warning", found, advice))
    limit = memory_limit()
    if limit is not None:
        gib = limit / 2**30
        advice = "less than detr-r50 takes in training; give the container more" if gib < _LEAST_GIB else ""
        findings.append(Finding("memory limit", "warning" if advice else "ok", f"{gib:.1f} GiB", advice))
    return findings


def _shared_memory() -> Finding:
    """Loader workers hand batches over in /dev/shm, which containers make small."""
    path = Path("/dev/shm")
    if not path.is_dir():
        return Finding("shared memory", "ok", "not a separate file system here")
    free = shutil.disk_usage(path).free / 2**30
    if free < 0.5:
        advice = "in Docker: --ipc=host or --shm-size=8g; else --set data.workers=0"
        return Finding("shared memory", "warning", f"{free:.2f} GiB free", advice)
    return Finding("shared memory", "ok", f"{free:.1f} GiB free")


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    if free < 5:
        return Finding("disk here", "warning", f"{free:.1f} GiB free", "a run of detr-r50 writes about 1.6 GiB")
    return Finding("disk here", "ok", f"{free:.0f} GiB free")
