"""Micro-batches: images of several requests that run together."""

from __future__ import annotations

import collections
import dataclasses
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future

import numpy as np

from detrkit.classes import SizeHW
from detrkit.detections import ImageDetections
from detrkit.serving.pictures import Prepared
from detrkit.serving.refusal import RefusedError

Detect = Callable[[Sequence[np.ndarray], Sequence[SizeHW]], list[ImageDetections]]
"""Detects in resized images of given sizes of their files, in one batch."""
_SMOOTHING = 0.2  # weight of the newest batch in the mean time of an image


@dataclasses.dataclass(frozen=True, slots=True)
class BatchResult:
    """Detections of an image, and how it came to them.

    Args:
        picture: The picture.
        detections: All detections, best first.
        queue_s: Time that it waited.
        inference_s: Time of its batch.
        batch: Images of its batch.
    """

    picture: Prepared
    detections: ImageDetections
    queue_s: float
    inference_s: float
    batch: int


@dataclasses.dataclass(frozen=True, slots=True)
class _Waiting:
    """An image that waits."""

    picture: Prepared
    key: Hashable
    deadline: float
    since: float
    future: Future[BatchResult]


class Batcher:
    """Threads that run what waits: the oldest image, and with it those that need no padding beside it.

    Args:
        detect: Runs a batch; called in as many threads at once as there are streams.
        streams: Threads.
        size: Images of a batch, at most.
        wait_s: Time that a batch of fewer waits for more, if the one before had several: a lone request need not.
        mixed: Images of any sizes may be one batch, as where the graph's shape is fixed.
        observe: Told the images of each batch.
    """

    def __init__(
        self,
        detect: Detect,
        streams: int = 1,
        size: int = 1,
        wait_s: float = 0.0,
        mixed: bool = False,
        observe: Callable[[int], object] = lambda _count: None,
    ):
        self._detect = detect
        self._size = size
        self._wait_s = wait_s
        self._mixed = mixed
        self._observe = observe
        self._streams = streams
        self._waiting: collections.deque[_Waiting] = collections.deque()
        self._changed = threading.Condition()
        self._closed = False
        self._last = 0
        self.seconds_each = 0.0
        """Mean time between two images that are done, when there is always work."""
        self._threads = [
            threading.Thread(target=self._work, name=f"batcher-{number}", daemon=True) for number in range(streams)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Images that wait."""
        return len(self._waiting)

    def submit(self, picture: Prepared, deadline: float, future: Future[BatchResult]) -> None:
        """Put an image at the end of the queue.

        Args:
            picture: The image.
            deadline: Moment of :func:`time.monotonic` after which it is not begun any more.
            future: Receives its result, or :class:`RefusedError`; if it is cancelled meanwhile, nothing is run.
        """
        key = None if self._mixed else picture.image.shape
        waiting = _Waiting(picture, key, deadline, time.perf_counter(), future)
        with self._changed:
            if self._closed:
                raise RuntimeError("the model was unloaded while a request held it")
            self._waiting.append(waiting)
            self._changed.notify()

    def close(self) -> None:
        """Finish what waits, then end the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while batch := self._take():
            self._run(batch)

    def _take(self) -> list[_Waiting]:
        """Wait for images and return those of the next batch; none once closed and empty."""
        with self._changed:
            while True:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if not self._waiting:
                    return []
                batch: list[_Waiting] = []
                self._collect(batch)
                # others may come while there is time; a batch that is full, or an end, ends the wait
                until = time.monotonic() + (self._wait_s if self._last > 1 else 0.0)
                while batch and len(batch) < self._size and not self._closed:
                    left = until - time.monotonic()
                    if left <= 0 or not self._changed.wait(left):
                        break
                    self._collect(batch)
                if batch:
                    self._last = len(batch)
                    return batch

    def _collect(self, batch: list[_Waiting]) -> None:
        """Move images from the queue into a batch, the oldest first; those of other sizes stay where they are."""
        others = []
        now = time.monotonic()
        while self._waiting and len(batch) < self._size:
            one = self._waiting.popleft()
            if batch and one.key != batch[0].key:
                others.append(one)
            elif not one.future.set_running_or_notify_cancel():  # its client has gone
                continue
            elif now > one.deadline:
                one.future.set_exception(
                    RefusedError("deadline", "the request waited for longer than its deadline; try again later")
                )
            else:
                batch.append(one)
        self._waiting.extendleft(reversed(others))
        if others:
            self._changed.notify()

    def _run(self, batch: Sequence[_Waiting]) -> None:
        start = time.perf_counter()
        try:
            found = self._detect([one.picture.image for one in batch], [one.picture.size_hw for one in batch])
        except Exception as error:
            if len(batch) == 1:
                batch[0].future.set_exception(error)
            else:  # one picture costs its own request only
                for one in batch:
                    self._run([one])
            return
        seconds = time.perf_counter() - start
        each = seconds / len(batch) / self._streams
        self.seconds_each += (each - self.seconds_each) * (_SMOOTHING if self.seconds_each else 1.0)
        self._observe(len(batch))
        for one, detections in zip(batch, found, strict=True):
            one.future.set_result(BatchResult(one.picture, detections, start - one.since, seconds, len(batch)))
