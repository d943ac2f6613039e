"""A server in a process of its own, and clients that load it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

COMMAND = (sys.executable, "-c", "from detrkit.cli import main; main()", "serve", "--port", "0")


class ServerProcess:
    """``detrkit serve`` on a free port, once it answers.

    Args:
        arguments: Bundles and options.
        log: File for its log.
    """

    def __init__(self, *arguments: str | Path, log: Path, environment: dict[str, str] | None = None):
        self.log = log
        self._files = [log.open("wb"), log.with_suffix(".err").open("wb")]
        command = [*COMMAND, *map(str, arguments)]
        out, err = self._files
        self.process = subprocess.Popen(
            command, stdout=out, stderr=err, env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
        )
        end = time.monotonic() + 120
        while not (started := [line for line in self.lines() if line["event"] == "serving"]):
            assert self.process.poll() is None, log.with_suffix(".err").read_text()
            assert time.monotonic() < end
            time.sleep(0.02)
        self.port = int(started[0]["url"].rpartition(":")[2])

    def lines(self) -> list[dict[str, Any]]:
        """What the log says so far."""
        text = self.log.read_text(encoding="utf-8")
        return [json.loads(line) for line in text.split("\n")[:-1]]

    def connect(self, timeout: float = 30.0) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def stop(self) -> int:
        """Tell it to stop, and return its exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        code = self.process.wait(timeout=60)
        for file in self._files:
            file.close()
        return code


@contextlib.contextmanager
def running(*arguments: str | Path, log: Path, **options: Any) -> Iterator[ServerProcess]:
    """A server that is gone afterwards."""
    server = ServerProcess(*arguments, log=log, **options)
    try:
        yield server
    finally:
        server.stop()


class Load:
    """Clients that ask again and again, and remember every answer by the id of its request.

    Args:
        server: Whom they ask.
        content: Picture that they send.
        clients: Clients at once.
    """

    def __init__(self, server: ServerProcess, content: bytes, clients: int = 4):
        self.answers: dict[str, tuple[int, dict[str, Any]]] = {}
        self._server = server
        self._content = content
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(clients)]
        for thread in self._threads:
            thread.start()

    def wait_for(self, count: int) -> None:
        end = time.monotonic() + 60
        while len(self.answers) < count:
            assert time.monotonic() < end, f"{len(self.answers)} answers"
            time.sleep(0.005)

    def stop(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, client: int) -> None:
        """Ask until told to stop; where the connection ends without an answer, ask over another."""
        connection, number = self._server.connect(), 0
        while not self._stopped.is_set():
            request_id, number = f"c{client}-{number}", number + 1
            try:
                headers = {"X-Request-ID": request_id}
                connection.request("POST", "/v1/detect?threshold=0", self._content, headers)
                response = connection.getresponse()
                self.answers[request_id] = response.status, json.loads(response.read())
            except (OSError, http.client.HTTPException):
                connection.close()
                connection = self._server.connect()
                if self._server.process.poll() is not None:
                    return
                time.sleep(0.01)
        connection.close()
