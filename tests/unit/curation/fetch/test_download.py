"""One file over HTTP, from a server that cuts, stalls, forgets and lies."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from detrkit.curation.fetch import Archive, Policy, pieces
from detrkit.curation.fetch.download import Digests, download, kept_bytes
from detrkit.curation.fetch.pieces import Talk
from detrkit.curation.fetch.web import TryAgainError, _Redirects, _retry_after, ask
from detrkit.errors import DataError
from tests.unit.curation.fetch.server import Hosted, Server

CONTENT = random.Random(0).randbytes(200_000)
QUICK = Policy(
    attempts=3, first_wait_s=0.01, timeout_s=5.0, piece_bytes=30_000, block_bytes=4_000, save_every_s=0.02
)


class Desk:
    """Where a test fetches to, and what was said."""

    def __init__(self, folder: Path, server: Server):
        self.path = folder / "set.zip"
        self.server = server
        self.said: list[str] = []
        self.reports: list[tuple[str, int, int | None]] = []

    def fetch(self, policy: Policy = QUICK, connections: int = 3, **archive: Any) -> Digests:
        described = Archive(self.server.address("set.zip"), "root", **archive)
        talk = Talk(self.said.append, lambda *what: self.reports.append(what))
        return download(described, self.path, connections=connections, policy=policy, talk=talk)

    def names(self) -> list[str]:
        return sorted(path.name for path in self.path.parent.iterdir())


@pytest.fixture
def desk(tmp_path: Path, server: Server) -> Desk:
    return Desk(tmp_path, server)


def host(desk: Desk, **how: Any) -> Hosted:
    return desk.server.host("set.zip", CONTENT, **how)


def begin(desk: Desk, at_least: int = 1, **archive: Any) -> int:
    """Fetch until the server goes away for good; returns what of the file is kept."""
    hosted = desk.server.files["set.zip"]
    hosted.cuts = [20_000] * 2 + [0] * 20
    with pytest.raises(DataError, match="3 times in a row"):
        desk.fetch(**archive)
    hosted.cuts = []
    hosted.served = 0
    assert desk.names() == ["set.zip.part", "set.zip.part.json"]
    kept = kept_bytes(desk.path)
    assert at_least <= kept < len(CONTENT)
    return kept


def test_a_file_comes_in_pieces_over_several_connections(desk: Desk):
    hosted = host(desk)
    digests = desk.fetch(sha256=hosted.sha256, md5=hosted.md5, size=len(CONTENT))
    assert desk.path.read_bytes() == CONTENT
    assert digests == Digests(hosted.sha256, hosted.md5, len(CONTENT))
    assert len(hosted.requests) == 1 + 7  # asking for the size, and 7 pieces of 30,000 bytes
    assert hosted.conditions == [None] + ['"v1"'] * 7
    assert hosted.encodings == {"identity"}
    assert desk.names() == ["set.zip"]
    assert ("fetching set.zip", len(CONTENT), len(CONTENT)) in desk.reports


def test_a_begun_file_is_gone_on_with_and_nothing_is_fetched_twice(desk: Desk):
    hosted = host(desk)
    kept = begin(desk, at_least=30_000)
    desk.fetch(sha256=hosted.sha256)
    assert desk.path.read_bytes() == CONTENT
    assert hosted.served == len(CONTENT) - kept + 1  # and the one byte of asking for the size
    assert any("going on after" in line for line in desk.said)
    assert desk.names() == ["set.zip"]


def test_cut_connections_are_taken_up_again(desk: Desk):
    hosted = host(desk, cuts=[5_000, 0, 29_999, 1, 12_345])
    desk.fetch(sha256=hosted.sha256)
    assert desk.path.read_bytes() == CONTENT
    assert sum("the connection was cut; trying again" in line for line in desk.said) == 5


def test_failures_count_only_in_a_row(desk: Desk):
    hosted = host(desk, cuts=[4_000] * 20)
    desk.fetch(connections=1, sha256=hosted.sha256)
    assert desk.path.read_bytes() == CONTENT


def test_a_silent_server_counts_as_a_cut(desk: Desk):
    hosted = host(desk, silences=[10_000])
    desk.fetch(policy=dataclasses.replace(QUICK, timeout_s=0.3), sha256=hosted.sha256)
    assert desk.path.read_bytes() == CONTENT
    assert any("the server fell silent; trying again" in line for line in desk.said)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again_after_the_wait_it_asks_for(
    desk: Desk, status: int, monkeypatch: pytest.MonkeyPatch
):
    waits: list[float] = []
    monkeypatch.setattr(pieces.time, "sleep", waits.append)
    host(desk, statuses=[(status, {"Retry-After": "7"}), (status, {})])
    desk.fetch()
    assert waits == [7.0, 0.02]
    assert desk.path.read_bytes() == CONTENT


def test_a_server_that_asks_for_hours_is_not_waited_for(desk: Desk):
    host(desk, statuses=[(503, {"Retry-After": "7200"})])
    with pytest.raises(DataError, match=r"asks to wait 7,200 s; run the same command again then"):
        desk.fetch()


def test_retry_after_may_be_a_date():
    asked = _retry_after("Fri, 31 Dec 2999 23:59:59 GMT")
    assert asked is not None
    assert asked > 1e9
    assert _retry_after("Mon, 01 Jan 2001 00:00:00 GMT") == 0
    assert _retry_after("soon") is None
    assert Policy().wait_s(1, 20.0) == 20.0
    assert Policy(longest_wait_s=10).wait_s(30, None) == 10.0


def test_an_address_without_the_file_is_an_error_at_once(desk: Desk):
    desk.server.host("other.zip", b"")
    with pytest.raises(DataError, match=r"answered 404 .*expected the file; the address may have moved"):
        desk.fetch()
    assert desk.said == []
    assert desk.names() == []


def test_a_server_that_is_not_there_is_an_error_that_says_what_to_do(tmp_path: Path):
    archive = Archive("http://127.0.0.1:9/set.zip", "root")
    with pytest.raises(DataError, match=r"3 times in a row.*put it as set\.zip into the folder archives"):
        download(archive, tmp_path / "set.zip", connections=1, policy=QUICK, talk=Talk(print, lambda *what: None))


@pytest.mark.parametrize("length", [True, False])
def test_a_server_without_ranges_is_read_in_one_go(desk: Desk, length: bool):
    hosted = host(desk, ranges=False, length=length)
    desk.fetch(sha256=hosted.sha256)
    assert desk.path.read_bytes() == CONTENT
    assert hosted.served == len(CONTENT)
    assert desk.names() == ["set.zip"]


def test_a_cut_on_a_server_without_ranges_starts_the_file_over(desk: Desk):
    hosted = host(desk, ranges=False, cuts=[70_000])
    desk.fetch(sha256=hosted.sha256)
    assert desk.path.read_bytes() == CONTENT
    assert any("cut after 70,000 of 200,000 bytes; trying again" in line for line in desk.said)


def test_a_server_that_gives_no_ranges_any_more_starts_the_file_over(desk: Desk):
    hosted = host(desk)
    begin(desk)
    hosted.ranges = False
    desk.fetch(sha256=hosted.sha256)
    assert desk.path.read_bytes() == CONTENT
    assert any("this server cannot go on in the middle" in line for line in desk.said)


def test_a_file_that_changed_between_two_runs_starts_over(desk: Desk):
    host(desk)
    begin(desk)
    changed = CONTENT[::-1]
    hosted = desk.server.host("set.zip", changed, etag='"v2"')
    desk.fetch(sha256=hosted.sha256)
    assert desk.path.read_bytes() == changed
    assert any("has changed since it was begun; starting over" in line for line in desk.said)


def test_a_file_that_changes_while_it_is_fetched_starts_over(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    hosted = host(desk)
    changed = CONTENT[::-1]
    write = pieces._write_all

    def write_and_change(*what: Any) -> None:
        write(*what)
        hosted.content, hosted.etag = changed, '"v2"'

    monkeypatch.setattr(pieces, "_write_all", write_and_change)
    desk.fetch(connections=1)
    assert desk.path.read_bytes() == changed
    assert any("changed while it was fetched; starting over" in line for line in desk.said)


def test_a_file_that_keeps_changing_is_given_up(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    hosted = host(desk)
    write = pieces._write_all

    def write_and_change(*what: Any) -> None:
        write(*what)
        hosted.etag = f'"{time.monotonic_ns()}"'

    monkeypatch.setattr(pieces, "_write_all", write_and_change)
    with pytest.raises(DataError, match=r"changed while it was fetched\. Nothing of it was kept"):
        desk.fetch()
    assert desk.names() == []


def test_without_a_validator_or_a_hash_a_begun_file_starts_over(desk: Desk):
    hosted = host(desk, etag=None, modified=None)
    begin(desk)
    desk.fetch()
    assert hosted.served == len(CONTENT) + 1
    assert desk.path.read_bytes() == CONTENT


def test_without_a_validator_a_published_hash_is_enough_to_go_on(desk: Desk):
    hosted = host(desk, etag=None, modified=None)
    kept = begin(desk, sha256=hosted.sha256)
    desk.fetch(sha256=hosted.sha256)
    assert hosted.served == len(CONTENT) - kept + 1


def test_a_weak_entity_tag_is_not_used_as_a_condition(desk: Desk):
    hosted = host(desk, etag='W/"v1"')
    desk.fetch(sha256=hosted.sha256)
    assert desk.path.read_bytes() == CONTENT
    assert set(hosted.conditions) == {None, hosted.modified}


@pytest.mark.parametrize("wrong", [{"sha256": "0" * 64}, {"md5": "0" * 32}])
def test_a_wrong_hash_leaves_nothing_behind(desk: Desk, wrong: dict[str, str]):
    host(desk)
    with pytest.raises(DataError, match=r"its (SHA-256|MD5) is [0-9a-f]+, expected 0+\. Nothing of it was kept"):
        desk.fetch(**wrong)
    assert desk.names() == []


def test_another_size_than_published_is_an_error_before_anything_is_fetched(desk: Desk):
    hosted = host(desk)
    with pytest.raises(DataError, match="the server has 200,000 bytes, expected 199,999"):
        desk.fetch(size=199_999)
    assert hosted.served <= 1
    assert desk.names() == []


def test_damage_in_what_an_earlier_run_left_is_found_and_fetched_anew(desk: Desk):
    hosted = host(desk)
    begin(desk, at_least=20_000)
    partial = desk.path.with_name("set.zip.part")
    content = bytearray(partial.read_bytes())
    done = json.loads(desk.path.with_name("set.zip.part.json").read_text())["done"]
    first = next(piece for piece, count in enumerate(done) if count)
    content[first * QUICK.piece_bytes] ^= 1
    partial.write_bytes(content)
    desk.fetch(sha256=hosted.sha256)
    assert desk.path.read_bytes() == CONTENT
    assert any("starting over" in line for line in desk.said)


@pytest.mark.parametrize("state", ["", "{}", '{"url": 3}', "[1]"])
def test_a_damaged_state_starts_over(desk: Desk, state: str):
    hosted = host(desk)
    begin(desk)
    desk.path.with_name("set.zip.part.json").write_text(state)
    desk.fetch(sha256=hosted.sha256)
    assert desk.path.read_bytes() == CONTENT


def test_a_full_disk_is_said_and_what_was_fetched_is_gone_on_with(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    hosted = host(desk)
    write, written = pieces._write_all, [0]

    def write_until_full(write_to: Any, block: bytes) -> None:
        written[0] += len(block)
        if written[0] > 90_000:
            raise full
        write(write_to, block)

    def new_file_unless_full(path: Path) -> Any:
        if written[0] > 90_000:
            raise full
        return new_file(path)

    full, new_file = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), pieces.atomic_file
    with monkeypatch.context() as patch:
        patch.setattr(pieces, "_write_all", write_until_full)
        patch.setattr(pieces, "atomic_file", new_file_unless_full)
        with pytest.raises(DataError, match=r"no space left while writing set\.zip .*free some space and run"):
            desk.fetch(sha256=hosted.sha256)
    assert desk.names() == ["set.zip.part", "set.zip.part.json"]
    kept, hosted.served = kept_bytes(desk.path), 0
    assert kept > 70_000  # what is done was written down although there was no space for a new file
    desk.fetch(sha256=hosted.sha256)
    assert desk.path.read_bytes() == CONTENT
    assert hosted.served == len(CONTENT) - kept + 1


def test_too_little_space_is_said_before_anything_is_fetched(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    hosted = host(desk)
    usage = type("Usage", (), {"free": 100_000})
    monkeypatch.setattr(pieces.shutil, "disk_usage", lambda _path: usage)
    with pytest.raises(DataError, match=r"kB are needed and 100 kB are free"):
        desk.fetch()
    assert hosted.served <= 1
    assert not desk.path.exists()


def test_a_limit_of_the_system_on_file_size_is_said_like_a_full_disk(desk: Desk):
    host(desk)
    process = run_fetch(desk, limit=100_000)
    _out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "DataError" in err
    assert "no space left while writing set.zip" in err
    assert not desk.path.exists()


def test_a_killed_run_is_gone_on_with_from_where_it_was(desk: Desk):
    hosted = host(desk, pause_s=0.05)
    process = run_fetch(desk)
    wait_until(lambda: kept_bytes(desk.path) > 40_000)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    process.communicate()
    time.sleep(0.2)  # the answers under way have ended
    assert desk.names() in (
        ["set.zip.part", "set.zip.part.json"],
        # Killed while the state was being replaced: the new one lies beside it, unnamed.
        [*[name for name in desk.names() if name.endswith(".tmp")], "set.zip.part", "set.zip.part.json"],
    )
    kept = kept_bytes(desk.path)
    assert 40_000 < kept < len(CONTENT)
    hosted.pause_s, hosted.served = 0.0, 0
    desk.fetch(sha256=hosted.sha256)
    assert desk.path.read_bytes() == CONTENT
    assert hosted.served == len(CONTENT) - kept + 1


def test_only_http_addresses_are_fetched(tmp_path: Path, server: Server):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    with pytest.raises(DataError, match="is not an http or https address"):
        ask(secret.as_uri(), {}, 1.0)
    server.host("away", b"", statuses=[(302, {"Location": secret.as_uri()})])
    with pytest.raises(DataError):
        ask(server.address("away"), {}, 1.0)


def test_a_redirect_is_followed_but_not_to_an_unencrypted_address(server: Server):
    server.host("set.zip", b"content")
    server.host("moved", b"", statuses=[(302, {"Location": server.address("set.zip")})])
    with ask(server.address("moved"), {}, 5.0) as response:
        assert response.read() == b"content"
    request = pieces.ask.__globals__["urllib"].request.Request("https://example.org/set.zip")
    with pytest.raises(DataError, match="not encrypted; not followed"):
        _Redirects().redirect_request(request, None, 302, "Found", {}, "http://example.org/set.zip")


def test_a_range_that_was_not_asked_for_is_refused(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    host(desk)
    monkeypatch.setattr(pieces, "first_byte", lambda _response: 17)
    with pytest.raises(DataError, match="another range than was asked for"):
        desk.fetch()
    assert not desk.path.exists()


def test_no_connection_is_left_behind(desk: Desk):
    host(desk)
    before = threading.active_count()
    desk.fetch()
    wait_until(lambda: threading.active_count() <= before + 1)
    assert not [thread for thread in threading.enumerate() if "_work" in thread.name]


def test_the_error_of_a_lost_name_asks_for_the_network():
    with pytest.raises(TryAgainError, match="is there a network"):
        ask("http://no-such-host.invalid/set.zip", {}, 5.0)


def wait_until(happens: Any, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def run_fetch(desk: Desk, limit: int | None = None) -> subprocess.Popen[str]:
    """The same download in a process of its own; ``limit`` is the largest file that it may write."""
    code = f"""
from pathlib import Path
from detrkit.curation.fetch import Archive, Policy
from detrkit.curation.fetch.download import download
from detrkit.curation.fetch.pieces import Talk
download(
    Archive({desk.server.address("set.zip")!r}, "root"),
    Path({str(desk.path)!r}),
    connections=2,
    policy={QUICK!r},
    talk=Talk(print, lambda *what: None),
)
"""

    def restrict() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", code], stdout=pipe, stderr=pipe, text=True, preexec_fn=restrict)
