"""Check what was written, as far as this machine can: syntax, references, and other programs' own dry runs."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from detrkit.deployment.triton import check_config
from detrkit.errors import BundleError, counted
from detrkit.runtimes.bundle import read_bundle

_TIMEOUT_S = 120
_LABEL = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")


@dataclasses.dataclass(frozen=True)
class Check:
    """One look at what was written.

    Args:
        what: What was looked at, and how.
        passed: None where this machine cannot tell.
        detail: What is wrong, or why it cannot.
    """

    what: str
    passed: bool | None
    detail: str = ""

    def __str__(self) -> str:
        mark = {True: "checked", False: "WRONG", None: "not checked"}[self.passed]
        return f"{mark}: {self.what}" + (f": {self.detail}" if self.detail else "")


def check_files(folder: Path, target: str, names: Sequence[str], render: Callable[[str], str]) -> list[Check]:
    """Check the files of a target.

    Args:
        folder: Where they lie.
        target: Name of the target.
        names: Names of the files.
        render: Fills in templates, for names of files.
    """
    found = [_check_bundle(folder / "bundle"), *_check_syntax(folder, names)]
    if target in ("kubernetes", "kserve"):
        found += [_check_references(folder / target), _run_tool(["kubectl", "kustomize", target], folder)]
    if target in ("docker", "compose", "kubernetes", "kserve"):
        found.append(_run_tool(["docker", "build", "--check", "."], folder, probe=["docker", "buildx", "ls"]))
    if target == "compose":
        found.append(
            _run_tool(["docker", "compose", "config", "--quiet"], folder, probe=["docker", "compose", "version"])
        )
    if target == "triton":
        found.append(_check_triton(folder / "models" / render("<<name>>")))
    if target == "ray":
        found.append(_check_ray(folder / "serve.yaml"))
    if target == "systemd":
        found.append(_run_tool(["sh", "-n", "install.sh"], folder))
        found += _check_unit(folder / render("<<name>>.service"))
    return found


def _check_bundle(path: Path) -> Check:
    """Read the copy as a server would."""
    try:
        bundle = read_bundle(path)
        bundle.check_files()
    except BundleError as error:
        return Check("the copy of the bundle, every file by its hash", False, str(error))
    return Check(f"the copy of the bundle, {counted(len(bundle.manifest.files), 'file')} by their hashes", True)


def _check_syntax(folder: Path, names: Sequence[str]) -> Iterator[Check]:
    """Parse every YAML and JSON file."""
    parsers: dict[str, Callable[[str], object]] = {
        ".yaml": yaml.safe_load,
        ".yml": yaml.safe_load,
        ".json": json.loads,
    }
    parsed = [name for name in names if Path(name).suffix in parsers]
    wrong = []
    for name in parsed:
        try:
            parsers[Path(name).suffix]((folder / name).read_text(encoding="utf-8"))
        except (ValueError, yaml.YAMLError) as error:
            wrong.append(f"{name}: {error}")
    if parsed:
        yield Check(f"syntax of {', '.join(parsed)}", not wrong, "; ".join(wrong))


def _check_references(folder: Path) -> Check:
    """Check that Kubernetes objects are named as they may be, and name each other as they are named."""
    objects: list[dict[str, Any]] = [
        yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.yaml"))
    ]
    made = next(one["secretGenerator"][0]["name"] for one in objects if one["kind"] == "Kustomization")
    wrong = []
    for one in (one for one in objects if one["kind"] != "Kustomization"):
        name = one["metadata"]["name"]
        if not _LABEL.fullmatch(name):
            wrong.append(f"{one['kind']} is named {name!r}, expected a label of DNS")
    by_kind = {one["kind"]: one for one in objects}
    if "Deployment" in by_kind:
        deployment, pods = by_kind["Deployment"], by_kind["Deployment"]["spec"]["template"]
        labels = pods["metadata"]["labels"].items()
        ports = [port["name"] for port in pods["spec"]["containers"][0]["ports"]]
        autoscaled = by_kind["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
        selectors = [deployment["spec"]["selector"]["matchLabels"], by_kind["Service"]["spec"]["selector"]]
        selectors.append(by_kind["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"])
        agree = {
            "selectors and labels": all(selector.items() <= labels for selector in selectors),
            "port of the service": by_kind["Service"]["spec"]["ports"][0]["targetPort"] in ports,
            "target of the autoscaler": (autoscaled["kind"], autoscaled["name"])
            == ("Deployment", deployment["metadata"]["name"]),
        }
    else:
        pods, agree = {"spec": by_kind["InferenceService"]["spec"]["predictor"]}, {}
    named = [volume["secret"]["secretName"] for volume in pods["spec"]["volumes"] if "secret" in volume]
    agree["name of the secret"] = named == [made]
    wrong += [f"{what} do not fit" for what, is_so in agree.items() if not is_so]
    return Check(
        f"names and references of {counted(len(objects), 'Kubernetes object')}", not wrong, "; ".join(wrong)
    )


def _check_triton(folder: Path) -> Check:
    """Compare the configuration with the graph beside it."""
    what = "config.pbtxt, by Triton's own definitions and against the graph's inputs and outputs"
    try:
        wrong = check_config(folder / "config.pbtxt", (folder / "1" / "model.onnx").read_bytes())
    except ImportError:
        return Check(what, None, 'needs: pip install "tritonclient[grpc]"')
    return Check(what, not wrong, wrong)


def _check_ray(path: Path) -> Check:
    """Read the configuration by Ray Serve's own schema."""
    what = "serve.yaml, by Ray Serve's own schema"
    try:
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # Ray's own matters
            from ray.serve.schema import ServeDeploySchema
    except ImportError:
        return Check(what, None, 'needs: pip install "detrkit[ray]"')
    try:
        ServeDeploySchema.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except ValueError as error:
        return Check(what, False, str(error))
    return Check(what, True)


def _check_unit(path: Path) -> Iterator[Check]:
    """Let systemd read a unit, with a program in the place of the one that is not installed yet."""
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / path.name
        text = path.read_text(encoding="utf-8")
        copy.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", text, flags=re.M), encoding="utf-8")
        yield _run_tool(["systemd-analyze", "verify", "--man=no", copy.name], copy.parent)
        exposure = ["systemd-analyze", "security", "--offline=true", "--threshold=30", "--no-pager", copy.name]
        yield _run_tool(exposure, copy.parent)


def _run_tool(command: Sequence[str], folder: Path, probe: Sequence[str] = ()) -> Check:
    """Run another program's own check; where it, or the part of it that ``probe`` asks for, is missing, say so."""
    what = " ".join(command)
    if shutil.which(command[0]) is None:
        return Check(what, None, f"{command[0]} is not installed")
    for run in (probe, command):
        if not run:
            continue
        try:
            done = subprocess.run(
                run, cwd=folder, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return Check(what, None, str(error))
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()
            is_probe = run is probe
            return Check(what, None if is_probe else False, said[0] if is_probe else "; ".join(said[-3:]))
    return Check(what, True)
