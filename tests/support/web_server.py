"""A web server on this machine that knows ranges, misbehaves on request, and counts what it serves."""

from __future__ import annotations

import dataclasses
import hashlib
import http.server
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

BLOCK = 4096


@dataclasses.dataclass
class Hosted:
    """A file on the server and how it is served.

    ``cuts``: the next answers stop after so many bytes of their body. ``statuses``: the next requests get these
    instead of the file. ``silences``: the next answers say nothing
    more after so many bytes.
    """

    content: bytes
    etag: str | None = '"v1"'
    modified: str | None = "Mon, 01 Jan 2024 00:00:00 GMT"
    ranges: bool = True
    length: bool = True
    cuts: list[int] = dataclasses.field(default_factory=list)
    silences: list[int] = dataclasses.field(default_factory=list)
    statuses: list[tuple[int, dict[str, str]]] = dataclasses.field(default_factory=list)
    pause_s: float = 0.0
    served: int = 0
    requests: list[str | None] = dataclasses.field(default_factory=list)
    conditions: list[str | None] = dataclasses.field(default_factory=list)
    encodings: set[str | None] = dataclasses.field(default_factory=set)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def md5(self) -> str:
        return hashlib.md5(self.content).hexdigest()


class Server:
    """Its address and its files."""

    def __init__(self, port: int, files: dict[str, Hosted]):
        self.url = f"http://127.0.0.1:{port}"
        self.files = files

    def host(self, name: str, content: bytes, **how: object) -> Hosted:
        self.files[name] = Hosted(content, **how)  # type: ignore[arg-type]
        return self.files[name]

    def address(self, name: str) -> str:
        return f"{self.url}/{name}"

    @property
    def requests(self) -> int:
        return sum(len(file.requests) for file in self.files.values())


@contextmanager
def running_server() -> Iterator[Server]:
    files: dict[str, Hosted] = {}
    lock = threading.Lock()
    closing = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hosted = files.get(self.path.lstrip("/"))
            if hosted is None:
                self.send_error(404)
                return
            with lock:
                hosted.requests.append(self.headers.get("Range"))
                hosted.conditions.append(self.headers.get("If-Range"))
                hosted.encodings.add(self.headers.get("Accept-Encoding"))
                status = hosted.statuses.pop(0) if hosted.statuses else None
            if status is not None:
                self.send_response(status[0])
                for key, value in status[1].items():
                    self.send_header(key, value)
                self.end_headers()
                return
            self._send(hosted)

        def _send(self, hosted: Hosted) -> None:
            content, start, end = hosted.content, 0, len(hosted.content)
            match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
            condition = self.headers.get("If-Range")
            same = condition is None or condition in (hosted.etag, hosted.modified)
            partial = hosted.ranges and match is not None and same
            if partial and match is not None and int(match[1]) >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.end_headers()
                return
            if partial and match is not None:
                start = int(match[1])
                end = min(end, int(match[2]) + 1) if match[2] else end
            self.send_response(206 if partial else 200)
            if partial:
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
            if hosted.length:
                self.send_header("Content-Length", str(end - start))
            for name, value in (("ETag", hosted.etag), ("Last-Modified", hosted.modified)):
                if value:
                    self.send_header(name, value)
            self.end_headers()
            with lock:
                cut = hosted.cuts.pop(0) if hosted.cuts else None
                silence = hosted.silences.pop(0) if hosted.silences else None
            self._write(hosted, content[start:end], cut, silence)

        def _write(self, hosted: Hosted, body: bytes, cut: int | None, silence: int | None) -> None:
            stop = min(x for x in (cut, silence, len(body)) if x is not None)
            for at in range(0, stop, BLOCK):
                block = body[at : min(at + BLOCK, stop)]
                try:
                    self.wfile.write(block)
                    self.wfile.flush()
                except OSError:  # the other side was killed
                    return
                with lock:
                    hosted.served += len(block)
                if hosted.pause_s:
                    time.sleep(hosted.pause_s)
            if silence is not None:
                closing.wait(20)
            self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Quiet(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            pass  # a client that was killed

    with Quiet(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=lambda: running.serve_forever(poll_interval=0.01))
        thread.start()
        try:
            yield Server(running.server_address[1], files)
        finally:
            closing.set()
            running.shutdown()
            thread.join()
