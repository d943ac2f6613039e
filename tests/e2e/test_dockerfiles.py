"""Dockerfiles, run step by step in a folder and a fresh virtual environment in place of an image."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from detrkit.deployment.write import write_deployment
from tests.support.bundles import bundle_files, write_files

ROOT = Path(__file__).parents[2]
TOKEN = "a-token-of-the-tests"
DOCKER = ROOT / "docker"


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Instruction and arguments of each line, continued lines joined."""
    text = re.sub(r"\\\n\s*", "", dockerfile.read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines]


def sent_files(context: Path) -> set[str]:
    """What of a folder goes to the builder, by its .dockerignore."""
    patterns = (context / ".dockerignore").read_text().split()
    assert patterns[0] == "*"
    kept = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    dropped = [pattern.removeprefix("**/") for pattern in patterns[1:] if not pattern.startswith("!")]
    paths = (path for keep in kept for top in context.glob(keep) for path in (top, *top.rglob("*")))
    files = (path.relative_to(context) for path in paths if path.is_file())
    return {path.as_posix() for path in files if not any(part in dropped for part in path.parts)}


class Image:
    """A folder in place of an image's root."""

    def __init__(self, root: Path):
        self.root = root
        self.workdir = "/"
        self.environment = {
            **{
                name: os.environ[name]
                for name in ("HOME", "LANG", "TMPDIR", "PIP_INDEX_URL")
                if name in os.environ
            },
            **{name: value for name, value in os.environ.items() if name.startswith(("PIP_", "UV_", "SSL_"))},
        }
        self.entrypoint: list[str] = []
        self.health: list[str] = []
        self.users: list[str] = []

    def at(self, path: str) -> Path:
        return self.root / Path(self.workdir, path).relative_to("/")

    def build(self, dockerfile: Path, context: Path) -> Image:
        sent = sent_files(context)
        for word, rest in instructions(dockerfile):
            getattr(self, f"do_{word.lower()}")(rest) if word != "COPY" else self.copy(rest.split(), context, sent)
        return self

    def do_from(self, image: str) -> None:
        version = re.fullmatch(r"python:(3\.\d+)-slim-bookworm", image)
        assert version is not None
        assert version[1] == "3.11"
        subprocess.run([sys.executable, "-m", "venv", self.root / "python"], check=True)
        # useradd would make a user of this machine
        bin_folder = self.root / "python" / "bin"
        (bin_folder / "useradd").write_text(f'#!/bin/sh\necho "$@" >> {self.root}/users\n')
        (bin_folder / "useradd").chmod(0o755)
        self.environment |= {"PATH": f"{bin_folder}:/usr/bin:/bin", "VIRTUAL_ENV": str(self.root / "python")}

    def do_env(self, rest: str) -> None:
        self.environment |= dict(pair.split("=", 1) for pair in rest.split())
        # the machine's own caches stand for the index
        self.environment = {name: value for name, value in self.environment.items() if "NO_CACHE" not in name}

    def do_workdir(self, rest: str) -> None:
        self.workdir = str(Path(self.workdir, rest))
        self.at(".").mkdir(parents=True, exist_ok=True)

    def copy(self, words: list[str], context: Path, sent: set[str]) -> None:
        *sources, target = words
        for source in sources:
            names = [name for name in sent if name == source or name.startswith(f"{source}/")]
            assert names, f"{source} does not reach the builder"
            for name in names:
                inner = name.removeprefix(source).lstrip("/")
                place = self.at(target)
                place = place / inner if inner else place / Path(name).name if target.endswith("/") else place
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(context / name, place)

    def do_run(self, rest: str) -> None:
        # without the option, uv takes the environment that stands for the image's Python
        done = subprocess.run(
            rest.replace(" --system", ""),
            shell=True,
            cwd=self.at(".") if self.at(".").exists() else None,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=1500,
        )
        assert done.returncode == 0, f"{rest}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"

    def do_user(self, rest: str) -> None:
        self.users.append(rest)

    def do_expose(self, rest: str) -> None:
        assert rest == "8000"

    def do_healthcheck(self, rest: str) -> None:
        self.health = json.loads(rest.partition("CMD ")[2])

    def do_entrypoint(self, rest: str) -> None:
        self.entrypoint = json.loads(rest)

    def do_cmd(self, rest: str) -> None:
        self.entrypoint += json.loads(rest)


@contextlib.contextmanager
def running(image: Image, mounted: Path | None = None) -> Iterator[int]:
    """Run the image's command, on a free port, with its paths in the folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [word.replace("/opt/", f"{image.root}/opt/").replace("8000", str(port)) for word in image.entrypoint]
    words = [str(mounted) if word == "/bundle" else word for word in words]
    words = ["127.0.0.1" if word == "0.0.0.0" else word for word in words]  # not beyond this machine here
    environment = {**image.environment, "DETRKIT_SERVE_TOKEN": TOKEN}
    process = subprocess.Popen(words, cwd=image.root, env=environment)
    try:
        check = [word.replace("8000", str(port)) for word in image.health]
        for _ in range(240):
            assert process.poll() is None
            if subprocess.run(check, env=environment, capture_output=True, check=False).returncode == 0:
                break
            time.sleep(0.5)
        else:
            raise AssertionError("the health check never passed")
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert subprocess.run(check, env=environment, capture_output=True, check=False).returncode != 0


def detect(port: int, picture: bytes, token: str = TOKEN) -> dict[str, object]:
    headers = {"Authorization": f"Bearer {token}"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/detect?threshold=0.1", picture, headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        found: dict[str, object] = json.loads(answer.read())
    return found


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("written", [True, False])
def test_images_that_serve_detect_without_torch(written: bool, tmp_path: Path):
    bundle = write_files(tmp_path / "mean", bundle_files())
    image = Image(tmp_path / "image")
    if written:
        assert write_deployment(bundle, "docker", tmp_path / "out").passed
        image.build(tmp_path / "out" / "Dockerfile", tmp_path / "out")
    else:
        image.build(DOCKER / "serve.Dockerfile", ROOT)
    assert image.users == ["10001"]
    assert "--uid 10001" in (image.root / "users").read_text()
    packages = {path.name.partition("-")[0] for path in image.root.glob("python/lib/*/site-packages/*.dist-info")}
    assert "detrkit" in packages
    assert not {"torch", "supervision", "jinja2"} & packages
    assert "0.0.0.0" in image.entrypoint
    with running(image, bundle) as port:
        assert "detections" in json.dumps(detect(port, (bundle / "golden" / "0.png").read_bytes()))
        with pytest.raises(urllib.error.HTTPError):
            detect(port, b"", token="another-token-of-theirs")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_service_is_installed_twice_with_one_token_and_detects(tmp_path: Path):
    bundle = write_files(tmp_path / "mean", bundle_files())
    assert write_deployment(bundle, "systemd", tmp_path / "out").passed
    image = Image(tmp_path / "root")
    image.environment |= {"PATH": os.environ["PATH"], "DESTDIR": str(image.root), "PYTHON": sys.executable}
    tokens = set()
    for _ in range(2):
        image.do_run(f"mkdir -p {image.root} && sh {tmp_path}/out/install.sh")
        token = image.root / "etc" / "mean.token"
        assert stat.S_IMODE(token.stat().st_mode) == 0o600
        tokens.add(token.read_text().strip())
    (only,) = tokens
    unit = (image.root / "etc" / "systemd" / "system" / "mean.service").read_text()
    command = re.findall(r"^ExecStart=(.*)", unit, flags=re.M)[0]
    (tmp_path / "credentials").mkdir()
    (tmp_path / "credentials" / "token").write_text(only)
    image.entrypoint = command.replace("${CREDENTIALS_DIRECTORY}", str(tmp_path / "credentials")).split()
    image.health = instruction_of(tmp_path, bundle)
    with running(image) as port:
        assert "detections" in json.dumps(detect(port, (bundle / "golden" / "0.png").read_bytes(), only))


def instruction_of(tmp_path: Path, bundle: Path) -> list[str]:
    """The health check of the images, by this Python."""
    write_deployment(bundle, "docker", tmp_path / "docker")
    rest = dict(instructions(tmp_path / "docker" / "Dockerfile"))["HEALTHCHECK"]
    words: list[str] = json.loads(rest.partition("CMD ")[2])
    return [sys.executable, *words[1:]]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_image_that_trains_is_ready_to(tmp_path: Path):
    image = Image(tmp_path / "image").build(DOCKER / "train.Dockerfile", ROOT)
    assert image.users == ["10001"]
    done = subprocess.run(
        image.entrypoint, cwd=image.root, env=image.environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "detrkit can work here." in done.stdout


def test_every_instruction_is_known_and_what_is_copied_reaches_the_builder():
    sent = sent_files(ROOT)
    for dockerfile in DOCKER.glob("*.Dockerfile"):
        for word, rest in instructions(dockerfile):
            assert word == "COPY" or hasattr(Image, f"do_{word.lower()}")
            for source in rest.split()[:-1] if word == "COPY" else []:
                assert any(name == source or name.startswith(f"{source}/") for name in sent), source
    assert not [name for name in sent if name.startswith(("tests/", ".git/"))]


def test_the_conda_environment_is_that_of_the_requirements():
    environment = yaml.safe_load((DOCKER / "environment.yml").read_text())
    assert f"python={sys.version_info.major}.11" in environment["dependencies"]
    (line,) = environment["dependencies"][-1]["pip"]
    option, path = line.split()
    assert option == "--requirement"
    assert (DOCKER / path).resolve() == ROOT / "requirements.txt"
