"""Faults of classes: names, ids, how often and where they occur."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from detrkit.curation.check.source import SplitData
from detrkit.data.faults import Findings, Location
from detrkit.errors import listed

RARE = 10
"""Training annotations below which a class is called rare."""


def check_classes(splits: Sequence[SplitData], found: Findings) -> None:
    """Check the classes of each split, then between splits."""
    totals: Counter[str] = Counter()
    for split in splits:
        totals.update(split.class_counts())
    seen: set[tuple[tuple[int, str], ...]] = set()
    for split in splits:
        pairs = tuple(zip(split.table.category_ids, split.table.category_names, strict=True))
        if pairs not in seen:  # all splits of most sets list the same: once is enough
            seen.add(pairs)
            _check_names(split, totals, found)
            if split.files.format in ("coco", "panoptic"):
                _check_ids(split, found)
    _check_unused(splits, totals, found)
    _check_between(splits, found)
    _check_occurrence(splits, found)


def spelling_key(name: str) -> str:
    """Return a key that is the same for names that differ by case and spaces only."""
    return re.sub(r"\s+", "", name).casefold()


def _check_names(split: SplitData, totals: Counter[str], found: Findings) -> None:
    table = split.table
    rows_by_name: defaultdict[str, list[int]] = defaultdict(list)
    for row, name in enumerate(table.category_names):
        rows_by_name[name].append(row)
        if name != name.strip() or not name.strip():
            example = f"category {table.category_ids[row]}: {name!r}"
            found.add("class_name_spaces", example, Location(split.name))
    for name, rows in rows_by_name.items():
        ids = [table.category_ids[row] for row in rows]
        unused = _unused_zero(split)
        if len(set(ids)) > 1 and not (len(ids) == 2 and unused is not None and unused in rows):
            example = f"{name!r} is category {' and '.join(map(str, ids))}"
            found.add("duplicate_class_names", example, Location(split.name), len(ids) - 1)
    names = list(rows_by_name)
    told: set[frozenset[str]] = set()
    for kind, key in (("class_names_differ_by_case", spelling_key), ("class_names_alike", _loose_key)):
        groups: defaultdict[str, list[str]] = defaultdict(list)
        for name in names:
            groups[key(name)].append(name)
        for group in groups.values():
            if len(group) > 1 and frozenset(group) not in told:
                told.add(frozenset(group))
                example = " and ".join(f"{name!r} ({totals[name]})" for name in group)
                found.add(kind, example, Location(split.name), len(group) - 1)


def _loose_key(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name).casefold()


def _unused_zero(split: SplitData) -> int | None:
    """Return the row of an unused category 0, which Roboflow adds with the name of the project."""
    ids = list(split.table.category_ids)
    if 0 not in ids or len(ids) < 2 or split.files.format != "coco":
        return None
    row = ids.index(0)
    return None if (split.class_rows == row).any() else row


def _check_ids(split: SplitData, found: Findings) -> None:
    ids = np.unique(np.array(split.table.category_ids, dtype=np.int64))
    place, shown = Location(split.name), f"{ids[0]} to {ids[-1]}"
    start = "category_ids_from_other" if ids[0] not in (0, 1) else f"category_ids_from_{ids[0]}"
    found.add(start, f"{len(ids)} categories, ids {shown}", place)
    missing = np.setdiff1d(np.arange(ids[0], min(int(ids[-1]), int(ids[0]) + 100_000)), ids)
    if len(missing):
        words = f"{len(ids)} categories, ids {shown}, without {listed(missing.tolist())}"
        found.add("category_ids_with_gaps", words, place)


def _check_unused(splits: Sequence[SplitData], totals: Counter[str], found: Findings) -> None:
    """Find categories that no split has annotations of; those of single splits are told of by occurrence."""
    if not totals:
        return
    told: set[tuple[int, str]] = set()
    zeros = [_unused_zero(split) for split in splits]
    for split in splits:
        pairs = zip(split.table.category_ids, split.table.category_names, strict=True)
        for row, (category_id, name) in enumerate(pairs):
            is_zero = all(zero is not None for zero in zeros) and category_id == 0
            is_used = (totals[name] and not is_zero) or (split.class_rows == row).any()
            if is_used or (category_id, name) in told:
                continue
            told.add((category_id, name))
            kind = "super_category_0" if is_zero else "unused_category"
            found.add(kind, f"{category_id}: {name!r}", Location(split.name))


def _check_between(splits: Sequence[SplitData], found: Findings) -> None:
    """Compare the class lists of other splits with the first."""
    if len(splits) < 2:
        return
    first = splits[0]
    by_id = _first_names(first)
    for split in splits[1:]:
        pairs = _first_names(split)
        ids, names = list(pairs), list(pairs.values())
        # ids of other names, names of other ids
        clashes = [
            f"{category_id} is {name!r}, in {first.name} {by_id[category_id]!r}"
            for category_id, name in zip(ids, names, strict=True)
            if category_id in by_id and by_id[category_id] != name
        ]
        renumbered = [
            f"{name!r} is {category_id}, in {first.name} {old_id}"
            for category_id, name in zip(ids, names, strict=True)
            for old_id, old in by_id.items()
            if old == name and old_id != category_id and category_id not in by_id and names.count(name) == 1
        ]
        for example in clashes + renumbered:
            found.add("class_ids_differ", example, Location(split.name))
        # names that only one of the two lists
        missing = [name for name in by_id.values() if name not in names]
        extra = [name for name in names if name not in by_id.values()]
        if (missing or extra) and not clashes:
            parts = [f"does not list {', '.join(map(repr, missing))}"] if missing else []
            parts += [f"lists {', '.join(map(repr, extra))}, which {first.name} does not"] if extra else []
            number = len(missing) + len(extra)
            found.add("class_lists_differ", " and ".join(parts), Location(split.name), number)


def _first_names(split: SplitData) -> dict[int, str]:
    """Map category ids to names, the first where an id repeats."""
    names = dict(zip(reversed(split.table.category_ids), reversed(split.table.category_names), strict=True))
    return {category_id: names[category_id] for category_id in split.table.category_ids}


def _check_occurrence(splits: Sequence[SplitData], found: Findings) -> None:
    """Find rare classes, and classes that only one split has."""
    counts = {split.name: split.class_counts() for split in splits}
    used = [name for name, counted in counts.items() if counted]
    names = list(dict.fromkeys(name for counted in counts.values() for name in counted))
    training = "train" if "train" in used else (used[0] if used else "")
    for name in names:
        number = counts[training][name]
        if number < RARE:
            images = "" if number else f", {sum(counts[split][name] for split in used)} in others"
            found.add("rare_class", f"{name!r}: {number}{images}", Location(training))
        where = [split for split in used if counts[split][name]]
        if len(used) > 1 and len(where) == 1:
            words = f"{name!r}: {counts[where[0]][name]} in {where[0]} only"
            found.add("class_in_one_split", words, Location(where[0]))
