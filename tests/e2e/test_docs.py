"""Every command and every Python block of the README and the guides runs, in order, page by page."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from detrkit.cli import app
from detrkit.curation.synthetic import write_synthetic
from detrkit.families.detr.export import write_published
from detrkit.families.detr.model import build_detr
from detrkit.families.presets import PRESETS
from detrkit.families.recipes import preset_config
from tests.support.serving import ServerProcess, running
from tests.support.videos import write_video

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Setting up the environment that these tests run in, which .ci/run does.
SETS_UP = ("make ", "pip ", "conda ")
# What is weighed against AP is refused with words for a model without any, as the small one is.
WEIGHS_AP = re.compile(r"detrkit optimize |--int8 ")
MADE_BY_IT = "optimize/bundle"


# As small as ResNet-18 and one layer are: what the pages promise does not depend on the size of the model.
SMALL = {
    "backbone": "resnet18",
    "hidden_dim": 32,
    "num_heads": 1,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "ffn_dim": 32,
}
SMALL_IMAGES = shlex.split("--set transforms.eval_size=96 --set transforms.scales=[96] --set transforms.crop=0")
# What is long by itself is made short where the page does not say how long it is to be.
SHORT = {
    "tune": ("--epochs", "--data"),
    "preflight": ("--seconds", "--model"),
    "benchmark": ("--repeats", "benchmark"),
}


@pytest.fixture(scope="module")
def small_preset() -> Iterator[None]:
    """The name detr-r50, but of a small model: the pages train and load it many times."""
    whole = PRESETS["detr-r50"]
    config = whole.config()
    small = config.model_copy(update={"model": config.model.model_copy(update=SMALL)})
    assert whole.published is not None
    published = dataclasses.replace(whole.published, sha256="")
    with pytest.MonkeyPatch.context() as patch:
        preset = dataclasses.replace(whole, config=lambda: small, published=published)
        patch.setitem(PRESETS, "detr-r50", preset)
        yield


@pytest.fixture(scope="module")
def published_file(small_preset: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights under the published name, standing in for the download."""
    path = tmp_path_factory.mktemp("cache") / "weights" / "detr-r50-e632da11.pth"
    torch.manual_seed(0)
    config = preset_config("detr-r50").model.model_copy(update={"backbone_norm": "frozen"})
    write_published(path, build_detr(config, 91).state_dict())
    return path


@pytest.fixture(scope="module")
def first_desk(published_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the guides talk about: a data set, a picture, weights, a run."""
    desk = tmp_path_factory.mktemp("desk")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETRKIT_CACHE", str(published_file.parents[1]))
        patch.chdir(desk)
        write_synthetic("my-dataset", train_images=3, val_images=2, size=96)
        write_synthetic("my-masks", train_images=3, val_images=2, size=96, masks=True)
        shutil.copy(next(Path("my-dataset/val2017").iterdir()), "street.jpg")
        write_video("clip.mp4", 2)
        Path(published_file.name).symlink_to(published_file)
        run = ["train", "--model", "detr-r50", "--data", "my-dataset", "--epochs", "1", "--run", "runs/detr-r50-1"]
        result = CliRunner().invoke(app, [*run, *SMALL_IMAGES])
        assert result.exit_code == 0, result.output
    return desk


@pytest.fixture
def desk(first_desk: Path, published_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of each page's own."""
    monkeypatch.setenv("DETRKIT_CACHE", str(published_file.parents[1]))
    shutil.copytree(first_desk, tmp_path, symlinks=True, dirs_exist_ok=True, copy_function=_copy)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _copy(source: str, target: str) -> None:
    """Checkpoints are replaced whole, never written into: a link will do."""
    if source.endswith(".pt"):
        os.link(source, target)
    else:
        shutil.copy2(source, target)


def blocks(page: Path) -> list[tuple[str, str]]:
    return re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def run_command(line: str) -> None:
    words = shlex.split(line, comments=True)
    if not words or line.startswith(SETS_UP) or MADE_BY_IT in words:
        return
    assert words[0] == "detrkit", f"do not know how to run {line!r}"
    words = [
        re.sub(r"^\d+$", "1", word) if before in ("--epochs", "--trials") else word
        for before, word in itertools.pairwise(words)
    ]
    if words[0] in ("train", "preflight") or (words[0] == "tune" and "--data" in words):
        words += SMALL_IMAGES
    option, sign = SHORT.get(words[0], ("", ""))
    if sign in words and option not in words:
        words += [option, "1"]
    result = CliRunner().invoke(app, words)
    if WEIGHS_AP.search(line) and result.exit_code == 1:
        assert "AP 0.0" in result.output, result.output
        return
    assert result.exit_code == 0, f"{line}\n{result.output}\n{result.exception!r}"


def run_served(lines: list[str], log: Path, stack: contextlib.ExitStack, servers: list[ServerProcess]) -> None:
    """Run commands of which one may start a server, which goes on, and others ask it."""
    for line in lines:
        if line.startswith("detrkit serve "):
            servers.append(stack.enter_context(running(*shlex.split(line, comments=True)[2:], log=log)))
        elif line.startswith("curl "):
            words = shlex.split(line.replace("127.0.0.1:8000", f"127.0.0.1:{servers[-1].port}"))
            done = subprocess.run([words[0], "--fail", "--silent", *words[1:]], capture_output=True, check=False)
            assert done.returncode == 0, f"{line}\n{done.stderr!r}"
        else:
            run_command(line)


def marks_of(page: Path) -> list[pytest.MarkDecorator]:
    """What the other pages tell has shorter tests of its own; the README is tried always."""
    return [] if page.stem == "README" else [pytest.mark.slow]


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=marks_of(page), id=page.name) for page in PAGES if blocks(page)]
)
def test_code_blocks_run(page: Path, desk: Path, tmp_path_factory: pytest.TempPathFactory):
    names: dict[str, object] = {}
    servers: list[ServerProcess] = []
    log = tmp_path_factory.mktemp("served") / "log.jsonl"
    with contextlib.ExitStack() as stack:
        run_blocks(page, names, lambda lines: run_served(lines, log, stack, servers))
    assert Path.cwd() == desk


def run_blocks(page: Path, names: dict[str, object], run_lines: Callable[[list[str]], None]) -> None:
    for language, code in blocks(page):
        if language == "bash":
            run_lines(code.splitlines())
        elif language == "python":
            code = code.replace('model="detr-r50-dc5"', 'model="detr-r50"')  # the small one cannot be dilated
            code = re.sub(
                r"epochs=\d+", "epochs=1, changes={'transforms.scales': [96], 'transforms.eval_size': 96}", code
            )
            exec(compile(code, str(page), "exec"), names)
        else:
            assert language == "text", f"{page}: what to do with a {language} block?"


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"
