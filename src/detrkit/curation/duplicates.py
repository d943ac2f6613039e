"""Search for images that show the same picture, even where one was re-encoded, resized, brightened or trimmed.

Shapes: I images, 256 bits of a hash as four words.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from detrkit.errors import ImageError
from detrkit.ops.images import decode_image

MAX_DISTANCE = 48
"""Bits of 256 by which copies differ at most. Of 290 COCO images, copies re-encoded, shrunk to a quarter,
brightened or darkened differ by 22 or less, copies trimmed by 2 % on one side by 39 or less, 98 % of those trimmed
by 2 % on all sides by 48 or less, and no two different images by less than 90."""

_SIDE = 32
_FREQUENCIES = 16
_NOISE = 0.5
"""Coefficients below this, in gray levels, are rounding and compression; their sign says nothing."""
_LEAST_DETAIL = 64
"""Coefficients above the noise that a hash needs to tell images apart."""
_BANDS = 16
_BAND_BITS = 16


@dataclasses.dataclass(frozen=True)
class Fingerprints:
    """The fingerprints of many images.

    Args:
        sha256: Hash of the bytes of each file, uint8 ``[I, 32]``; zeros where it cannot be read.
        words: Perceptual hash of each upright picture, uint64 ``[I, 4]``; zeros where it cannot be decoded.
        is_plain: Whether the picture has too little detail for its hash to mean anything, such as a black frame,
            bool ``[I]``.
        errors: Reason why an image has no hash, by its position.
    """

    sha256: np.ndarray
    words: np.ndarray
    is_plain: np.ndarray
    errors: dict[int, ImageError]

    def __len__(self) -> int:
        return len(self.words)


def fingerprint(path: str | os.PathLike[str]) -> tuple[bytes, np.ndarray, bool]:
    """Compute the fingerprint of one image file; see :class:`Fingerprints`.

    The hash holds the signs of the 255 lowest frequencies of the gray picture at 32 x 32 pixels (pHash, by the
    discrete cosine transform), lowest first. Mean brightness is not among them.

    Raises:
        ImageError: The file is missing or cannot be decoded.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: cannot be read: {error.strerror or error}; check the path") from error
    words, is_plain = perceptual_hash(_small_gray(content, path))
    return hashlib.sha256(content).digest(), words, is_plain


def fingerprints(
    paths: Sequence[str | os.PathLike[str]],
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Fingerprints:
    """Compute the fingerprints of many image files; those that cannot be read are named in ``errors``.

    Args:
        paths: Image files.
        workers: Number of threads; as many as there are CPUs, eight at most, if None.
        progress: Function called with images done and images in all.
    """
    count = len(paths)
    hashes = np.zeros((count, 32), dtype=np.uint8), np.zeros((count, 4), dtype=np.uint64)
    result = Fingerprints(*hashes, is_plain=np.zeros(count, dtype=bool), errors={})
    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
        # Decoding and hashing release the interpreter's lock, so that threads are enough.
        for row, found in enumerate(pool.map(_fingerprint_or_error, paths)):
            if isinstance(found, ImageError):
                result.errors[row] = found
            else:
                digest, result.words[row], result.is_plain[row] = found
                result.sha256[row] = np.frombuffer(digest, dtype=np.uint8)
            if progress is not None:
                progress(row + 1, count)
    return result


def exact_duplicates(prints: Fingerprints) -> list[np.ndarray]:
    """Group files with the same bytes, two or more: their rows, int64, ascending; first row first."""
    rows = _readable(prints)
    _, digest_of = np.unique(prints.sha256[rows], axis=0, return_inverse=True)
    labels = np.arange(len(prints), dtype=np.int64) + len(prints)
    labels[rows] = digest_of.ravel()
    return _groups(labels)


def near_duplicates(prints: Fingerprints, max_distance: int = MAX_DISTANCE) -> list[np.ndarray]:
    """Group images that show the same picture, two or more: their rows, int64, ascending; first row first.

    Two images belong together if their hashes differ by at most ``max_distance`` bits, or by way of others: the
    frames of a film are one group. Plain images, whose hashes say nothing, are grouped by equal bytes only, and
    unreadable ones are in no group. Every pair that differs by 31 bits or less is found; beyond, a pair is missed
    if each of its 16 bands of 16 bits differs by more than one bit, which never was so among 3,480 real copies.

    Args:
        prints: Fingerprints of the images.
        max_distance: Bits of 256.
    """
    labels = np.arange(len(prints), dtype=np.int64)
    for group in exact_duplicates(prints):
        labels[group] = group[0]
    # One image of each group of equal hashes stands for it, so that a thousand black-barred copies cost nothing.
    hashed = np.setdiff1d(_readable(prints), np.flatnonzero(prints.is_plain))
    words, first, inverse = np.unique(prints.words[hashed], axis=0, return_index=True, return_inverse=True)
    components = _connect(words, max_distance)[inverse.ravel()]
    edges = [np.stack([labels, np.arange(len(labels))])]
    representative = np.full(int(components.max(initial=-1)) + 1, -1, dtype=np.int64)
    representative[components[first]] = hashed[first]
    edges.append(np.stack([representative[components], hashed]))
    return _groups(_components(len(prints), np.concatenate(edges, axis=1)))


def same_source(names: Sequence[str]) -> list[np.ndarray]:
    """Group files that Roboflow made from one, two or more: their rows, int64, ascending.

    It writes augmented copies of ``street.jpg`` as ``street_jpg.rf.HASH.jpg``; turned or flipped, their pictures
    do not tell that they belong together.

    Args:
        names: File names.
    """
    row_by_source: dict[str, int] = {}
    labels = np.arange(len(names), dtype=np.int64)
    for row, name in enumerate(names):
        source, mark, _ = name.rpartition(".rf.")
        if mark:
            labels[row] = row_by_source.setdefault(source, row)
    return _groups(labels)


def hamming(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Count the bits that differ between hashes, int64 ``[...]``; words uint64 ``[..., 4]``."""
    distance: np.ndarray = np.bitwise_count(first ^ second).sum(axis=-1, dtype=np.int64)
    return distance


def perceptual_hash(gray: Image.Image) -> tuple[np.ndarray, bool]:
    """Compute the hash of a gray picture, uint64 ``[4]``, and whether it is too plain for the hash to count."""
    small = gray.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)
    spectrum = dctn(np.asarray(small, dtype=np.float32), norm="ortho")[:_FREQUENCIES, :_FREQUENCIES]
    coefficients = spectrum[_ORDER]
    coefficients[0] = 0  # the mean
    bits = np.packbits(coefficients > _NOISE, bitorder="little")
    is_plain = int((np.abs(coefficients) > _NOISE).sum()) < _LEAST_DETAIL
    return bits.view("<u8").astype(np.uint64), is_plain


# row and column of each frequency, the lowest first
_ORDER = tuple(np.array(sorted(np.ndindex(_FREQUENCIES, _FREQUENCIES), key=lambda at: (sum(at), at))).T)


def _connect(words: np.ndarray, max_distance: int) -> np.ndarray:
    """Number the components of the hashes, int64 ``[I]``, where hashes within the distance are connected.

    Hashes are compared only where all of a 16-bit band but one bit is equal (multi-index hashing, Norouzi et al.,
    arXiv:1307.2982): 120,000 random hashes make 56 million such pairs out of 7 billion.
    """
    labels = np.arange(len(words), dtype=np.int64)
    bands = words[:, None, :] >> (np.arange(4, dtype=np.uint64) * np.uint64(_BAND_BITS))[None, :, None]
    bands = bands.transpose(0, 2, 1).reshape(len(words), _BANDS).astype(np.uint16)
    for band in range(_BANDS):
        for ignored in range(_BAND_BITS):
            keys = bands[:, band] & np.uint16(0xFFFF ^ (1 << ignored))
            labels = _connect_equal(words, keys, labels, max_distance)
    return labels


def _connect_equal(words: np.ndarray, keys: np.ndarray, labels: np.ndarray, max_distance: int) -> np.ndarray:
    """Connect hashes with equal keys that are within the distance; return the new labels."""
    order = np.argsort(keys, kind="stable")
    sorted_keys = keys[order]
    edges: list[np.ndarray] = []
    pending, left = 0, np.arange(len(order))
    for shift in itertools.count(1):
        left = left[: np.searchsorted(left, len(order) - shift)]
        left = left[sorted_keys[left] == sorted_keys[left + shift]]
        if not len(left):
            break
        first, second = order[left], order[left + shift]
        apart = labels[first] != labels[second]
        first, second = first[apart], second[apart]
        close = hamming(words[first], words[second]) <= max_distance
        if close.any():
            edges.append(np.stack([first[close], second[close]]))
            pending += int(close.sum())
        # Of a fixed camera nearly all images have the same key: once connected, they need no more comparing.
        if edges and (pending > len(labels) or shift & (shift - 1) == 0):
            labels, edges, pending = _merged(labels, edges), [], 0
        if shift & (shift - 1) == 0:
            left = left[_is_mixed(sorted_keys, labels[order])[left]]
    return _merged(labels, edges) if edges else labels


def _is_mixed(sorted_keys: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return for each position whether the run of equal keys that it lies in holds several labels, bool."""
    starts = np.flatnonzero(np.concatenate([[True], sorted_keys[1:] != sorted_keys[:-1]]))
    mixed = np.maximum.reduceat(labels, starts) != np.minimum.reduceat(labels, starts)
    return np.repeat(mixed, np.diff(np.append(starts, len(sorted_keys))))


def _merged(labels: np.ndarray, edges: Sequence[np.ndarray]) -> np.ndarray:
    ends = np.concatenate([np.stack([labels, np.arange(len(labels))]), *edges], axis=1)
    return _components(len(labels), ends)


def _components(count: int, edges: np.ndarray) -> np.ndarray:
    """Return the component of every node, numbered by its first node, int64; edges int64 ``[2, E]``."""
    ones = np.ones(edges.shape[1], dtype=np.int8)
    graph = coo_array((ones, (edges[0], edges[1])), shape=(count, count))  # type: ignore[no-untyped-call]
    _, component = connected_components(graph, directed=False)
    _, first, inverse = np.unique(component, return_index=True, return_inverse=True)
    labels: np.ndarray = first[inverse].astype(np.int64)
    return labels


def _groups(labels: np.ndarray) -> list[np.ndarray]:
    """Return the rows of every label that occurs more than once, by their first row."""
    order = np.argsort(labels, kind="stable")
    runs = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    return sorted((run for run in runs if len(run) > 1), key=lambda run: int(run[0]))


def _readable(prints: Fingerprints) -> np.ndarray:
    return np.setdiff1d(np.arange(len(prints)), np.array(list(prints.errors), dtype=np.int64))


def _fingerprint_or_error(path: str | os.PathLike[str]) -> tuple[bytes, np.ndarray, bool] | ImageError:
    try:
        return fingerprint(path)
    except ImageError as error:
        return error


def _small_gray(content: bytes, path: str | os.PathLike[str]) -> Image.Image:
    """Decode the upright gray picture. JPEG decodes at an eighth of its size, several times faster."""
    try:
        # catch_warnings is not safe between threads; the filter that might stay behind names Pillow only.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")
            with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
                image.draft("L", (4 * _SIDE, 4 * _SIDE))
                return ImageOps.exif_transpose(image.convert("L"))
    except Exception:  # another format, or a broken file, of which the full decoder says what is wrong
        try:
            pixels = decode_image(content)
        except ImageError as error:
            raise ImageError(str(error).replace(f"image of {len(content)} bytes", str(path), 1)) from error
        return Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())).convert("L")
