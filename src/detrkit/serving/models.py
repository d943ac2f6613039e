"""Models that are served: loaded, held by requests, and exchanged for newer ones."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import logging
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from detrkit.errors import DetrkitError, UsageError, listed
from detrkit.runtimes.predictor import DEFAULT_THRESHOLD, Predictor
from detrkit.serving.batcher import Batcher
from detrkit.serving.measure import Running, choose_running
from detrkit.serving.metrics import Metrics
from detrkit.serving.refusal import RefusedError
from detrkit.serving.settings import ServeSettings
from detrkit.threshold_file import Thresholds

logger = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class ServedModel:
    """A model at work; see :meth:`ModelStore.lease`.

    Args:
        name: Name that requests call it by.
        predictor: The bundle, ready to run.
        batcher: Runs it.
        batch_size: Images of a batch.
    """

    def __init__(self, name: str, predictor: Predictor, batcher: Batcher, batch_size: int):
        self.name = name
        self.predictor = predictor
        self.batcher = batcher
        self.batch_size = batch_size
        self.loaded = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self.leases = 0

    @property
    def version(self) -> str:
        """Beginning of the hash of the bundle, which is another for whatever differs."""
        return self.predictor.bundle.manifest.seal[:12]

    @property
    def precision(self) -> str:
        """Numbers that it computes in."""
        graph = self.predictor.bundle.manifest.graphs[0].precision
        return self.predictor.engine.precision if graph == "32" else graph

    @property
    def threshold(self) -> float | Thresholds:
        """What counts as found where a request does not say."""
        return self.predictor.bundle.thresholds or DEFAULT_THRESHOLD

    @property
    def label(self) -> dict[str, str]:
        """What every answer says of it."""
        engine = self.predictor.engine
        runtime = f"{engine.name} {engine.version}"
        return {"model": self.name, "version": self.version, "runtime": runtime, "precision": self.precision}

    def describe(self) -> dict[str, Any]:
        """Return what ``/v1/models`` says of it."""
        thresholds = self.threshold
        label = self.label
        return {
            "name": label.pop("model"),
            **label,
            "classes": list(self.predictor.class_map.names),
            "category_ids": list(self.predictor.class_map.category_ids),
            "thresholds": thresholds.to_dict() if isinstance(thresholds, Thresholds) else {"default": thresholds},
            "loaded": self.loaded,
            "streams": self.predictor.engine.streams,
            "threads": self.predictor.engine.threads,
            "batch_size": self.batch_size,
            "masks": bool(self.predictor.bundle.manifest.masks),
        }


@dataclasses.dataclass
class _Slot:
    """A name, the bundle behind it, and the model that answers now."""

    path: Path
    model: ServedModel
    reloading: threading.Lock = dataclasses.field(default_factory=threading.Lock)


class ModelStore:
    """The models of a server by name, the first of which answers where none is named.

    Args:
        bundles: Paths of bundles, or ``NAME=PATH``.
        settings: How they are run.
        metrics: Told what happens.

    Raises:
        BundleError: One does not verify.
        UsageError: Names repeat or cannot be part of an address; there is no such runtime, or it is not installed.
    """

    def __init__(self, bundles: Sequence[str | os.PathLike[str]], settings: ServeSettings, metrics: Metrics):
        self._settings = settings
        self._metrics = metrics
        self._lock = threading.Lock()
        self._slots: dict[str, _Slot] = {}
        if not bundles:
            raise UsageError("no bundle is given; name what detrkit export wrote")
        try:
            for bundle in bundles:
                name, path = _split(bundle)
                model = self._load(name, path)
                if model.name in self._slots:
                    self._close(model)
                    raise UsageError(f"two bundles are called {model.name}; give names, as in new={path}")
                self._slots[model.name] = _Slot(path, model)
        except BaseException:
            self.close()
            raise

    @property
    def models(self) -> list[ServedModel]:
        """The models that answer now, in the order in which they were given."""
        return [slot.model for slot in self._slots.values()]

    @contextlib.contextmanager
    def lease(self, name: str = "", version: str = "") -> Iterator[ServedModel]:
        """Hold a model, which stays as it is until it is let go, whatever is loaded meanwhile.

        Raises:
            RefusedError: There is none of this name or version.
        """
        with self._lock:
            model = self._slot(name).model
            if version and version != model.version:
                raise RefusedError("not_found", f"version {version[:100]!r} is not loaded; see /v1/models")
            model.leases += 1
        try:
            yield model
        finally:
            self._release(model)

    def reload(self, name: str) -> ServedModel:
        """Load the bundle of a model anew and let it answer, once it has verified; the old one finishes its work.

        Raises:
            RefusedError: There is no such model, or it is being loaded.
            DetrkitError: The new one does not verify; the old one goes on.
        """
        slot = self._slot(name)
        if not slot.reloading.acquire(blocking=False):
            raise RefusedError("conflict", f"{slot.model.name} is being loaded already; wait for it")
        try:
            new = self._load(slot.model.name, slot.path, like=slot.model)
        except DetrkitError:
            self._metrics.reloads.labels(slot.model.name, "refused").inc()
            raise
        else:
            self._metrics.reloads.labels(slot.model.name, "loaded").inc()
        finally:
            slot.reloading.release()
        with self._lock:
            old, slot.model = slot.model, new
            old.leases += 1
        if old.label != new.label:
            self._metrics.forget(old.label)
        self._release(old)
        return new

    def close(self) -> None:
        """End all models, once what waits is done."""
        for slot in self._slots.values():
            slot.model.batcher.close()

    def _slot(self, name: str) -> _Slot:
        if not name:
            return next(iter(self._slots.values()))
        if name not in self._slots:
            known = listed(list(self._slots))
            raise RefusedError("not_found", f"there is no model {name[:100]!r}, expected one of {known}")
        return self._slots[name]

    def _release(self, model: ServedModel) -> None:
        with self._lock:
            model.leases -= 1
            current = any(slot.model is model for slot in self._slots.values())
            last = model.leases == 0 and not current
        if last:
            self._close(model)

    @staticmethod
    def _close(model: ServedModel) -> None:
        """End a model that nothing waits for, elsewhere: the caller may be an event loop."""
        threading.Thread(target=model.batcher.close, daemon=True).start()

    def _load(self, name: str, path: Path, like: ServedModel | None = None) -> ServedModel:
        settings = self._settings
        if like is not None:  # what was measured while nothing else ran
            streams = like.predictor.engine.streams
            settings = dataclasses.replace(settings, streams=streams, batch_size=like.batch_size)
        running = choose_running(path, settings)
        predictor = running.predictor
        name = name or predictor.bundle.manifest.name
        if not _NAME.fullmatch(name):
            raise UsageError(
                f"{path}: the model is called {name!r}, expected letters, digits, and . _ -; give it another "
                f"name, as in model={path}"
            )
        batcher = Batcher(
            predictor.detect_together,
            predictor.engine.streams,
            running.batch_size,
            self._settings.batch_wait_s,
            mixed=predictor.preprocessing.fixed_hw is not None,
            observe=self._metrics.batch_images.labels(name).observe,
        )
        model = ServedModel(name, predictor, batcher, running.batch_size)
        self._metrics.model_info.labels(**model.label).set(1)
        logger.info("model loaded", extra={"fields": {"event": "loaded", **model.label, **_how(running)}})
        return model


def _how(running: Running) -> Mapping[str, Any]:
    return {
        "streams": running.predictor.engine.streams,
        "threads": running.predictor.engine.threads,
        "batch_size": running.batch_size,
        "images_per_s": round(running.images_per_s, 1),
    }


def _split(bundle: str | os.PathLike[str]) -> tuple[str, Path]:
    """Return the name, empty if none is given, and the path of ``NAME=PATH``."""
    text = os.fspath(bundle)
    name, equals, path = text.partition("=")
    if equals and _NAME.fullmatch(name) and not Path(text).expanduser().exists():
        return name, Path(path)
    return "", Path(text)
