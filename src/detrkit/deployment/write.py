"""Write what a bundle needs to be served somewhere, from the templates beside this file."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2
import msgspec

from detrkit.deployment.check import Check, check_files
from detrkit.deployment.triton import triton_facts
from detrkit.deployment.wheel import make_wheel
from detrkit.errors import UsageError
from detrkit.files import atomic_bytes, check_free, read_facts, results_folder
from detrkit.runtimes.bundle import Bundle, read_bundle
from detrkit.runtimes.contents import MANIFEST

TEMPLATES = Path(__file__).with_name("templates")
_UID = 10001
_MIB = 1 << 20
_LEAST_MIB = 1024
_IMAGE = re.compile(
    r"[a-z0-9]([a-z0-9._/:-]*[a-z0-9])?(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(@sha256:[0-9a-f]{64})?"
)


class Target(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A place where bundles are served; ``write.toml`` says what its fields mean."""

    templates: tuple[str, ...]
    next_steps: tuple[str, ...]
    brings_detrkit: bool = True
    secrets: dict[str, tuple[str, ...]] = {}


TARGETS: Mapping[str, Target] = msgspec.convert(read_facts(__file__), dict[str, Target])


@dataclasses.dataclass(frozen=True)
class Deployment:
    """What was written, and how it was checked.

    Args:
        folder: Where.
        files: Names in it, without the bundle's.
        kept: Files with secrets that were there already.
        checks: What was checked, and what could not be.
        next_steps: What to run in the folder.
    """

    folder: Path
    files: list[str]
    kept: list[str]
    checks: list[Check]
    next_steps: list[str]

    @property
    def passed(self) -> bool:
        """No check failed."""
        return not any(check.passed is False for check in self.checks)

    def lines(self) -> list[str]:
        """Return the same for people."""
        found = [f"{len(self.files)} files and the bundle in {self.folder}: {', '.join(self.files)}"]
        found += [f"kept: {name}, which holds secrets" for name in self.kept]
        return [
            *found,
            *map(str, self.checks),
            f"next, in {self.folder}:",
            *(f"  {step}" for step in self.next_steps),
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return the same for programs."""
        return {**dataclasses.asdict(self), "folder": str(self.folder), "passed": self.passed}


def write_deployment(
    path: str | os.PathLike[str],
    target_name: str,
    out: str | os.PathLike[str],
    *,
    image: str = "",
    cpus: int = 2,
    replicas: tuple[int, int] = (1, 4),
) -> Deployment:
    """Write the files that serve a bundle, and check them.

    Args:
        path: Folder or zip file that ``detrkit export`` wrote.
        target_name: One of :data:`TARGETS`.
        out: Folder for the files.
        image: Name of the container image; the model's name and the bundle's hash if empty.
        cpus: Processors of a replica.
        replicas: Least and greatest number of replicas.

    Raises:
        BundleError: The bundle is damaged, changed, of a newer version, or not to be trusted.
        UsageError: An argument makes no sense, or something lies in the folder that detrkit did not write.
    """
    target = TARGETS.get(target_name)
    if target is None:
        raise UsageError(f"--to is {target_name!r}, expected one of {', '.join(TARGETS)}")
    if cpus < 1 or not 1 <= replicas[0] <= replicas[1]:
        raise UsageError(
            f"{cpus} processors and {replicas[0]} to {replicas[1]} replicas, expected 1 or more, in order"
        )
    bundle = read_bundle(path)
    bundle.check_files()
    facts = _facts(bundle, image, cpus, replicas)
    facts["bundle_path"] = str((Path(out) / "bundle").resolve())
    contents: dict[str, bytes] = {}
    if target_name == "triton":
        graph = bundle.read_graph()
        facts |= triton_facts(graph, bundle, str(path))
        contents[f"models/{facts['name']}/1/model.onnx"] = graph
    if target.brings_detrkit:
        facts["wheel"], wheel = make_wheel()
        needs = "openvino" if bundle.manifest.graphs[0].weights_file else "onnxruntime"
        contents |= {facts["wheel"]: wheel}
        contents["requirements.txt"] = TEMPLATES.with_name(f"requirements-{needs}.txt").read_bytes()
    render = _renderer(facts)
    for folder in target.templates:
        contents |= _render_folder(TEMPLATES / folder, facts["name"], render)
    own = {f"bundle/{name}": bundle.read(name) for name in bundle.manifest.files}
    own[f"bundle/{MANIFEST}"] = bundle.contents.read(MANIFEST, 1 << 40)

    # all names are looked at before the first is written
    with results_folder(out) as written:
        check_free(*(written / name for name in (*contents, *own)))
        for name, content in (*contents.items(), *own.items()):
            with atomic_bytes(written / name) as file:
                file.write(content)
        kept = [name for name, lines in target.secrets.items() if not _write_secret(written / name, lines)]
        checks = check_files(written, target_name, list(contents), render)
    names = sorted([*contents, *target.secrets])
    return Deployment(written, names, kept, checks, [render(step) for step in target.next_steps])


def _facts(bundle: Bundle, image: str, cpus: int, replicas: tuple[int, int]) -> dict[str, Any]:
    """Return what the templates name, none of it as a stranger's bundle words it."""
    manifest = bundle.manifest
    name = re.sub(r"[^a-z0-9]+", "-", manifest.name.lower()).strip("-")[:40].rstrip("-") or "detector"
    name = name if name[0].isalpha() else f"detector-{name}"
    version = manifest.seal[:12]
    image = image or f"{name}:{version}"
    if not _IMAGE.fullmatch(image):
        raise UsageError(
            f"--image is {image!r}, expected a name such as registry.example.com/team/{name}:{version}"
        )
    # Twice what one process of one picture took, and what requests that wait may take.
    cold_start = manifest.report.cold_start
    peak = 0.0 if cold_start is None else cold_start.peak_mb * 1e6 / _MIB
    memory = 256 * math.ceil(max(_LEAST_MIB, 2 * peak + 768) / 256)
    least, most = replicas
    return {
        "name": name,
        "version": version,
        "image": image,
        "cpus": cpus,
        "memory_mib": memory,
        "min_replicas": least,
        "max_replicas": most,
        "uid": _UID,
    }


def _renderer(facts: Mapping[str, Any]) -> Callable[[str], str]:
    """Return what fills in templates; their marks are none of YAML, shell, Grafana or Go."""
    environment = jinja2.Environment(
        variable_start_string="<<",
        variable_end_string=">>",
        block_start_string="<%",
        block_end_string="%>",
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,
    )
    return lambda text: environment.from_string(text).render(facts)


def _render_folder(folder: Path, name: str, render: Callable[[str], str]) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of each file of a folder of templates."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        relative = path.relative_to(folder).as_posix().replace("NAME", name)
        relative = relative.removesuffix(".j2").replace("dot.", ".")
        yield relative, render(path.read_text(encoding="utf-8")).encode()


def _write_secret(path: Path, lines: tuple[str, ...]) -> bool:
    """Write random secrets to a file that its owner alone may read; False if it is there already."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        if path.is_symlink() or not path.is_file():
            raise UsageError(f"{path} is no plain file; move it away") from None
        return False
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write("".join(line.format(secrets.token_hex(32)) + "\n" for line in lines))
    return True
