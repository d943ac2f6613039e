"""One list of classes for all splits: every name once, every id once."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from detrkit.curation.check.classes import spelling_key
from detrkit.curation.check.source import SplitData
from detrkit.curation.check.tables import class_counts
from detrkit.curation.fix.changes import Change

KINDS_OF_CLASSES = (
    "duplicate_category_ids",
    "duplicate_class_names",
    "class_names_differ_by_case",
    "class_name_spaces",
    "class_ids_differ",
    "class_lists_differ",
)


def united_classes(
    splits: Sequence[SplitData], entries: Mapping[str, Sequence[Mapping[str, Any]]], changes: list[Change]
) -> tuple[list[dict[str, Any]], dict[str, list[int]]]:
    """The categories of all splits as one list, and what became of those of each split.

    Args:
        splits: The first one's ids are kept where they can be.
        entries: Category entries of each split.
        changes: Told of every renaming and renumbering.

    Returns:
        Category entries, and for each split the new id of each category row.
    """
    spelling = _spellings(splits)
    united: dict[str, dict[str, Any]] = {}
    taken: set[int] = set()
    reserved = {number for split in splits for number in split.table.category_ids}
    rows: dict[str, list[int]] = {}
    for split in splits:
        rows[split.name] = []
        for entry, category_id, listed in zip(
            entries[split.name], split.table.category_ids, split.table.category_names, strict=True
        ):
            name = spelling.get(spelling_key(listed)) or f"class_{category_id}"
            if name not in united:
                new_id = category_id if category_id not in taken else max(taken | reserved) + 1
                taken.add(new_id)
                united[name] = {**entry, "id": new_id, "name": name}
            new_id = united[name]["id"]
            rows[split.name].append(new_id)
            what = f"category {category_id} {listed!r}"
            if name != listed:
                kind = "class_name_spaces" if name == listed.strip() else "class_names_differ_by_case"
                changes.append(Change(split.name, kind, what, "name", listed, name))
            if new_id != category_id:
                kind = _renumbering(split, category_id, listed)
                changes.append(Change(split.name, kind, what, "id", category_id, new_id))
    for split in splits:
        known = set(rows[split.name])
        for name, entry in united.items():
            if entry["id"] not in known:
                what = f"category {entry['id']}"
                changes.append(Change(split.name, "class_lists_differ", what, "name", None, name))
    return list(united.values()), rows


def _renumbering(split: SplitData, category_id: int, name: str) -> str:
    if list(split.table.category_ids).count(category_id) > 1:
        return "duplicate_category_ids"
    names = list(split.table.category_names)
    if names.count(name) > 1:
        return "duplicate_class_names"
    keys = [spelling_key(other) for other in names]
    return "class_names_differ_by_case" if keys.count(spelling_key(name)) > 1 else "class_ids_differ"


def _spellings(splits: Sequence[SplitData]) -> dict[str, str]:
    """The spelling of each name that is used most, the first of equals; without spaces at its ends."""
    totals: Counter[str] = Counter()
    for split in splits:
        totals.update(class_counts(split))
    found: defaultdict[str, list[str]] = defaultdict(list)
    for split in splits:
        for name in split.table.category_names:
            found[spelling_key(name)].append(name)
    return {key: max(names, key=lambda name: totals[name]).strip() for key, names in found.items()}
