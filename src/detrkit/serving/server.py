"""A server as a process: socket, signals, log."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence

import uvicorn

from detrkit.errors import UsageError
from detrkit.serving.app import make_app
from detrkit.serving.guard import JsonFormatter
from detrkit.serving.protocol import LimitedProtocol
from detrkit.serving.service import Service
from detrkit.serving.settings import ServeSettings

logger = logging.getLogger(__name__)

_SWITCH_S = 0.001
"""Time after which a thread lets others run Python: decoding must not hold up the connections for long."""


def run_server(
    bundles: Sequence[str | os.PathLike[str]],
    settings: ServeSettings,
    say: Callable[[str], object] = lambda _message: None,
) -> None:
    """Serve bundles until SIGTERM or SIGINT; SIGHUP loads them anew.

    Args:
        bundles: Paths of bundles, or ``NAME=PATH``.
        settings: How to listen.
        say: Receives what a person wants to read.

    Raises:
        BundleError: A bundle does not verify.
        UsageError: Something was asked wrongly, or the port is taken.
    """
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    switch_s = sys.getswitchinterval()
    with _bound_socket(settings) as listener, _json_log():
        service = Service(bundles, settings)
        sys.setswitchinterval(_SWITCH_S)
        try:
            host, port = listener.getsockname()[:2]
            url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
            for model in service.store.models:
                label = model.label
                how = f"{model.predictor.engine.streams} at once, batches of up to {model.batch_size}"
                say(f"{model.name} {model.version}: {label['runtime']}, {model.precision}, {how}")

            def announce() -> None:
                say(f"{url} ({'with the token' if settings.token else 'this machine only'}); end with Ctrl-C")
                logger.info("serving", extra={"fields": {"event": "serving", "url": url, "pid": os.getpid()}})

            _Server(service, settings, announce).run(sockets=[listener])
        finally:
            sys.setswitchinterval(switch_s)
            service.close()
        logger.info("stopped", extra={"fields": {"event": "stopped"}})


def server_config(service: Service, settings: ServeSettings) -> uvicorn.Config:
    """Return how uvicorn serves."""
    return uvicorn.Config(
        make_app(service),
        http=LimitedProtocol,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=settings.max_connections,
        timeout_graceful_shutdown=max(1, round(settings.drain_s)),
    )


class _Server(uvicorn.Server):
    """uvicorn, which ends with exit code 0 once it has answered what it accepted."""

    def __init__(self, service: Service, settings: ServeSettings, announce: Callable[[], None]):
        self._service = service
        self._announce = announce
        super().__init__(server_config(service, settings))

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        self._announce()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stop)
        loop.add_signal_handler(signal.SIGINT, self._stop)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                loop.remove_signal_handler(number)

    def _stop(self) -> None:
        """Stop accepting; the second time, stop at once."""
        self.force_exit = self.should_exit
        self.should_exit = True
        self._service.draining = True

    def _reload(self) -> None:
        for model in self._service.store.models:
            task = asyncio.ensure_future(self._service.reload(model.name))
            task.add_done_callback(lambda done: done.exception())  # said in the log


def _bound_socket(settings: ServeSettings) -> socket.socket:
    """Take the port before models are loaded, which takes longer.

    Raises:
        UsageError: It is taken, or there is no such address.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise UsageError(f"host {settings.host}: {error.strerror}; give an address of this machine") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        where = f"{settings.host}, port {settings.port}"
        raise UsageError(f"{where} cannot be listened on: {error.strerror}; give another --port") from error
    return listener


@contextlib.contextmanager
def _json_log() -> Iterator[None]:
    """Write the log to standard output, a line of JSON for each record."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter())
    loggers = [logging.getLogger(name) for name in ("detrkit.serving", "uvicorn.error")]
    for one in loggers:
        one.addHandler(handler)
        one.propagate = False
    loggers[0].setLevel(logging.INFO)
    try:
        yield
    finally:
        for one in loggers:
            one.removeHandler(handler)
            one.propagate = True
