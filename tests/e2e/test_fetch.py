"""``detrkit data fetch`` as people call it, against a server on this machine."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from click.testing import Result
from typer.testing import CliRunner

from detrkit.cli import app
from detrkit.curation.fetch import CATALOGUE, Archive, Part
from tests.support.web_server import Hosted, Server
from tests.unit.curation.fetch.test_dataset import zipped

IMAGES = {f"set/images/{n}.jpg": random.Random(n).randbytes(30_000) for n in range(10)}


@pytest.fixture
def hosted(web_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hosted:
    """One data set of the catalogue, bccd, made small and put on the server; the working directory is empty."""
    hosted = web_server.host("set.zip", zipped(IMAGES))
    archive = Archive(url=web_server.address("set.zip"), root="images", sha256=hosted.sha256)
    parts = {"all": Part(summary="images", archives=(archive,))}
    entry = msgspec.structs.replace(CATALOGUE["bccd"], parts=parts)
    monkeypatch.setitem(CATALOGUE, "bccd", entry)
    monkeypatch.setitem(CATALOGUE, "other", msgspec.structs.replace(entry, name="other"))
    monkeypatch.chdir(tmp_path)
    return hosted


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["data", "fetch", *arguments])
    assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
    return result


def images(folder: Path) -> dict[str, bytes]:
    return {f"set/images/{path.name}": path.read_bytes() for path in (folder / "images").iterdir()}


def test_the_list_shows_licence_size_and_address_of_every_set():
    shown = run("--list").stdout
    for entry in CATALOGUE.values():
        assert f"{entry.name}: {entry.title}" in shown
        assert entry.licence.name in shown
        for part in entry.parts.values():
            assert all(f"{archive.url} ({archive.check})" in shown for archive in part.archives)
    assert "train: training images, 19.3 GB" in shown
    assert "no published hash" in shown


def test_a_set_is_fetched_into_a_folder_of_its_name(hosted: Hosted):
    shown = run("bccd", "--connections", "8").stdout  # an option of earlier versions
    assert images(Path("bccd")) == IMAGES
    assert "licence MIT" in shown
    assert "bccd is in bccd, its licence in LICENCE.txt there. Next: detrkit data check bccd" in shown
    again = run("bccd").stdout
    assert "all is complete in bccd (10 files)" in again
    assert "10 files, 300 kB, was there" in again


def test_the_folder_can_be_named_and_several_sets_get_folders_in_it(hosted: Hosted):
    run("bccd", "--out", "cells")
    assert images(Path("cells")) == IMAGES
    run("bccd", "other", "--out", "all")
    assert images(Path("all/bccd")) == images(Path("all/other")) == IMAGES


def test_the_result_is_there_for_programs(hosted: Hosted):
    result = run("bccd", "--json", "--keep-archives")
    rows = json.loads(result.stdout)
    assert rows[0]["folder"] == "bccd"
    assert rows[0]["parts"]["all"]["files"] == 10
    assert rows[0]["parts"]["all"]["archives"][0]["sha256"] == hosted.sha256
    assert "licence MIT" in result.stderr
    assert Path("bccd/archives/set.zip").read_bytes() == hosted.content


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a data set, such as bccd; see all with: detrkit data fetch --list"),
        (["bccd", "imagenet", "--list"], "there is no data set 'imagenet' to fetch; known are coco-2017"),
        (["balloon"], "balloon is fetched no longer; get it from https://github.com/matterport/Mask_RCNN"),
        (["bccd", "--part", "train"], "bccd has no part 'train'; it has all"),
    ],
)
def test_asked_wrongly_exits_with_2(hosted: Hosted, arguments: list[str], message: str):
    assert f"error: {message}" in run(*arguments, code=2).stderr
    assert not Path("bccd").exists()


def start() -> subprocess.Popen[str]:
    """The command in a process of its own, with the small data set in its catalogue."""
    archive = CATALOGUE["bccd"].parts["all"].archives[0]
    code = f"""
import msgspec, signal
from detrkit.curation.fetch import CATALOGUE, Archive, Part
from detrkit.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell in the background takes away
archive = Archive(url={archive.url!r}, root="images", sha256={archive.sha256!r})
parts = {{"all": Part(summary="images", archives=(archive,))}}
CATALOGUE["bccd"] = msgspec.structs.replace(CATALOGUE["bccd"], parts=parts)
main()
"""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", code, "data", "fetch", "bccd"]
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env={**os.environ})


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)], ids=str)
def test_a_stopped_fetch_is_gone_on_with_by_the_same_command(hosted: Hosted, number: int, code: int):
    partial = Path("bccd/.detrkit-fetch/set.zip.part")
    hosted.pause_s = 0.02
    process = start()
    end = time.monotonic() + 30
    while not (partial.exists() and partial.stat().st_size > 60_000):
        assert time.monotonic() < end, "it did not begin"
        time.sleep(0.01)
    process.send_signal(number)
    _out, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    if number == signal.SIGINT:
        assert "stopped; what was fetched is kept in bccd; the same command goes on with it" in err
    assert not Path("bccd/images").exists()
    time.sleep(0.1)  # the server notices that nobody listens
    kept, hosted.served, hosted.pause_s = partial.stat().st_size, 0, 0.0
    assert 60_000 < kept < len(hosted.content)
    shown = run("bccd").stdout
    assert "going on after" in shown
    assert hosted.served == len(hosted.content) - kept
    assert images(Path("bccd")) == IMAGES
    assert not Path("bccd/.detrkit-fetch").exists()


@pytest.mark.parametrize("more", [(), ("--keep-archives",)])
def test_foreign_files_under_every_name_stay(hosted: Hosted, tmp_path: Path, more: tuple[str, ...]):
    """One alone, all together, and those that came after a fetch that was stopped."""
    run("bccd", "--out", "first", *more)
    names = [path.relative_to("first") for path in Path("first").rglob("*") if path.is_file()]
    shown = [name for name in names if not name.parts[0].startswith(".")]
    for number, planted in enumerate([shown, shown[:1], shown[-1:]]):
        out = Path(f"out-{number}")
        for name in planted:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_bytes(b"precious")
        before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
        for begun in (False, True):
            if begun:
                (out / ".detrkit-fetch").mkdir(exist_ok=True)
            CliRunner().invoke(app, ["data", "fetch", "bccd", "--out", str(out), *more])
            assert {path: path.read_bytes() for path in before} == before
