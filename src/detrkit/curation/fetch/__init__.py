"""Fetching public data sets: gone on with after a kill, checked, unpacked safely, laid out to be read."""

from detrkit.curation.fetch.catalogue import CATALOGUE
from detrkit.curation.fetch.dataset import FetchResult, fetch, fetch_dataset
from detrkit.curation.fetch.entry import Archive, DatasetEntry, Licence, Part
from detrkit.curation.fetch.extract import Limits
from detrkit.curation.fetch.web import Policy

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
