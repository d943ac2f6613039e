"""What ``/metrics`` tells Prometheus."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_IMAGES = (1, 2, 4, 8, 16, 32)


class Metrics:
    """Counters of a server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "detrkit_requests", "Requests by route and status.", ["route", "status"], registry=registry
        )
        self.errors = Counter("detrkit_errors", "Refused requests by kind.", ["kind"], registry=registry)
        self.images = Counter("detrkit_images", "Pictures answered.", ["model"], registry=registry)
        self.queue_images = Gauge(
            "detrkit_queue_images", "Pictures in the house: read, decoded, waiting, at work.", registry=registry
        )
        self.batch_images = Histogram(
            "detrkit_batch_images", "Pictures of a batch.", ["model"], buckets=_IMAGES, registry=registry
        )
        self.stage_seconds = Histogram(
            "detrkit_stage_seconds", "Time by stage.", ["model", "stage"], buckets=_SECONDS, registry=registry
        )
        self.request_seconds = Histogram(
            "detrkit_request_seconds", "Time of answered requests.", ["route"], buckets=_SECONDS, registry=registry
        )
        self.reloads = Counter("detrkit_reloads", "Reloads by outcome.", ["model", "outcome"], registry=registry)
        self.samples = Counter(
            "detrkit_samples", "Sampled pictures by outcome: written, or dropped.", ["outcome"], registry=registry
        )
        self.model_info = Gauge(
            "detrkit_model_info",
            "Models that answer.",
            ["model", "version", "runtime", "precision"],
            registry=registry,
        )

    @functools.lru_cache(maxsize=256)  # noqa: B019 (lives as long as the server)
    def stage(self, model: str, stage: str) -> Histogram:
        """Return the time of a stage."""
        return self.stage_seconds.labels(model, stage)

    def forget(self, label: Mapping[str, str]) -> None:
        """Leave out a model that answers no more."""
        with contextlib.suppress(KeyError):
            self.model_info.remove(*label.values())

    def text(self) -> tuple[bytes, str]:
        """Return everything as Prometheus reads it, and the name of the format."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST
