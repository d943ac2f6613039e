"""Division of a data set, and samples of it, with every class kept in proportion.

Images hold several classes at once, so that drawing class by class does not work; iterative stratification does
(Sechidis, Tsoumakas and Vlahavas, "On the stratification of multi-label data", ECML PKDD 2011, algorithm 1).

Shapes: I images, U units (images, or groups of images that stay together), C classes, K parts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from scipy.sparse import csr_array

from detrkit.data.index import CocoIndex
from detrkit.errors import DataError, UsageError

_SUM_TOLERANCE = 1e-6
_MOST_COMPARED = 200


def split_rows(
    index: CocoIndex, shares: Mapping[str, float], seed: int = 0, groups: Sequence[np.ndarray] = ()
) -> dict[str, np.ndarray]:
    """Divide the images among parts; every image is in exactly one.

    Each class is spread over the parts as their shares say, counted in images that hold it, the rarest class
    first; so are images without objects. Groups are placed whole, the largest of a class first, and may make parts
    larger or smaller than asked.

    Args:
        index: Annotations.
        shares: Share of the images by name of the part; they sum to 1.
        seed: Seed of the choice between images that are alike in their classes.
        groups: Rows of images that must stay together, such as near-duplicates.

    Returns:
        Rows, int64, ascending, by name of the part.

    Raises:
        UsageError: A share is not above 0, or they do not sum to 1.
        DataError: There are fewer images, or fewer groups of them, than parts.
    """
    check_shares(shares)
    unit_of = _units(len(index), groups)
    num_units = int(unit_of.max(initial=-1)) + 1
    if num_units < len(shares):
        together = f" in {num_units} groups that stay together" if num_units < len(index) else ""
        raise DataError(
            f"{len(index)} images{together} cannot be divided into {len(shares)} parts ({', '.join(shares)}); "
            "add images, or ask for fewer parts" + (" or for no groups" if together else "")
        )
    counts = _class_counts(index, unit_of, num_units)
    sizes = np.bincount(unit_of, minlength=num_units)
    wanted = np.array(list(shares.values()))
    random = np.random.default_rng(seed)
    part_of = _stratify(counts, sizes, wanted / wanted.sum(), random)
    _fill_empty_parts(part_of, sizes, len(shares))
    return {name: np.flatnonzero(part_of[unit_of] == part) for part, name in enumerate(shares)}


def sample_rows(index: CocoIndex, count: int, seed: int = 0, min_per_class: int = 1) -> np.ndarray:
    """Choose a small part of the images, with the classes in proportion; return their rows, int64, ascending.

    Each class first gets ``min_per_class`` images, if it has and ``count`` allows so many, the rarest first; the
    rest is drawn in proportion. Very small parts therefore hold more classes an image than the whole.

    Args:
        index: Annotations.
        count: Number of images wanted; all, if there are not more.
        seed: Seed of the choice.
        min_per_class: Number of images that each class gets at least, where possible.

    Raises:
        UsageError: ``count`` is not above 0.
    """
    if count < 1:
        raise UsageError(f"asked for {count} images, expected at least 1")
    total = len(index)
    if count >= total:
        return np.arange(total)
    random = np.random.default_rng(seed)
    counts = _class_counts(index, np.arange(total), total)
    covering = _cover(counts, count, min_per_class, random)
    rest = np.setdiff1d(np.arange(total), covering)
    wanted = count - len(covering)
    if not wanted:
        return np.sort(covering)
    share = wanted / len(rest)
    part_of = _stratify(counts[rest], np.ones(len(rest), np.int64), np.array([share, 1 - share]), random)
    chosen, others = (random.permutation(rest[part_of == part]) for part in (0, 1))
    chosen = np.concatenate([chosen, others[: max(0, wanted - len(chosen))]])[:wanted]
    return np.sort(np.concatenate([covering, chosen]))


def class_shares(index: CocoIndex, parts: Iterable[np.ndarray]) -> np.ndarray:
    """Compute the share of each class's images that lies in each part, float64 ``[K, C]``; NaN without any."""
    counts = _class_counts(index, np.arange(len(index)), len(index))[:, :-1].toarray()
    totals = counts.sum(axis=0).astype(np.float64)
    totals[totals == 0] = np.nan
    shares: np.ndarray = np.stack([counts[rows].sum(axis=0) / totals for rows in parts])
    return shares


def parse_shares(text: str) -> dict[str, float]:
    """Parse ``train=0.8,val=0.1,test=0.1`` to numbers by name.

    Raises:
        UsageError: A piece is not NAME=SHARE, a name repeats, or the shares do not sum to 1.
    """
    shares: dict[str, float] = {}
    for piece in text.split(","):
        match = re.fullmatch(r"\s*([A-Za-z]+)\s*=\s*(\d*\.?\d+)\s*", piece)
        if match is None:
            raise UsageError(f"{piece.strip()!r} in {text!r} is not NAME=SHARE, as train=0.8; names are letters")
        if match[1] in shares:
            raise UsageError(f"{match[1]!r} is named twice in {text!r}")
        shares[match[1]] = float(match[2])
    check_shares(shares)
    return shares


def check_shares(shares: Mapping[str, float]) -> None:
    """Refuse shares that cannot be.

    Raises:
        UsageError: There is none, one is not above 0, or they do not sum to 1.
    """
    named = ", ".join(f"{name}={share:g}" for name, share in shares.items())
    if not shares or min(shares.values()) <= 0:
        raise UsageError(f"shares are {named or 'not given'}; expected numbers above 0, as in train=0.8,val=0.2")
    total = sum(shares.values())
    if abs(total - 1) > _SUM_TOLERANCE:
        raise UsageError(f"shares {named} sum to {total:g}, expected 1")


def _units(num_images: int, groups: Sequence[np.ndarray]) -> np.ndarray:
    """Return the unit of each image, int64 ``[I]``: its group, or its own."""
    first = np.arange(num_images)
    # Groups that share an image are one; each pass carries the least row one group further.
    while any(len(np.unique(first[group])) > 1 for group in groups):
        for group in groups:
            first[group] = first[group].min()
    units: np.ndarray = np.unique(first, return_inverse=True)[1].astype(np.int64)
    return units


def _class_counts(index: CocoIndex, unit_of: np.ndarray, num_units: int) -> csr_array:
    """Count the images of each unit that hold each class, or none (last column): ``[U, C + 1]``."""
    num_classes = len(index.class_map)
    one = ~index.iscrowd
    image_rows = np.repeat(np.arange(len(index)), np.diff(index.offsets))
    pairs = np.unique(image_rows[one] * num_classes + index.labels[one])
    images, labels = np.divmod(pairs, max(num_classes, 1))
    empty = np.setdiff1d(np.arange(len(index)), images)
    rows = unit_of[np.concatenate([images, empty])]
    columns = np.concatenate([labels, np.full(len(empty), num_classes)])
    ones = np.ones(len(rows), dtype=np.int64)
    shape = (num_units, num_classes + 1)
    return csr_array((ones, (rows, columns)), shape=shape)  # type: ignore[no-untyped-call]


def _stratify(counts: csr_array, sizes: np.ndarray, shares: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Choose a part for each unit, int64 ``[U]``: algorithm 1 of the paper, for units of several images.

    Departs from it in one thing: where a unit is larger than what any part still wants of the class, the part
    whose total has most room takes it, so that a big group does not fill the smallest part many times over.
    """
    part_of = np.full(len(sizes), -1, dtype=np.int64)
    by_label = counts.tocsc()  # type: ignore[no-untyped-call]
    wanted_total = shares * sizes.sum()
    remaining = np.bincount(counts.indices, weights=counts.data, minlength=counts.shape[1]).astype(np.int64)
    wanted = shares[:, None] * remaining
    while (remaining > 0).any():
        label = int(np.where(remaining > 0, remaining, np.iinfo(np.int64).max).argmin())
        units = by_label.indices[by_label.indptr[label] : by_label.indptr[label + 1]]
        units = random.permutation(units[part_of[units] < 0])
        for unit in units[np.argsort(-sizes[units], kind="stable")]:
            span = slice(counts.indptr[unit], counts.indptr[unit + 1])
            columns, values = counts.indices[span], counts.data[span]
            part = _neediest(wanted[:, label], wanted_total, int(sizes[unit]), random)
            part_of[unit] = part
            wanted[part, columns] -= values
            wanted_total[part] -= sizes[unit]
            remaining[columns] -= values
    return part_of


def _neediest(wanted: np.ndarray, wanted_total: np.ndarray, size: int, random: np.random.Generator) -> int:
    """Return the part that lacks most of a class, then most images; chance decides what is left."""
    if size > 1 and wanted.max() < size:
        wanted = wanted_total
    best = np.flatnonzero(np.isclose(wanted, wanted.max()))
    if len(best) > 1:
        best = best[np.isclose(wanted_total[best], wanted_total[best].max())]
    return int(best[0] if len(best) == 1 else random.choice(best))


def _fill_empty_parts(part_of: np.ndarray, sizes: np.ndarray, num_parts: int) -> None:
    """Give each part that got nothing the smallest unit of the part with the most units, in place."""
    for part in range(num_parts):
        units_of = np.bincount(part_of, minlength=num_parts)
        if not units_of[part]:
            candidates = np.flatnonzero(part_of == units_of.argmax())
            part_of[candidates[sizes[candidates].argmin()]] = part


def _cover(counts: csr_array, most: int, min_per_class: int, random: np.random.Generator) -> np.ndarray:
    """Choose few images that give each class so many, the rarest first; those with most that is missing."""
    by_label = counts[:, :-1].tocsc()
    available = np.diff(by_label.indptr)
    missing = np.minimum(available, min_per_class)
    chosen: list[int] = []
    taken = np.zeros(counts.shape[0], dtype=bool)
    for label in np.argsort(available, kind="stable"):
        while missing[label] > 0 and len(chosen) < most:
            units = by_label.indices[by_label.indptr[label] : by_label.indptr[label + 1]]
            units = random.permutation(units[~taken[units]])
            compared = units[:_MOST_COMPARED]
            gains = [(missing[_columns(counts, unit, len(missing))] > 0).sum() for unit in compared]
            unit = int(compared[int(np.argmax(gains))])
            chosen.append(unit)
            taken[unit] = True
            missing[_columns(counts, unit, len(missing))] -= 1
    return np.array(chosen, dtype=np.int64)


def _columns(counts: csr_array, unit: int, num_classes: int) -> np.ndarray:
    columns: np.ndarray = counts.indices[counts.indptr[unit] : counts.indptr[unit + 1]]
    return columns[columns < num_classes]
