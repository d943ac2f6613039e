"""The server as an application of Ray Serve: replicas come and go with the load, each with the bundle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from detrkit.errors import MissingExtraError
from detrkit.serving.settings import ServeSettings, read_token

if TYPE_CHECKING:
    from fastapi import FastAPI


def build(arguments: dict[str, Any]) -> Any:
    """Return the application that ``serve run`` and ``serve deploy`` start; see ``detrkit deploy --to ray``.

    Args:
        arguments: ``bundle``, its path on every machine; and any fields of
            :class:`detrkit.serving.settings.ServeSettings`.

    Raises:
        MissingExtraError: Ray is not installed.
        UsageError: There is no token: Ray's proxies may listen on any address of any machine.
    """
    try:
        from ray import serve
    except ImportError as error:
        raise MissingExtraError("ray[serve]", "ray") from error
    given = dict(arguments)
    bundle = given.pop("bundle")
    settings = ServeSettings(**{"host": "0.0.0.0", "token": read_token(), **given})

    def make() -> FastAPI:  # in each replica, which has as many threads as it has processors
        import dataclasses

        import ray

        from detrkit.serving.app import make_app
        from detrkit.serving.service import Service

        context: Any = ray.get_runtime_context()
        cpus = int(context.get_assigned_resources().get("CPU", 0))
        return make_app(Service([bundle], dataclasses.replace(settings, threads=settings.threads or cpus or None)))

    deployment: Any = serve.deployment(serve.ingress(make)(), name="Detector")
    return deployment.bind()
