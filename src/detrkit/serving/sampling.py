"""A part of the requests, kept on disk for whoever watches the model: off unless a folder is given."""

from __future__ import annotations

import datetime
import json
import logging
import queue
import random
import threading
import uuid
from typing import Any

import numpy as np

from detrkit.detections import ImageDetections
from detrkit.errors import UsageError
from detrkit.serving.metrics import Metrics
from detrkit.serving.settings import ServeSettings

logger = logging.getLogger(__name__)

RECORDS = "samples.jsonl"
_MOST_WAITING = 16


class Sampler:
    """Writes pictures and what was found in them, in a thread of its own, until the folder is full.

    Args:
        settings: Folder, share and size.
        metrics: Told what is written and what is not.

    Raises:
        UsageError: The folder cannot be made.
    """

    def __init__(self, settings: ServeSettings, metrics: Metrics):
        self._folder = settings.sample_dir
        self._rate = settings.sample_rate
        self._left = settings.sample_max_bytes
        self._metrics = metrics
        self._random = random.Random()
        self._queue: queue.Queue[tuple[bytes, dict[str, Any]] | None] = queue.Queue(_MOST_WAITING)
        self._thread: threading.Thread | None = None
        if self._folder is None:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._left -= sum(path.stat().st_size for path in self._folder.iterdir())
        except OSError as error:
            raise UsageError(f"{self._folder} cannot hold samples: {error.strerror}") from error
        self._thread = threading.Thread(target=self._work, name="sampler", daemon=True)
        self._thread.start()

    @property
    def wants(self) -> bool:
        """Draw whether the next picture is kept."""
        return self._thread is not None and self._random.random() < self._rate

    def keep(
        self,
        content: bytes,
        image: np.ndarray,
        found: ImageDetections,
        record: dict[str, Any],
        names: tuple[str, ...],
    ) -> None:
        """Hand a picture over; where the disk is too slow, it is dropped and counted.

        Args:
            content: File of the picture.
            image: The same resized, uint8 ``[h, w, 3]``.
            found: Detections above the threshold.
            record: What is written with it: request, model, version, width, height.
            names: Names by class id.
        """
        boxes = found.boxes_xyxy
        record = {
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
            "file": f"{uuid.uuid4().hex}.img",
            **record,
            "brightness": round(float(image.mean()) / 255, 4),
            "scores": found.scores.tolist(),
            "classes": [names[number] for number in found.class_ids.tolist()],
            "boxes_xyxy": boxes.tolist(),
            "box_sizes_wh": (boxes[:, 2:] - boxes[:, :2]).tolist(),
        }
        try:
            self._queue.put_nowait((content, record))
        except queue.Full:
            self._metrics.samples.labels("dropped").inc()

    def close(self) -> None:
        """Write what waits, then end."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()

    def _work(self) -> None:
        while (sample := self._queue.get()) is not None:
            content, record = sample
            line = json.dumps(record) + "\n"
            size = len(content) + len(line)
            outcome = "written" if size <= self._left else "full"
            if outcome == "written":
                try:
                    self._write(content, record["file"], line)
                    self._left -= size
                except OSError as error:
                    logger.error("a sample cannot be written: %s", error.strerror)
                    outcome = "failed"
            self._metrics.samples.labels(outcome).inc()

    def _write(self, content: bytes, name: str, line: str) -> None:
        """Write the picture first: a line without its picture would be a lie."""
        assert self._folder is not None
        (self._folder / name).write_bytes(content)
        with (self._folder / RECORDS).open("a", encoding="utf-8") as file:
            file.write(line)
