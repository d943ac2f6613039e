"""Every error detrkit raises on purpose.

    DetrkitError
    ├── UsageError               asked wrongly; the command line exits with 2
    │   ├── ConfigError          an unknown key or a bad value in a config
    │   └── MissingExtraError    an optional package is not installed
    ├── DataError                a data set cannot be used as it is
    │   ├── AnnotationError      an annotation file is cut off, of another kind, or contradicts itself
    │   └── ImageError           an image is missing, truncated or of an unknown kind
    ├── DownloadError            a file cannot be fetched, or is not the published one
    ├── WeightsError             a weights file does not fit, is damaged, or cannot be fetched
    ├── BundleError              an exported bundle is damaged, changed, or not to be trusted
    ├── CheckpointError          a checkpoint cannot be written or read
    └── TrainingError            training cannot go on
        ├── NonFiniteError       losses or gradients stay NaN or infinite
        └── MemoryExhaustedError a single image does not fit into memory

A message says what was got, what was expected, where, and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class DetrkitError(Exception):
    """Base of every error that detrkit raises on purpose."""


class UsageError(DetrkitError):
    """The command or call was asked wrongly."""


class ConfigError(UsageError):
    """A config holds an unknown key or a value that cannot be."""


class MissingExtraError(UsageError):
    """An optional package is needed and is not installed.

    Args:
        package: The module that could not be imported.
        extra: The extra of detrkit that brings it.
    """

    def __init__(self, package: str, extra: str):
        super().__init__(f'{package} is not installed; run: pip install "detrkit[{extra}]"')


class DataError(DetrkitError):
    """A data set cannot be used as it is."""


class AnnotationError(DataError):
    """An annotation file is cut off, of another kind, or contradicts itself."""


class ImageError(DataError):
    """An image is missing, truncated or of a kind that cannot be decoded."""


class DownloadError(DetrkitError):
    """A file cannot be fetched, or is not the published one."""


class WeightsError(DetrkitError):
    """A weights file does not fit the model, is damaged, or cannot be fetched."""


class BundleError(DetrkitError):
    """An exported bundle is damaged, changed, of a newer version, or not to be trusted."""


class CheckpointError(DetrkitError):
    """A checkpoint cannot be written or read."""


class TrainingError(DetrkitError):
    """Training cannot go on."""


class NonFiniteError(TrainingError):
    """Losses or gradients stay NaN or infinite."""


class MemoryExhaustedError(TrainingError):
    """A single image does not fit into memory."""


def listed(items: Sequence[object], most: int = 8, separator: str = ", ") -> str:
    """Join items for a message: the first ``most`` of them, then how many more there are."""
    shown = separator.join(str(item) for item in items[:most])
    return shown + (f" and {len(items) - most:,} more" if len(items) > most else "")


def nearest(name: str, known: Iterable[str], otherwise: str = "check the name.") -> str:
    """Return ``did you mean NAME?`` with the nearest known name, or ``otherwise`` if none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]}?" if near else otherwise


def counted(number: int, noun: str, plural: str = "") -> str:
    """Write a number with its noun: ``1 image``, ``1,234 images``."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
