"""The same picture in two splits, or twice in one.

Splits that are put together of others, such as trainval, are not held against these.
"""

from __future__ import annotations

import functools
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from detrkit.curation.check.pictures import Objects, agreement, is_copy, read_thumbnail
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
        for row in range(len(split.resolved)):
            path = split.path(row)
            if path is not None and not split.has_faulty_file(row):
                places_of[os.path.realpath(path)].append(Location(split.name, row))
    tell = None if progress is None else (lambda done, total: progress("duplicates", done, total))
    prints = fingerprints(list(places_of), workers=workers, progress=tell)
    pictures = _Pictures(splits, places_of, prints)
    # files of the same bytes: one of them stands for all in what follows
    leader: dict[bytes, int] = {}
    same: defaultdict[int, list[Location]] = defaultdict(list)
    first_of = np.arange(len(prints))
    for number in range(len(prints)):
        if number not in prints.errors:
            first_of[number] = leader.setdefault(prints.sha256[number].tobytes(), number)
            same[int(first_of[number])] += pictures.places[number]
    for places in same.values():
        _report_same(places, pictures, found)
    for group in near_duplicates(prints):
        members = list(dict.fromkeys(first_of[group].tolist()))
        if len(members) > 1:
            _report_near(members, pictures, found)


def apart(splits: Sequence[SplitData]) -> list[SplitData]:
    """Return the splits without those that are unions of others."""
    files = {
        split.name: {str(split.files.images / name) for name in split.resolved if name is not None}
        for split in splits
    }
    kept = []
    for split in splits:
        mine = files[split.name]
        parts = [
            other
            for name, other in files.items()
            if name != split.name and UNION_SHARE * len(other) <= len(other & mine) and 0 < len(other) < len(mine)
        ]
        if len(parts) < 2:
            kept.append(split)
    return kept


def leaves(places: Sequence[Location]) -> list[Location]:
    """Return those places of one picture that have to go so that one split has it: all but the measuring one."""
    splits = list(dict.fromkeys(place.split for place in places))
    keeper = next((name for name in (*MEASURES, *splits) if name in splits), "")
    return [place for place in places if place.split != keeper]


class _Pictures:
    """Image files, the places of each in the splits, and the objects in them.

    Args:
        splits: Splits as checked.
        places_of: Places of each file.
        prints: Fingerprints of the files.
    """

    def __init__(
        self, splits: Sequence[SplitData], places_of: Mapping[str, list[Location]], prints: Fingerprints
    ) -> None:
        self.paths, self.places, self.prints = list(places_of), list(places_of.values()), prints
        self._splits = {split.name: split for split in splits}
        self._order = {split.name: np.argsort(split.image_rows, kind="stable") for split in splits}
        self._thumbnail = functools.lru_cache(maxsize=256)(lambda at: read_thumbnail(Path(self.paths[at])))

    def name(self, place: Location) -> str:
        """Return the split and the file name of an image."""
        return f"{place.split}: {self._splits[place.split].table.file_names[place.image]}"

    def words(self, places: Sequence[Location], why: str) -> str:
        """Describe images that belong together."""
        shown = " = ".join(self.name(place) for place in places[:MAX_SHOWN])
        return f"{shown}{' = ...' if len(places) > MAX_SHOWN else ''} ({why})"

    def is_copy(self, one: int, two: int, bits: int) -> bool:
        """Return whether two images, whose hashes differ by so many bits, are copies of one picture."""
        objects = self._objects(self.places[one][0])
        share = agreement(objects, self._objects(self.places[two][0]))
        if share is not None and share < LEAST_AGREEMENT:
            return False
        if share == 1 and (len(objects.names) >= TELLING_OBJECTS or bits <= TELLING_BITS):
            return True
        first, second = self._thumbnail(one), self._thumbnail(two)
        return first is not None and second is not None and is_copy(first, second)

    def _objects(self, place: Location) -> Objects:
        split, order = self._splits[place.split], self._order[place.split]
        start, stop = np.searchsorted(split.image_rows, (place.image, place.image + 1), sorter=order)
        rows = order[start:stop]
        rows = rows[(split.class_rows[rows] >= 0) & np.isfinite(split.repaired_xywh[rows]).all(axis=1)]
        extent = np.maximum(split.limits_hw[place.image][[1, 0, 1, 0]], 1)
        boxes = split.repaired_xywh[rows] / extent
        names = np.array(split.table.category_names, dtype=object)[split.class_rows[rows]]
        return Objects(np.concatenate([boxes[:, :2] + boxes[:, 2:] / 2, boxes[:, 2:]], axis=1), names)


def _report_same(places: Sequence[Location], pictures: _Pictures, found: Findings) -> None:
    """Report files of the same bytes: between splits, and within each."""
    by_split: defaultdict[str, list[Location]] = defaultdict(list)
    for place in places:
        by_split[place.split].append(place)
    if len(by_split) > 1:
        firsts = [members[0] for members in by_split.values()]
        found.add_group("image_in_two_splits", places, pictures.words(firsts, "the same bytes"))
    for members in by_split.values():
        # One file that is listed twice is a fault of the table; here are copies under other names.
        if len(set(map(pictures.name, members))) > 1:
            found.add_group("duplicate_images", members, pictures.words(members, "the same bytes"))


def _report_near(members: Sequence[int], pictures: _Pictures, found: Findings) -> None:
    """Report pairs between splits one by one, with the nearest copy; a group within a split as one."""
    first_place = {number: pictures.places[number][0] for number in members}
    by_split: defaultdict[str, list[int]] = defaultdict(list)
    for number, place in first_place.items():
        by_split[place.split].append(number)
    words = pictures.prints.words
    for split, numbers in by_split.items():
        for candidates in (by_split[other] for other in by_split if _gives_up(split, other)):
            for number in numbers:
                # the nearest images of the other split, and which of them are copies
                distance = hamming(words[number], words[candidates])
                order = np.argsort(distance, kind="stable")[:MOST_COMPARED]
                near = [(candidates[at], int(distance[at])) for at in order if distance[at] <= MAX_DISTANCE]
                copies = [(other, bits) for other, bits in near if pictures.is_copy(number, other, bits)]
                for nearest, bits in (copies or near)[:1]:
                    pair = [first_place[number], first_place[nearest]]
                    kind = "near_duplicate_in_two_splits" if copies else "same_scene_in_two_splits"
                    found.add_group(kind, pair, pictures.words(pair, f"{bits} of 256 bits differ"))
        if len(numbers) > 1:
            group = [first_place[number] for number in numbers]
            found.add_group("near_duplicate_images", group, pictures.words(group, f"{len(group)} images"))


def _gives_up(one: str, other: str) -> bool:
    """Return whether a split, rather than another, gives up an image that lies in both."""
    rank = {name: number for number, name in enumerate(MEASURES)}
    return one == max((one, other), key=lambda name: (rank.get(name, len(rank)), name)) and one != other
