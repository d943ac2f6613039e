"""Fetching public data sets: gone on with after a kill, checked, unpacked safely, laid out to be read."""

from detrkit.data.fetch.catalogue import CATALOGUE
from detrkit.data.fetch.dataset import FetchResult, fetch, fetch_dataset
from detrkit.data.fetch.entry import Archive, DatasetEntry, Licence, Part
from detrkit.data.fetch.extract import Limits
from detrkit.data.fetch.web import Policy

__all__ = [
    "CATALOGUE",
    "Archive",
    "DatasetEntry",
    "FetchResult",
    "Licence",
    "Limits",
    "Part",
    "Policy",
    "fetch",
    "fetch_dataset",
]
