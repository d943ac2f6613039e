"""Fetching over HTTP, against a server on this machine."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from detrkit.errors import WeightsError
from detrkit.families.download import cache_dir, download_weights

CONTENT = bytes(range(256)) * 40
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    requests: int = 0

    def do_GET(self) -> None:
        type(self).requests += 1
        if "missing" in self.path:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[:100] if "cut" in self.path else CONTENT)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("DETRKIT_CACHE", str(tmp_path / "cache"))
    Handler.requests = 0
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()
        thread.join()


def kept_files() -> list[Path]:
    return [path for path in cache_dir().rglob("*") if path.is_file()]


def test_a_file_is_fetched_once_and_checked(server: str, capsys: pytest.CaptureFixture[str]):
    path = download_weights(f"{server}/detr-r50-{SHA256[:8]}.pth", SHA256)
    assert path.read_bytes() == CONTENT
    assert "100%" in capsys.readouterr().err  # a progress bar was shown
    assert download_weights(f"{server}/detr-r50-{SHA256[:8]}.pth", SHA256) == path
    assert Handler.requests == 1


def test_the_digits_in_the_file_name_are_the_hash(server: str):
    assert download_weights(f"{server}/x-{SHA256[:8]}.pth", progress=False).exists()
    with pytest.raises(WeightsError, match="damaged or not the published file"):
        download_weights(f"{server}/x-00000000.pth", progress=False)


@pytest.mark.parametrize("name", ["wrong.pth", "cut.pth"])
def test_a_wrong_or_cut_off_file_is_not_kept(server: str, name: str):
    wanted = SHA256 if name == "cut.pth" else "ab" * 32
    with pytest.raises(WeightsError):
        download_weights(f"{server}/{name}", wanted, progress=False)
    assert kept_files() == []


def test_an_address_that_answers_no_says_what_to_do(server: str):
    with pytest.raises(WeightsError, match=r"cannot fetch .*missing\.pth: .*Without a network"):
        download_weights(f"{server}/missing.pth", progress=False)


def test_no_server_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DETRKIT_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match="cannot fetch"):
        download_weights("http://127.0.0.1:9/x.pth", progress=False)
    assert kept_files() == []


def test_an_address_without_a_file_name_is_refused():
    with pytest.raises(WeightsError, match="does not end in a file name"):
        download_weights("http://127.0.0.1:9/")
