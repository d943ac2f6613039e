"""Fetching public data sets: gone on with after a kill, checked, unpacked safely, laid out to be read."""

from detrkit.curation.fetch.catalogue import CATALOGUE, Archive, DatasetEntry, Licence, Part
from detrkit.curation.fetch.dataset import FetchResult, fetch, fetch_dataset, find_entry

__all__ = [
    "CATALOGUE",
    "Archive",
    "DatasetEntry",
    "FetchResult",
    "Licence",
    "Part",
    "fetch",
    "fetch_dataset",
    "find_entry",
]
