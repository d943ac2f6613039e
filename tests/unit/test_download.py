"""Downloads from a server that cuts, stalls, forgets and lies."""

from __future__ import annotations

import dataclasses
import hashlib
import random
import resource
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from detrkit import download as module
from detrkit.download import Retry, cache_dir, download, download_weights
from detrkit.errors import DownloadError, WeightsError
from tests.support.web_server import Hosted, Server

CONTENT = random.Random(0).randbytes(400_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MD5 = hashlib.md5(CONTENT).hexdigest()
QUICK = Retry(attempts=3, first_wait_s=0.01, timeout_s=5.0)
PART = ["set.zip.part", "set.zip.part.version"]


class Desk:
    """Where a test downloads to, and what was said."""

    def __init__(self, folder: Path, server: Server):
        self.folder, self.path, self.server = folder, folder / "set.zip", server
        self.said: list[str] = []
        self.reports: list[tuple[str, int, int | None]] = []

    def get(self, retry: Retry = QUICK, url: str = "", **more: Any) -> bytes:
        def report(*what: Any) -> None:
            self.reports.append(what)

        url = url or self.server.address("set.zip")
        download(url, self.path, retry=retry, say=self.said.append, report=report, **more)
        return self.path.read_bytes()

    def host(self, content: bytes = CONTENT, **how: Any) -> Hosted:
        return self.server.host("set.zip", content, **how)

    def begin(self, **more: Any) -> int:
        """Download until the server goes away for good; returns the number of bytes that are kept."""
        hosted = self.server.files["set.zip"]
        hosted.cuts = [150_000] + [0] * 20
        with pytest.raises(DownloadError, match=r"3 times in a row\. What was fetched is kept"):
            self.get(**more)
        hosted.cuts, hosted.served = [], 0
        assert self.names() == PART
        return (self.folder / PART[0]).stat().st_size

    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())

    def heard(self, text: str) -> int:
        return sum(text in line for line in self.said)


@pytest.fixture
def desk(tmp_path: Path, web_server: Server) -> Desk:
    return Desk(tmp_path, web_server)


def test_a_file_is_checked_and_gets_its_name(desk: Desk):
    hosted = desk.host()
    assert desk.get(sha256=SHA256, md5=MD5, size=len(CONTENT)) == CONTENT
    assert len(hosted.requests) == 1
    assert hosted.encodings == {"identity"}
    assert desk.names() == ["set.zip"]
    assert ("fetching set.zip", len(CONTENT), len(CONTENT)) in desk.reports
    assert ("checking set.zip", len(CONTENT), len(CONTENT)) in desk.reports


def test_a_begun_file_is_gone_on_with_and_nothing_is_fetched_twice(desk: Desk):
    hosted = desk.host()
    kept = desk.begin()
    assert 100_000 < kept < len(CONTENT)
    assert desk.get(sha256=SHA256) == CONTENT
    assert hosted.served == len(CONTENT) - kept
    assert hosted.conditions[-1] == '"v1"'
    assert desk.heard("going on after")
    assert desk.names() == ["set.zip"]


def test_cut_connections_are_taken_up_again_and_failures_count_only_in_a_row(desk: Desk):
    desk.host(cuts=[5_000, 0, 29_999, 1, 12_345, 4_000, 4_000])
    assert desk.get(sha256=SHA256) == CONTENT
    assert desk.heard("the connection was cut") == 7


def test_a_silent_server_counts_as_a_cut(desk: Desk):
    desk.host(silences=[100_000])
    assert desk.get(dataclasses.replace(QUICK, timeout_s=0.3), sha256=SHA256) == CONTENT
    assert desk.heard("the server fell silent; trying again")


def test_a_busy_server_is_asked_again_after_the_wait_it_asks_for(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    waits: list[float] = []
    monkeypatch.setattr(module.time, "sleep", waits.append)
    desk.host(statuses=[(429, {"Retry-After": "7"}), (503, {})])
    assert desk.get() == CONTENT
    assert waits == [7.0, 0.02]
    desk.host(statuses=[(503, {"Retry-After": "7200"})])
    desk.path.unlink()
    with pytest.raises(DownloadError, match=r"503 .*asks to wait 7,200 s"):
        desk.get()


def test_a_server_that_is_not_there_is_an_error_that_says_what_to_do(desk: Desk):
    with pytest.raises(DownloadError, match=r"3 times in a row.*run the same command again.*and bring it"):
        desk.get(url="http://127.0.0.1:9/set.zip", by_hand="bring it")
    with pytest.raises(DownloadError, match="is there a network"):
        desk.get(url="http://no-such-host.invalid/set.zip")


@pytest.mark.parametrize("length", [True, False])
def test_a_server_without_ranges_is_read_in_one_go(desk: Desk, length: bool):
    hosted = desk.host(ranges=False, length=length)
    assert desk.get(sha256=SHA256) == CONTENT
    assert hosted.served == len(CONTENT)


def test_a_file_that_changed_between_two_runs_starts_over(desk: Desk):
    desk.host()
    desk.begin()
    changed = CONTENT[::-1]
    desk.host(changed, etag='"v2"')
    assert desk.get() == changed
    assert desk.heard("starting over")


@pytest.mark.parametrize(("hashed", "goes_on"), [(False, False), (True, True)])
def test_without_a_validator_only_a_hash_lets_a_file_go_on(desk: Desk, hashed: bool, goes_on: bool):
    hosted = desk.host(etag=None, modified=None)
    more = {"sha256": SHA256} if hashed else {}
    kept = desk.begin(**more)
    assert desk.get(**more) == CONTENT
    assert hosted.served == len(CONTENT) - (kept if goes_on else 0)


def test_a_whole_file_that_was_killed_before_its_name_is_not_fetched_again(desk: Desk):
    hosted = desk.host()
    desk.begin()
    (desk.folder / PART[0]).write_bytes(CONTENT)
    assert desk.get(sha256=SHA256) == CONTENT
    assert hosted.served == 0


@pytest.mark.parametrize("what", [{"sha256": "0" * 64}, {"md5": "0" * 32}])
def test_a_wrong_hash_leaves_nothing_behind(desk: Desk, what: dict[str, str]):
    hosted = desk.host()
    with pytest.raises(DownloadError, match=r"its (SHA-256|MD5) is .*, expected 000"):
        desk.get(**what)
    assert len(hosted.requests) == 1
    assert desk.names() == []


def test_another_size_than_the_published_one_is_refused_before_it_is_fetched(desk: Desk):
    desk.host()
    with pytest.raises(DownloadError, match="the server has 400,000 bytes, expected 399,999"):
        desk.get(size=399_999)
    assert desk.names() == []


def test_damage_in_what_an_earlier_run_left_is_found_and_fetched_anew(desk: Desk):
    desk.host()
    kept = desk.begin()
    (desk.folder / PART[0]).write_bytes(bytes(kept))
    assert desk.get(sha256=SHA256) == CONTENT
    assert desk.heard("starting over")


@pytest.mark.parametrize("version", [None, "", "http://elsewhere\n1", "a\nb\nc"])
def test_a_damaged_version_file_starts_over(desk: Desk, version: str | None):
    hosted = desk.host()
    desk.begin()
    (desk.folder / PART[1]).unlink()
    if version is not None:
        (desk.folder / PART[1]).write_text(version)
    assert desk.get() == CONTENT
    assert hosted.served == len(CONTENT)


def test_too_little_space_is_said_before_anything_is_fetched(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    desk.host()
    usage = type("Usage", (), {"free": 100_000})
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _path: usage)
    with pytest.raises(DownloadError, match=r"400 kB are needed and 100 kB are free"):
        desk.get()
    assert desk.names() == []


def test_a_full_disk_is_said_and_what_was_fetched_is_gone_on_with(desk: Desk):
    hosted = desk.host()
    process = run_download(desk, limit=150_000)  # a limit on the size of files counts as a full disk
    _out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "DownloadError" in err
    assert "no space left while writing set.zip" in err
    kept, hosted.served = (desk.folder / PART[0]).stat().st_size, 0
    assert desk.get(sha256=SHA256) == CONTENT
    assert hosted.served == len(CONTENT) - kept


def test_a_redirect_is_followed_but_only_to_encrypted_web_addresses(desk: Desk, tmp_path: Path):
    desk.host()
    moved = desk.server.host("moved", b"", statuses=[(302, {"Location": desk.server.address("set.zip")})])
    assert desk.get(url=desk.server.address("moved")) == CONTENT
    secret = tmp_path / "secret"
    secret.write_text("secret")
    for target in (secret.as_uri(), "ftp://127.0.0.1/set.zip"):
        moved.statuses = [(302, {"Location": target})]
        with pytest.raises(DownloadError, match=r"the server answered 302|unknown url type"):
            desk.get(url=desk.server.address("moved"))
    request = urllib.request.Request("https://example.org/set.zip")
    with pytest.raises(DownloadError, match="not followed"):
        module._Redirects().redirect_request(request, None, 302, "Found", {}, "http://example.org/set.zip")
    with pytest.raises(DownloadError, match="unknown url type: ftp"):
        desk.get(url="ftp://127.0.0.1/set.zip")


def test_a_file_address_is_copied_and_checked(desk: Desk, tmp_path: Path):
    source = tmp_path / "source of it.bin"
    source.write_bytes(CONTENT)
    assert desk.get(url=source.as_uri(), sha256=SHA256) == CONTENT
    with pytest.raises(DownloadError, match="No such file"):
        desk.get(url=(tmp_path / "lost.bin").as_uri())


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DETRKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "weights"


def cached() -> list[Path]:
    return [path for path in cache_dir().rglob("[!.]*") if path.is_file()]


def test_weights_are_fetched_once_by_several_processes(web_server: Server, cache: Path):
    hosted = web_server.host(f"detr-r50-{SHA256[:8]}.pth", CONTENT, pause_s=0.001)
    url = web_server.address(f"detr-r50-{SHA256[:8]}.pth")
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(download_weights(url, SHA256))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [cache / f"detr-r50-{SHA256[:8]}.pth"] * 3
    assert found[0].read_bytes() == CONTENT
    assert len(hosted.requests) == 1


def test_the_digits_in_the_name_of_weights_are_their_hash(web_server: Server, cache: Path):
    for digits in (SHA256[:8], "00000000"):
        web_server.host(f"x-{digits}.pth", CONTENT)
    assert download_weights(web_server.address(f"x-{SHA256[:8]}.pth"), progress=False).exists()
    with pytest.raises(WeightsError, match=r"cannot fetch .*SHA-256 is .*expected 00000000.*Nothing of it was"):
        download_weights(web_server.address("x-00000000.pth"), progress=False)
    assert len(cached()) == 1


def test_weights_that_cannot_be_fetched_say_what_to_do(web_server: Server, cache: Path):
    with pytest.raises(WeightsError, match=rf"missing\.pth.*404.*give its path, or put it at {cache}/missing.pth"):
        download_weights(web_server.address("missing.pth"), progress=False)
    with pytest.raises(WeightsError, match="does not end in a file name"):
        download_weights("http://127.0.0.1:9/")
    assert cached() == []


def run_download(desk: Desk, limit: int | None = None) -> subprocess.Popen[str]:
    """The same download in a process of its own; ``limit`` is the largest file that it may write."""
    code = f"""
from pathlib import Path
from detrkit.download import download
download({desk.server.address("set.zip")!r}, Path({str(desk.path)!r}))
"""

    def restrict() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", code], stdout=pipe, stderr=pipe, text=True, preexec_fn=restrict)
