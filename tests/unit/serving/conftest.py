"""A server in this process around the tiny bundle, whose scores are the mean of a picture's pixels."""

from __future__ import annotations

import contextlib
import io
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("onnx", reason="the extra export is not installed")
pytest.importorskip("onnxruntime", reason="the extra runtime is not installed")

import uvicorn
from starlette.testclient import TestClient

from detrkit.serving.app import make_app
from detrkit.serving.server import server_config
from detrkit.serving.service import Service
from detrkit.serving.settings import ServeSettings
from tests.support.bundles import bundle_files, noise, write_files

FIXED: dict[str, Any] = {"streams": 1, "batch_size": 4, "threads": 1}
TOKEN = "a-token-of-the-tests-0123456789"


def encoded(image: np.ndarray | None = None, file_format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(noise((40, 60)) if image is None else image).save(file, file_format, **options)
    return file.getvalue()


class Served(TestClient):
    """A client, and the service that answers it."""

    service: Service


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_files(tmp_path / "bundle", bundle_files())


@pytest.fixture
def served(bundle: Path) -> Iterator[Callable[..., Served]]:
    """Starts servers, by settings."""
    with contextlib.ExitStack() as stack:

        def start(
            *bundles: Any, page: Path | None = None, base: str = "http://127.0.0.1", **settings: Any
        ) -> Served:
            service = Service(bundles or [bundle], ServeSettings(**{**FIXED, **settings}))
            app = make_app(service, page) if page else make_app(service)
            client = Served(app, base_url="http://127.0.0.1")
            client.service = service
            stack.enter_context(client)
            return client

        yield start


@pytest.fixture
def client(served: Callable[..., Served]) -> Served:
    return served()


@contextlib.contextmanager
def listening(service: Service) -> Iterator[str]:
    """Address of a server in a thread that listens on a real port, for clients that know no other way."""
    server = uvicorn.Server(server_config(service, service.settings))
    server.config.host, server.config.port = "127.0.0.1", 0
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    try:
        yield f"127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def error_of(response: Any, status: int, kind: str) -> str:
    """The message of a refusal, which tells nothing of the server."""
    assert response.status_code == status, response.text
    found = response.json()["error"]
    assert found["kind"] == kind
    assert found["request_id"] == response.headers["X-Request-ID"]
    for secret in ("Traceback", "/tmp", "site-packages", ".py"):
        assert secret not in response.text
    return str(found["message"])
