"""Who is let in, and how much of what. Each of these fails if its check is taken out."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from detrkit.errors import UsageError
from detrkit.runtimes.bundle import PreprocessingRecord
from detrkit.serving.guard import HEADERS
from detrkit.serving.settings import ServeSettings, is_loopback, read_token
from tests.support.bundles import SIZE, bundle_files, noise, write_files
from tests.unit.serving.conftest import TOKEN, encoded, error_of

PROTECTED = [
    ("GET", "/v1/models"),
    ("POST", "/v1/detect"),
    ("POST", "/v1/models/mean/reload"),
    ("GET", "/v2"),
    ("GET", "/v2/models/mean"),
    ("POST", "/v2/models/mean/infer"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
    ("GET", "/nothing"),
]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "example.org", "127.0.0.1.example.org", ""])
def test_beyond_loopback_a_token_is_needed(host):
    assert not is_loopback(host)
    with pytest.raises(UsageError, match="DETRKIT_SERVE_TOKEN"):
        ServeSettings(host=host)
    assert ServeSettings(host=host, token=TOKEN).token == TOKEN


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_needs_none(host):
    assert ServeSettings(host=host).token == ""


@pytest.mark.parametrize("token", ["short", "with a space in it 01", "ümlaut-0123456789abcdef", "a\n" + "b" * 20])
def test_a_token_that_can_be_guessed_or_not_be_sent_is_refused(token):
    with pytest.raises(UsageError, match="openssl rand"):
        ServeSettings(token=token)


def test_the_token_comes_from_a_file_or_the_environment_and_is_never_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("DETRKIT_SERVE_TOKEN", f"{TOKEN}\n")
    assert read_token() == TOKEN
    (tmp_path / "token").write_text("from-the-file-0123456789\n")
    assert read_token(tmp_path / "token") == "from-the-file-0123456789"
    assert TOKEN not in repr(ServeSettings(token=TOKEN))
    (tmp_path / "empty").write_text("\n")
    for name in ("empty", "missing"):
        with pytest.raises(UsageError, match=name):
            read_token(tmp_path / name)


@pytest.mark.parametrize("field", ["max_bytes", "deadline_s", "max_waiting", "streams"])
def test_a_limit_of_nothing_is_refused(field):
    with pytest.raises(UsageError, match=field):
        ServeSettings(**{field: 0})


def test_without_the_token_nothing_but_health_is_answered(served):
    client = served(token=TOKEN)
    wrong = ["", TOKEN, f"Basic {TOKEN}", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "Bearer", "Bearer é"]
    for method, path in PROTECTED:
        for value in wrong:
            headers = [(b"Authorization", value.encode())] if value else []
            response = client.request(method, path, headers=headers, content=encoded())
            error_of(response, 401, "unauthorized") if not path.startswith("/v2") else None
            assert response.status_code == 401
            assert response.headers["WWW-Authenticate"] == "Bearer"
    for path in ("/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready"):
        assert client.get(path).status_code == 200
    client.headers["Authorization"] = f"bearer {TOKEN}"
    assert client.post("/v1/detect", content=encoded(), headers={"Host": "example.org"}).status_code == 200


def test_without_a_token_other_names_and_other_origins_are_refused(client):
    """A page of somebody else's may send a browser here, under a name that it has pointed at this machine."""
    for host in ("example.org", "127.0.0.1.example.org", "localhost.example.org:80", "a@example.org", "[::1", ""):
        error_of(client.get("/v1/models", headers={"Host": host}), 403, "forbidden")
    for origin in ("http://example.org", "null", "http://127.0.0.1:9", "file://"):
        error_of(client.post("/v1/models/mean/reload", headers={"Origin": origin}), 403, "forbidden")
    for host in ("localhost:8000", "127.0.0.1", "[::1]:80"):
        headers = {"Host": host, "Origin": f"http://{host}"}
        assert client.get("/v1/models", headers=headers).status_code == 200


def test_every_answer_has_the_headers_of_safety(client):
    for response in (client.get("/health/live"), client.get("/nothing"), client.post("/v1/detect", content=b"x")):
        for name, value in HEADERS.items():
            assert response.headers[name] == value
        policy = response.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "Server" not in response.headers


def test_bytes_are_limited_by_what_is_announced_and_by_what_comes(served):
    client = served(max_bytes=10_000)
    error_of(client.post("/v1/detect", content=b"x" * 10_001), 413, "too_large")
    pieces = (b"x" * 1000 for _ in range(100))
    error_of(client.post("/v1/detect", content=pieces), 413, "too_large")
    lying = client.post("/v1/detect", content=b"x" * 20_000, headers={"Content-Length": "10"})
    error_of(lying, 413, "too_large")
    files = [("a", ("a.png", b"x" * 10_000))]
    error_of(client.post("/v1/detect", files=files), 413, "too_large")
    assert client.post("/v1/detect", content=encoded(noise((20, 20)))).status_code == 200
    assert client.service.gate._bytes == client.service.gate._images == 0


def test_bytes_of_all_requests_together_are_limited(served):
    client = served(max_buffered=5_000)
    response = client.post("/v1/detect", content=b"x" * 6_000)
    error_of(response, 429, "busy")
    assert int(response.headers["Retry-After"]) >= 1


def test_a_body_that_is_too_slow_is_given_up(served):
    client = served(body_s=0.1)

    def slow():
        yield b"x"
        time.sleep(0.3)
        yield b"x"

    error_of(client.post("/v1/detect", content=slow()), 408, "too_slow")


def test_pixels_are_limited_by_the_header_before_anything_is_decoded(served, monkeypatch):
    client = served(max_pixels=60 * 40)
    assert client.post("/v1/detect", content=encoded()).status_code == 200
    decoded = []
    monkeypatch.setattr("detrkit.serving.pictures.decode_pixels", decoded.append)
    message = error_of(client.post("/v1/detect", content=encoded(noise((40, 61)))), 413, "too_large")
    assert "61 x 40" in message
    assert decoded == []


def test_pixels_of_what_a_picture_becomes_are_limited(served, tmp_path):
    """A strip is few pixels, but its short side becomes the model's."""
    free = PreprocessingRecord(SIZE, None, (0.0,) * 3, (1.0,) * 3)
    files = bundle_files(preprocessing=free)
    client = served(write_files(tmp_path / "free", files), max_pixels=20_000)
    assert client.post("/v1/detect", content=encoded()).status_code == 200
    error_of(client.post("/v1/detect", content=encoded(noise((1, 400)))), 413, "too_large")


def test_pictures_of_a_request_are_limited(served):
    client = served(max_images=3)
    files = [("a", ("a.png", encoded()))]
    assert len(client.post("/v1/detect", files=files * 3).json()["images"]) == 3
    error_of(client.post("/v1/detect", files=files * 4), 413, "too_large")


class Blocked:
    """A model that is at work until it is let go."""

    def __init__(self, client):
        self.batcher = client.service.store.models[0].batcher
        self.run = self.batcher._detect
        self.started, self.go = threading.Event(), threading.Event()
        self.batcher._detect = self.detect

    def detect(self, *arguments):
        self.started.set()
        assert self.go.wait(10)
        return self.run(*arguments)


def in_thread(function, *arguments, **options):
    found = []
    thread = threading.Thread(target=lambda: found.append(function(*arguments, **options)))
    thread.start()
    return thread, found


def test_the_queue_is_bounded_and_says_when_to_come_back(served):
    client = served(max_waiting=2, batch_size=1)
    blocked = Blocked(client)
    running = [in_thread(client.post, "/v1/detect", content=encoded()) for _ in range(2)]
    blocked.started.wait(5)
    while client.service.gate._images < 2:
        time.sleep(0.001)
    response = client.post("/v1/detect", content=b"not even read")
    error_of(response, 429, "busy")
    assert int(response.headers["Retry-After"]) >= 1
    assert client.get("/health/live").status_code == 200
    blocked.go.set()
    for thread, found in running:
        thread.join()
        assert found[0].status_code == 200
    error_of(client.post("/v1/detect", files=[("a", ("a.png", encoded()))] * 3), 429, "busy")
    assert client.post("/v1/detect", content=encoded()).status_code == 200


def test_a_request_whose_time_is_over_is_not_run(served):
    client = served(deadline_s=0.15, batch_size=1)
    blocked = Blocked(client)
    first = in_thread(client.post, "/v1/detect", content=encoded())
    blocked.started.wait(5)
    second = in_thread(client.post, "/v1/detect", content=encoded())
    time.sleep(0.3)
    runs = []
    blocked.run = lambda images, sizes, run=blocked.run: runs.append(len(images)) or run(images, sizes)
    blocked.go.set()
    for thread, _ in (first, second):
        thread.join()
    assert first[1][0].status_code == 200
    error_of(second[1][0], 504, "deadline")
    assert runs == [1]


def test_nobody_is_let_in_who_would_wait_for_longer_than_the_deadline(served):
    client = served(deadline_s=1.0, batch_size=1)
    model = client.service.store.models[0]
    model.batcher.seconds_each = 0.5
    client.service.gate._images = 2
    response = client.post("/v1/detect", content=encoded())
    error_of(response, 429, "busy")
    assert response.headers["Retry-After"] == "1"
    client.service.gate._images = 0
    assert client.post("/v1/detect", content=encoded()).status_code == 200


def test_what_nobody_waits_for_any_more_is_not_run(served):
    """A client that goes while its picture waits costs nothing but its place."""
    client = served(batch_size=1)
    blocked = Blocked(client)
    first = in_thread(client.post, "/v1/detect", content=encoded())
    blocked.started.wait(5)
    content = encoded()
    sent = []

    async def gone():
        messages = [{"type": "http.request", "body": content, "more_body": False}]

        async def receive():
            if messages:
                return messages.pop()
            while not blocked.batcher.waiting:
                await asyncio.sleep(0.001)
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        headers = [(b"host", b"localhost")]
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/detect",
            "raw_path": b"/v1/detect",
            "headers": headers,
        }
        scope.update(query_string=b"", root_path="", scheme="http", http_version="1.1", server=None, client=None)
        await client.app(scope, receive, send)

    asyncio.run(gone())
    runs = []
    blocked.run = lambda images, sizes, run=blocked.run: runs.append(len(images)) or run(images, sizes)
    blocked.go.set()
    first[0].join()
    assert sent == []
    assert client.post("/v1/detect", content=content).status_code == 200
    assert runs == [1, 1]
    assert client.service.gate._images == 0
