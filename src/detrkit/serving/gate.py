"""How much is in the house at once: pictures, and bytes of bodies. All of it happens in the event loop."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator

from detrkit.serving.metrics import Metrics
from detrkit.serving.models import ServedModel
from detrkit.serving.refusal import RefusedError
from detrkit.serving.settings import ServeSettings

_SHARE_OF_DEADLINE = 0.8  # of the deadline that the queue may take, by the pace of the last batches


@dataclasses.dataclass
class Visit:
    """What one request takes up.

    Args:
        images: Its pictures.
        bytes: Bytes of its body.
    """

    images: int = 1
    bytes: int = 0


class Gate:
    """Admits requests as long as they can be answered in time.

    Args:
        settings: Limits.
        metrics: Told how many pictures are in the house.
    """

    def __init__(self, settings: ServeSettings, metrics: Metrics):
        self._settings = settings
        self._images = 0
        self._bytes = 0
        metrics.queue_images.set_function(lambda: self._images)

    @contextlib.contextmanager
    def admit(self, model: ServedModel) -> Iterator[Visit]:
        """Let a request in, before its body is read, until it is answered.

        Raises:
            RefusedError: The house is full, or the request would wait for longer than its deadline.
        """
        self._check(model, 1)
        visit = Visit()
        self._images += 1
        try:
            yield visit
        finally:
            self._images -= visit.images
            self._bytes -= visit.bytes

    def add_images(self, model: ServedModel, visit: Visit, images: int) -> None:
        """Count further pictures of a request that is in the house.

        Raises:
            RefusedError: As for :meth:`admit`.
        """
        if images:
            self._check(model, images)
            self._images += images
            visit.images += images

    def add_bytes(self, visit: Visit, count: int) -> None:
        """Count bytes that have come.

        Raises:
            RefusedError: The body is too large, or all bodies together are.
        """
        self._bytes += count
        visit.bytes += count
        if visit.bytes > self._settings.max_bytes:
            raise too_many_bytes(self._settings.max_bytes)
        if self._bytes > self._settings.max_buffered:
            raise RefusedError("busy", "too many bytes wait to be decoded; try again later", {"Retry-After": "1"})

    def _check(self, model: ServedModel, images: int) -> None:
        wait_s = self._images * model.batcher.seconds_each
        at_once = model.batch_size * model.predictor.engine.streams
        full = self._images + images > self._settings.max_waiting
        late = wait_s > _SHARE_OF_DEADLINE * self._settings.deadline_s and self._images >= 2 * at_once
        if full or late:
            retry = {"Retry-After": str(max(1, math.ceil(wait_s)))}
            raise RefusedError("busy", f"{self._images} pictures wait already; try again later", retry)


def too_many_bytes(most: int) -> RefusedError:
    """Return the refusal of a body that is too large; the connection ends, for the rest of it is not read."""
    return RefusedError("too_large", f"the body has more than {most:,} bytes", {"Connection": "close"})
