"""``detrkit.release``: publish a model as the release in use, if the gate lets it through."""

from __future__ import annotations

import dataclasses
import datetime
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detrkit.api.common import Say, Source
from detrkit.api.compare import Progress
from detrkit.api.export import export_bundle
from detrkit.api.gate import gate
from detrkit.comparison.release_gate import GateResult
from detrkit.deployment.release import (
    BUNDLE,
    CARD,
    CURRENT,
    Record,
    check_version,
    current_version,
    publish,
    roll_back,
    staged_release,
    write_card,
)
from detrkit.detectors.accuracy import AccuracyData
from detrkit.errors import BundleError, UsageError
from detrkit.runtimes.bundle import read_bundle
from detrkit.runtimes.contents import MANIFEST, MOST_MANIFEST, is_bundle
from detrkit.runtimes.verify import verify_bundle


@dataclasses.dataclass(frozen=True)
class Release:
    """The outcome of :func:`release`.

    Args:
        folder: Folder of releases.
        version: Version that was to be released.
        gate: The gate's decision.
    """

    folder: Path
    version: str
    gate: GateResult

    @property
    def passed(self) -> bool:
        """True if it was released."""
        return self.gate.passed

    def lines(self) -> list[str]:
        """Return what happened for people."""
        if not self.passed:
            return [*self.gate.lines(), f"not released; {self.folder / CURRENT} is as it was"]
        place = self.folder / CURRENT / BUNDLE
        return [*self.gate.lines(), f"released {self.version}; serve it with: detrkit serve {place}"]

    def to_dict(self) -> dict[str, Any]:
        """Return the content for JSON."""
        return {"released": self.passed, "version": self.version, "gate": self.gate.to_dict()}


def release(
    model: Source,
    to: Source,
    data: Source | Sequence[Source],
    *,
    version: str = "",
    split: str = "val",
    min_ap: float | None = None,
    max_loss: float | None = None,
    max_slowdown: float | None = 10.0,
    say: Say = lambda _message: None,
    progress: Progress | None = None,
) -> Release:
    """Export a model, verify the bundle, hold it against the release in use, and publish it with a model card.

    A release is a folder ``releases/VERSION`` that never changes: ``bundle``, ``MODEL_CARD.md``, ``release.json``
    and ``SHA256SUMS``; ``current`` links to the one in use. Killed at any moment, the old release stays in use.

    Args:
        model: Run, checkpoint, or a bundle, which is published as it is.
        to: Folder of releases.
        data: A data set to measure on, or several; see :func:`gate`.
        version: Name of the release; v1, v2 and so on if empty.
        split: Split of each data set.
        min_ap: Least AP, in points; needed for the first release.
        max_loss: AP points that may be lost at worst; see :func:`gate`.
        max_slowdown: Percent that an image may take longer; see :func:`gate`.
        say: Called with messages for people.
        progress: Called with what is being done, how much of it is done, and how much there is.

    Returns:
        ``release.passed``: False if the gate stopped it; ``release.gate`` has the reasons.

    Raises:
        UsageError: The version is there already, or something else lies in the folder.
        BundleError: The bundle does not verify.
        DetrkitError: The model or the data cannot be read.
    """
    folder = Path(to)
    sets = [data] if isinstance(data, str | os.PathLike) else list(data)
    if not sets:
        raise UsageError("there is no data to measure on; give a data set, or several, with --data")
    with staged_release(folder) as staging:
        version = check_version(folder, version)
        previous = current_version(folder)
        # the bundle as it will be served
        place = staging / BUNDLE
        if is_bundle(model):
            _copy_bundle(model, place)
        else:
            export_bundle(model, place, accuracy=AccuracyData(sets[0], split, progress))
        verification = verify_bundle(place)
        if not verification.passed:
            raise BundleError(f"{model}: {'; '.join(verification.failures)}; nothing was released")
        # against the release in use, each as a bundle, so that like is timed with like
        found = gate(
            place,
            folder / CURRENT / BUNDLE if previous else None,
            sets,
            split=split,
            out=folder / "gate" / version,
            min_ap=min_ap,
            max_loss=max_loss,
            max_slowdown=max_slowdown,
            say=say,
            progress=progress,
        )
        found = _renamed(found, {str(place): version, str(folder / CURRENT / BUNDLE): previous})
        if found.passed:
            created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            record = Record(version, created, previous, os.fspath(model), found.to_dict())
            write_card(staging / CARD, read_bundle(place), record)
            publish(folder, staging, record)
    return Release(folder, version, found)


def rollback(to: Source) -> tuple[str, str]:
    """Put the release before the one in use back into use, after a check of its hashes.

    Args:
        to: Folder of releases.

    Returns:
        The version that was in use, and the one that is now.

    Raises:
        UsageError: There is none before.
        DataError: A file of it is not what was released.
    """
    return roll_back(Path(to))


def _renamed(found: GateResult, names: dict[str, str]) -> GateResult:
    """Return a decision that calls models by their versions; the folders that they lay in mean nothing later."""

    def named(text: str) -> str:
        for path, name in names.items():
            text = text.replace(path, name)
        return text

    checks = tuple(dataclasses.replace(check, reason=named(check.reason)) for check in found.checks)
    old = None if found.old is None else named(found.old)
    return GateResult(named(found.new), old, checks, tuple(map(named, found.notes)), found.metrics)


def _copy_bundle(source: Source, place: Path) -> None:
    """Copy a bundle's own files, checked by their hashes, and nothing else that lies beside them."""
    bundle = read_bundle(source)
    for name in (MANIFEST, *bundle.manifest.files):
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bundle.contents.read(name, MOST_MANIFEST) if name == MANIFEST else bundle.read(name))
