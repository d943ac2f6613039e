"""The same picture in two splits, or twice in one.

Splits that are put together of others, such as trainval, are not held against these.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from detrkit.curation.check.pictures import Objects, Thumbnail, agreement, is_copy, read_thumbnail
from detrkit.curation.check.source import SplitData
from detrkit.curation.duplicates import MAX_DISTANCE, Fingerprints, fingerprints, hamming, near_duplicates
from detrkit.data.faults import Findings, Location

UNION_SHARE = 0.95
"""A split that lists so much of two others is their union."""
MEASURES = ("test", "val")
"""Splits that keep an image that lies in several, the first before the second."""
MAX_SHOWN = 4
LEAST_AGREEMENT = 0.75
"""Share of objects that copies have in common."""
TELLING_OBJECTS = 3
"""So many objects, all of which agree, are not in the same places by chance, and pixels need not be looked at."""
TELLING_BITS = 22
"""Nor need they where few objects agree, and the hashes differ by no more than compressing and resizing does."""
MOST_COMPARED = 20
"""Images of another split that each image is compared with, pixel by pixel."""


def check_duplicates(
    splits: Sequence[SplitData],
    found: Findings,
    workers: int | None,
    progress: Callable[[str, int, int], None] | None,
) -> None:
    """Compare all images that can be read, by their bytes and by perceptual hash."""
    places_of: defaultdict[str, list[Location]] = defaultdict(list)
    for split in apart(splits):
        for row, name in enumerate(split.resolved):
            if name is not None and not split.has_faulty_file(row):
                path = os.path.realpath(split.files.images / name)
                places_of[path].append(Location(split.name, row))
    paths = list(places_of)
    tell = None if progress is None else (lambda done, total: progress("duplicates", done, total))
    prints = fingerprints(paths, workers=workers, progress=tell)
    names = {split.name: split.table.file_names for split in splits}

    def told(place: Location) -> str:
        return f"{place.split}: {names[place.split][place.image]}"

    same = _same_bytes(prints)
    for group in same:
        places = [place for number in group for place in places_of[paths[number]]]
        _report_same(places, found, told)
    near = near_duplicates(prints)
    leader = {number: group[0] for group in same for number in group}
    for group_rows in near:
        # Files of the same bytes have been told of: one of them stands for all.
        members = list(dict.fromkeys(leader.get(number, number) for number in group_rows.tolist()))
        if len(members) > 1:
            near_members = [(number, places_of[paths[number]][0]) for number in members]
            _report_near(near_members, prints, paths, _Marked(splits), found, told)


def apart(splits: Sequence[SplitData]) -> list[SplitData]:
    """Return the splits without those that are unions of others."""
    files = {
        split.name: {str(split.files.images / name) for name in split.resolved if name is not None}
        for split in splits
    }
    kept = []
    for split in splits:
        mine = files[split.name]
        inside = [
            other
            for name, other in files.items()
            if name != split.name
            and other
            and len(other & mine) >= UNION_SHARE * len(other)
            and len(other) < len(mine)
        ]
        if len(inside) < 2:
            kept.append(split)
    return kept


def leaves(places: Sequence[Location]) -> list[Location]:
    """Return those places of one picture that have to go so that one split has it: all but the measuring one."""
    splits = list(dict.fromkeys(place.split for place in places))
    keeper = next((name for name in (*MEASURES, *splits) if name in splits), "")
    return [place for place in places if place.split != keeper]


def _same_bytes(prints: Fingerprints) -> list[list[int]]:
    rows_of: defaultdict[bytes, list[int]] = defaultdict(list)
    for row in range(len(prints)):
        if row not in prints.errors:
            rows_of[prints.sha256[row].tobytes()].append(row)
    return list(rows_of.values())


def _report_same(places: Sequence[Location], found: Findings, told: Callable[[Location], str]) -> None:
    by_split: defaultdict[str, list[Location]] = defaultdict(list)
    for place in places:
        by_split[place.split].append(place)
    if len(by_split) > 1:
        firsts = [members[0] for members in by_split.values()]
        found.add_group("image_in_two_splits", [*places], _are(firsts, told, "the same bytes"))
    for members in by_split.values():
        # One file that is listed twice is a fault of the table; here are copies under other names.
        if len(members) > 1 and len({told(place) for place in members}) > 1:
            found.add_group("duplicate_images", members, _are(members, told, "the same bytes"))


def _report_near(
    members: Sequence[tuple[int, Location]],
    prints: Fingerprints,
    paths: Sequence[str],
    objects: Callable[[Location], Objects],
    found: Findings,
    told: Callable[[Location], str],
) -> None:
    """Report pairs between splits one by one, with the nearest copy; a group within a split as one."""
    rows = np.array([number for number, _ in members])
    words = prints.words[rows]
    by_split: defaultdict[str, list[int]] = defaultdict(list)
    for at, (_, place) in enumerate(members):
        by_split[place.split].append(at)
    scene = _Scene([paths[number] for number, _ in members], [objects(place) for _, place in members])
    for split, positions in by_split.items():
        for other, candidates in by_split.items():
            if other == split or split != _leaving(split, other):
                continue
            for at in positions:
                distance = hamming(words[at], words[candidates])
                order = np.argsort(distance, kind="stable")[:MOST_COMPARED]
                near = [int(number) for number in order if distance[number] <= MAX_DISTANCE]
                copies = [number for number in near if scene.is_copy(at, candidates[number], distance[number])]
                if near:
                    nearest = (copies or near)[0]
                    pair = [members[at][1], members[candidates[nearest]][1]]
                    kind = "near_duplicate_in_two_splits" if copies else "same_scene_in_two_splits"
                    bits = int(distance[nearest])
                    found.add_group(kind, pair, _are(pair, told, f"{bits} of 256 bits differ"))
        if len(positions) > 1:
            group = [members[at][1] for at in positions]
            found.add_group("near_duplicate_images", group, _are(group, told, f"{len(group)} images"))


class _Scene:
    """Images of nearly equal hashes: copies of one picture, or pictures of one fixed camera."""

    def __init__(self, paths: Sequence[str], objects: Sequence[Objects]):
        self.paths, self.objects = paths, objects
        self.thumbnails: dict[int, Thumbnail | None] = {}

    def is_copy(self, one: int, two: int, bits: int) -> bool:
        """Return whether two of the images, whose hashes differ by so many bits, are copies of one picture."""
        share = agreement(self.objects[one], self.objects[two])
        if share is not None and share < LEAST_AGREEMENT:
            return False
        if share == 1 and (len(self.objects[one].names) >= TELLING_OBJECTS or bits <= TELLING_BITS):
            return True
        first, second = self._thumbnail(one), self._thumbnail(two)
        return first is not None and second is not None and is_copy(first, second)

    def _thumbnail(self, at: int) -> Thumbnail | None:
        if at not in self.thumbnails:
            self.thumbnails[at] = read_thumbnail(Path(self.paths[at]))
        return self.thumbnails[at]


class _Marked:
    """Gives the objects of an image by its place."""

    def __init__(self, splits: Sequence[SplitData]):
        self.splits = {split.name: split for split in splits}
        self.order = {split.name: np.argsort(split.image_rows, kind="stable") for split in splits}

    def __call__(self, place: Location) -> Objects:
        split = self.splits[place.split]
        order = self.order[place.split]
        start, stop = np.searchsorted(split.image_rows, (place.image, place.image + 1), sorter=order)
        rows = order[start:stop]
        rows = rows[(split.class_rows[rows] >= 0) & np.isfinite(split.repaired_xywh[rows]).all(axis=1)]
        extent = np.maximum(split.limits_hw[place.image][[1, 0, 1, 0]], 1)
        boxes = split.repaired_xywh[rows] / extent
        names = np.array(split.table.category_names, dtype=object)[split.class_rows[rows]]
        return Objects(np.concatenate([boxes[:, :2] + boxes[:, 2:] / 2, boxes[:, 2:]], axis=1), names)


def _leaving(one: str, two: str) -> str:
    """Return which of two splits gives an image up."""
    rank = {name: number for number, name in enumerate(MEASURES)}
    return max((one, two), key=lambda name: (rank.get(name, len(rank)), name))


def _are(places: Sequence[Location], told: Callable[[Location], str], words: str) -> str:
    shown = " = ".join(told(place) for place in places[:MAX_SHOWN])
    return f"{shown}{' = ...' if len(places) > MAX_SHOWN else ''} ({words})"
