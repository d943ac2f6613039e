"""``detrkit data fetch`` as people call it, against a server on this machine."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

import detrkit.curation.fetch
from detrkit.cli import app
from detrkit.cli.data.fetch import _lines
from detrkit.curation.fetch import CATALOGUE, Archive, DatasetEntry, Part, dataset
from detrkit.curation.fetch.download import kept_bytes
from tests.unit.curation.fetch.server import Hosted, Server, running_server
from tests.unit.curation.fetch.test_dataset import zipped

IMAGES = {f"set/images/{n}.jpg": random.Random(n).randbytes(30_000) for n in range(10)}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with running_server() as running:
        yield running


@pytest.fixture
def hosted(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hosted:
    """One data set of the catalogue, bccd, made small and put on the server; the working directory is empty."""
    hosted = server.host("set.zip", zipped(IMAGES))
    entry = small_entry(server.address("set.zip"), hosted.sha256)
    changed = {**CATALOGUE, "bccd": entry, "other": dataclasses.replace(entry, name="other")}
    monkeypatch.setattr(detrkit.curation.fetch, "CATALOGUE", changed)
    monkeypatch.setattr(dataset, "CATALOGUE", changed)
    monkeypatch.chdir(tmp_path)
    return hosted


def small_entry(url: str, sha256: str) -> DatasetEntry:
    archive = Archive(url, "images", sha256=sha256, hash_source="the test")
    parts = (Part("all", "images", (archive,)),)
    return dataclasses.replace(CATALOGUE["bccd"], parts=parts)


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
        for part in entry.parts:
            assert all(f"{archive.url} ({archive.check})" in shown for archive in part.archives)
    assert "train: training images, 19.3 GB" in shown
    assert "no published hash" in shown


def test_the_list_is_there_for_programs_and_for_some_sets_only():
    rows = json.loads(run("bccd", "penn-fudan", "--list", "--json").stdout)
    assert [row["name"] for row in rows] == ["bccd", "penn-fudan"]
    assert rows[0]["licence"]["name"] == "MIT"
    assert rows[0]["parts"][0]["archives"][0]["file"] == "BCCD_Dataset-d272fb14cdff.zip"
    assert rows[0]["parts"][0]["archives"][0]["commit"] == "d272fb14cdff6e473fafeeeba32aba5f560e9e43"


def test_a_set_is_fetched_into_a_folder_of_its_name(hosted: Hosted):
    shown = run("bccd").stdout
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
        (["imagenet"], "there is no data set 'imagenet' to fetch; known are coco-2017"),
        (["bccd", "imagenet", "--list"], "there is no data set 'imagenet'"),
        (["bccd", "--part", "train"], "bccd has no part 'train'; it has all"),
    ],
)
def test_asked_wrongly_exits_with_2(hosted: Hosted, arguments: list[str], message: str):
    assert f"error: {message}" in run(*arguments, code=2).stderr
    assert not Path("bccd").exists()


def test_a_failure_exits_with_1(hosted: Hosted):
    hosted.content = hosted.content[:-1] + b"x"
    assert "its SHA-256 is" in run("bccd", code=1).stderr
    assert not Path("bccd/images").exists()


def start(hosted: Hosted, server: Server, **options: Any) -> subprocess.Popen[str]:
    """The command in a process of its own, with the small data set in its catalogue."""
    code = f"""
import dataclasses, detrkit.curation.fetch as package
from detrkit.curation.fetch import Archive, CATALOGUE, Part
from detrkit.curation.fetch import dataset
from detrkit.curation.fetch import pieces
from detrkit.curation.fetch import web
from detrkit.cli import main
archive = Archive({server.address("set.zip")!r}, "images", sha256={hosted.sha256!r}, hash_source="the test")
entry = dataclasses.replace(CATALOGUE["bccd"], parts=(Part("all", "images", (archive,)),))
dataset.CATALOGUE = package.CATALOGUE = {{"bccd": entry}}
dataset.Policy = lambda: web.Policy(piece_bytes=40_000, block_bytes=4_000, save_every_s=0.02)
main()
"""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", code, "data", "fetch", "bccd"]
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env={**os.environ}, **options)


def wait_until(happens: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGKILL, -9), (signal.SIGINT, 130)],
    ids=lambda value: value,
)
def test_a_stopped_fetch_is_gone_on_with_by_the_same_command(
    hosted: Hosted, server: Server, number: int, code: int
):
    archive = Path("bccd/.detrkit-fetch/set.zip")
    hosted.pause_s = 0.05
    process = start(hosted, server)
    wait_until(lambda: kept_bytes(archive) > 60_000)
    process.send_signal(number)
    _out, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    if number == signal.SIGINT:
        assert "stopped; what was fetched is kept in bccd; the same command goes on with it" in err
    assert not Path("bccd/images").exists()
    time.sleep(0.2)  # the server notices that nobody listens
    kept, hosted.served, hosted.pause_s = kept_bytes(archive), 0, 0.0
    assert 60_000 < kept < len(hosted.content)
    process = start(hosted, server)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert "going on after" in out
    assert hosted.served == len(hosted.content) - kept + 1  # one byte to ask for the size
    assert images(Path("bccd")) == IMAGES
    assert not Path("bccd/.detrkit-fetch").exists()


def test_without_a_terminal_progress_is_a_line_now_and_then(capsys: pytest.CaptureFixture[str]):
    now = [0.0]
    report = _lines(clock=lambda: now[0])
    for second in range(25):
        now[0] = float(second)
        report("fetching a.zip", 1_000_000 + second * 2_000_000, 101_000_000)
    assert capsys.readouterr().err.splitlines() == [
        "fetching a.zip: 21.0 MB of 101.0 MB, 40 s left, 2.0 MB/s",
        "fetching a.zip: 41.0 MB of 101.0 MB, 30 s left, 2.0 MB/s",
    ]


def test_on_a_terminal_a_bar_shows_speed_and_time_left(hosted: Hosted, monkeypatch: pytest.MonkeyPatch):
    import pty

    hosted.pause_s = 0.01
    read, write = pty.openpty()
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            TERMINAL.format(url=detrkit.curation.fetch.CATALOGUE["bccd"].parts[0].archives[0].url),
        ],
        stderr=write,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    )
    os.close(write)
    shown = b""
    while True:
        try:
            block = os.read(read, 4096)
        except OSError:
            break
        if not block:
            break
        shown += block
    os.close(read)
    assert process.wait(timeout=30) == 0, shown.decode()
    text = shown.decode()
    assert "fetching set.zip" in text
    assert "kB/s" in text or "MB/s" in text
    assert "0:00:0" in text


TERMINAL = """
import dataclasses, detrkit.curation.fetch as package
from detrkit.curation.fetch import Archive, CATALOGUE, Part
from detrkit.curation.fetch import dataset
from detrkit.curation.fetch import web
from detrkit.cli import main
import sys
entry = dataclasses.replace(CATALOGUE["bccd"], parts=(Part("all", "images", (Archive({url!r}, "images"),)),))
dataset.CATALOGUE = package.CATALOGUE = {{"bccd": entry}}
dataset.Policy = lambda: web.Policy(piece_bytes=40_000, block_bytes=4_000)
sys.argv[1:] = ["data", "fetch", "bccd"]
main()
"""
