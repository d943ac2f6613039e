"""Hostile requests cost themselves and nobody else: no failure, no word of the server's own, nothing left."""

from __future__ import annotations

import re
import socket
import tempfile
import threading
import time

import psutil
import pytest

from detrkit.serving import protocol
from tests.support.hostile import picture, post, requests
from tests.unit.serving.conftest import listening

SECRETS = re.compile(rb"Traceback|site-packages|\.py\b|/tmp/|root:x|PIL\.|0x[0-9a-f]{8}")


@pytest.fixture
def address(served):
    client = served(max_bytes=1 << 20, max_pixels=1_000_000)
    with listening(client.service) as url:
        host, port = url.split(":")
        yield client.service, (host, int(port))


def talk(address, content, wait_s=10.0, leave=False):
    """What a server says to these bytes, until it closes, or waits for more."""
    answer = b""
    with socket.create_connection(address, timeout=wait_s) as connection:
        try:
            connection.sendall(content)
            if leave:
                return b""
            while piece := connection.recv(1 << 16):
                answer += piece
        except OSError:  # it has closed before it read all
            pass
    return answer


def status_of(answer):
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0


@pytest.mark.parametrize("every", [8, pytest.param(1, marks=pytest.mark.slow)])
def test_hostile_requests_are_refused_and_the_service_goes_on(address, every, caplog, tmp_path, monkeypatch):
    service, address = address
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    good = post(picture())
    process = psutil.Process()
    assert status_of(talk(address, good)) == 200
    files = process.num_fds()
    wrong, seen, answered = [], 0, 0
    everything = requests()
    assert len(everything) >= 200
    hostile = everything[::every]
    for number, (name, content) in enumerate(hostile):
        answer = talk(address, content, wait_s=0.2)
        status = status_of(answer)
        seen += 1
        answered += status == 200
        if status >= 500 or (status == 0 and answer) or SECRETS.search(answer):
            wrong.append((name, answer[:200]))
        if number % 25 == 0 and status_of(talk(address, good)) != 200:
            wrong.append((name, b"nobody is answered any more"))
    assert wrong == []
    assert seen == len(hostile)
    assert answered < seen / 2  # some are only odd
    assert "Traceback" not in caplog.text
    # those that leave in the middle, many at once
    leaving = [
        threading.Thread(target=talk, args=(address, content[: len(content) * share // 4], 5.0, True))
        for _, content in hostile[::6]
        for share in (1, 3, 4)
    ]
    for thread in leaving:
        thread.start()
    for thread in leaving:
        thread.join()
    assert status_of(talk(address, good)) == 200
    end = time.monotonic() + 5
    while (service.gate._images or service.gate._bytes) and time.monotonic() < end:
        time.sleep(0.01)
    assert service.gate._images == service.gate._bytes == 0
    while process.num_fds() > files and time.monotonic() < end:
        time.sleep(0.01)
    assert process.num_fds() <= files
    assert list(temporary.iterdir()) == []


def test_a_client_that_sends_its_headers_slowly_is_left(address, monkeypatch):
    monkeypatch.setattr(protocol, "HEADERS_S", 0.15)
    start = time.monotonic()
    with socket.create_connection(address[1], timeout=5) as connection:
        connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: ")
        assert connection.recv(1) == b""
    with socket.create_connection(address[1], timeout=5) as connection:
        assert connection.recv(1) == b""
    assert time.monotonic() - start < 3
    good = post(picture())
    with socket.create_connection(address[1], timeout=5) as connection:
        connection.sendall(good[:200])  # its headers are whole: the body has a time of its own
        time.sleep(0.3)
        connection.sendall(good[200:])
        assert connection.recv(9) == b"HTTP/1.1 "


def test_many_slow_clients_do_not_hold_up_others(address):
    half = post(picture())[:300]
    slow = [socket.create_connection(address[1]) for _ in range(50)]
    for connection in slow:
        connection.sendall(half)
    for _ in range(3):
        assert status_of(talk(address[1], post(b"", "/v1/detect"))) == 400
    for connection in slow:
        connection.close()
