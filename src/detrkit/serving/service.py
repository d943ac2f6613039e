"""From sent pictures to detections: decoding in threads, micro-batches, thresholds."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from starlette.requests import ClientDisconnect, Request

from detrkit.classes import SizeHW
from detrkit.detections import ImageDetections
from detrkit.errors import BundleError, DetrkitError
from detrkit.machine import usable_cpus
from detrkit.serving import form
from detrkit.serving.batcher import BatchResult
from detrkit.serving.gate import Gate, Visit, too_many_bytes
from detrkit.serving.metrics import Metrics
from detrkit.serving.models import ModelStore, ServedModel
from detrkit.serving.pictures import Prepared, SentPicture, prepare
from detrkit.serving.refusal import RefusedError
from detrkit.serving.sampling import Sampler
from detrkit.serving.settings import ServeSettings
from detrkit.threshold_file import Thresholds, take_detections

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")


@dataclasses.dataclass(frozen=True)
class Found:
    """A picture and what was found in it.

    Args:
        name: As its sender called it.
        size_hw: Its size.
        detections: Detections above the threshold, best first.
        whole: All detections.
    """

    name: str
    size_hw: SizeHW
    detections: ImageDetections
    whole: ImageDetections


class Service:
    """Everything behind the routes.

    Args:
        bundles: Paths of bundles, or ``NAME=PATH``.
        settings: Limits, and how models are run.

    Raises:
        BundleError: A bundle does not verify.
        UsageError: Something was asked wrongly.
    """

    def __init__(self, bundles: Sequence[str | os.PathLike[str]], settings: ServeSettings):
        self.settings = settings
        self.metrics = Metrics()
        self.gate = Gate(settings, self.metrics)
        self.sampler = Sampler(settings, self.metrics)
        self.draining = False
        self._pool = ThreadPoolExecutor(usable_cpus(), "decoder")
        self.store = ModelStore(bundles, settings, self.metrics)

    def close(self) -> None:
        """End all threads, once what they do is done."""
        self._pool.shutdown()
        self.store.close()
        self.sampler.close()

    async def work(self, function: Callable[..., _Result], *arguments: Any) -> _Result:
        """Run a function in one of the threads that decode."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    async def reload(self, name: str) -> ServedModel:
        """Load a model's bundle anew, in a thread of its own; see :meth:`ModelStore.reload`."""
        try:
            return await asyncio.to_thread(self.store.reload, name)
        except DetrkitError as error:
            if not isinstance(error, RefusedError):
                logger.error("%s: the new bundle was refused, the old one goes on: %s", name, error)
            raise

    async def read_body(self, request: Request, visit: Visit) -> bytes:
        """Return the body of a request, which is counted while it comes.

        Raises:
            RefusedError: It is too large, too slow, or packed.
        """
        limits = self.settings
        if request.headers.get("content-encoding", "identity") != "identity":
            raise RefusedError("unsupported", "Content-Encoding is not supported; send the body as it is")
        announced = request.headers.get("content-length", "")
        if announced.isdecimal() and int(announced[:20]) > limits.max_bytes:
            raise too_many_bytes(limits.max_bytes)
        pieces: list[bytes] = []
        clock = asyncio.get_running_loop().time
        until = clock() + limits.body_s
        try:
            async with asyncio.timeout_at(until):
                more = True
                while more:
                    message = await request.receive()
                    if message["type"] == "http.disconnect":
                        raise ClientDisconnect
                    if clock() > until:  # it came while nobody could look at the clock
                        raise TimeoutError
                    pieces.append(message.get("body", b""))
                    self.gate.add_bytes(visit, len(pieces[-1]))
                    more = message.get("more_body", False)
        except TimeoutError as error:
            text = f"the body did not arrive within {limits.body_s:g} s"
            raise RefusedError("too_slow", text, {"Connection": "close"}) from error
        return b"".join(pieces)

    async def read_pictures(self, request: Request, visit: Visit) -> list[SentPicture]:
        """Return the pictures of a body: all files of a form, or else the body itself, whatever it is called."""
        content_type = request.headers.get("content-type", "")
        body = await self.read_body(request, visit)
        if not content_type.lower().startswith(form.KIND):
            return [SentPicture(body)]
        return await self.work(form.read_form, body, content_type, self.settings.max_images)

    async def detect(
        self,
        request: Request,
        visit: Visit,
        model: ServedModel,
        sent: Sequence[SentPicture],
        threshold: float | Thresholds,
        class_ids: Sequence[int] = (),
    ) -> tuple[list[Found], dict[str, float]]:
        """Return what is found in pictures, and the milliseconds of each stage, of the picture that took longest.

        Args:
            request: Where the pictures come from; when its client goes, nothing more is run.
            visit: What it takes up.
            model: The model.
            sent: The pictures.
            threshold: What counts as found.
            class_ids: Classes that are wanted; empty for all.

        Raises:
            RefusedError: A picture is none, or too large, or the time is over.
        """
        deadline = time.monotonic() + self.settings.deadline_s
        self.gate.add_images(model, visit, len(sent) - visit.images)
        results = await self._run(request, model, sent, deadline)
        start = time.perf_counter()
        found = []
        for picture, result in zip(sent, results, strict=True):
            taken = take_detections(result.detections, threshold)
            if class_ids:
                taken = taken.take(np.isin(taken.class_ids, class_ids))
            found.append(Found(picture.name, result.picture.size_hw, taken, result.detections))
            if isinstance(picture.content, bytes) and self.sampler.wants:
                # what the model finds by itself, whatever this request asked for
                own = take_detections(result.detections, model.threshold)
                self._sample(request, model, picture.content, result.picture, own)
        timings = {
            "queue": max(result.queue_s for result in results),
            "decode": max(result.picture.decode_s for result in results),
            "preprocess": max(result.picture.resize_s for result in results),
            "inference": max(result.inference_s for result in results),
            "postprocess": time.perf_counter() - start,
        }
        self._note(request, model, timings, results)
        return found, {stage: round(1000 * seconds, 3) for stage, seconds in timings.items()}

    async def _run(
        self, request: Request, model: ServedModel, sent: Sequence[SentPicture], deadline: float
    ) -> list[BatchResult]:
        """Decode pictures, and run them in the model's batches, unless one fails or their client goes."""

        def begin(picture: SentPicture, future: Future[BatchResult]) -> None:
            try:
                ready = prepare(picture, model.predictor, self.settings.max_pixels)
                model.batcher.submit(ready, deadline, future)
            except Exception as error:
                with contextlib.suppress(InvalidStateError):  # nobody waits for it any more
                    future.set_exception(error)

        futures: list[Future[BatchResult]] = [Future() for _ in sent]
        results = asyncio.gather(*map(asyncio.wrap_future, futures))
        gone = asyncio.ensure_future(request.receive())
        try:
            for picture, future in zip(sent, futures, strict=True):
                self._pool.submit(begin, picture, future)
            waiting: set[asyncio.Future[Any]] = {results, gone}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if not results.done():
                raise ClientDisconnect
            return results.result()
        except BundleError as error:  # its words hold paths
            raise RuntimeError(f"{model.name} failed") from error
        finally:
            gone.cancel()
            results.cancel()
            for future in futures:
                future.cancel()

    def _sample(
        self, request: Request, model: ServedModel, content: bytes, ready: Prepared, taken: ImageDetections
    ) -> None:
        height, width = ready.size_hw
        record = {
            "request_id": request.state.request_id,
            "model": model.name,
            "version": model.version,
            "width": width,
            "height": height,
        }
        self.sampler.keep(content, ready.image, taken, record, model.predictor.class_map.names)

    def _note(
        self, request: Request, model: ServedModel, timings: dict[str, float], results: Sequence[BatchResult]
    ) -> None:
        """Tell metrics and log what a request was."""
        for stage, seconds in timings.items():
            self.metrics.stage(model.name, stage).observe(seconds)
        self.metrics.images.labels(model.name).inc(len(results))
        request.state.notes.update(
            model=model.name,
            version=model.version,
            images=len(results),
            batch=max(result.batch for result in results),
            stages_ms={stage: round(1000 * seconds, 2) for stage, seconds in timings.items()},
        )
