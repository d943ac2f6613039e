"""Fetching public data sets: gone on with after a kill, checked, unpacked safely, laid out to be read."""

from detrkit.curation.fetch.catalogue import CATALOGUE, Archive, DatasetEntry, Licence, Part, find_entry
from detrkit.curation.fetch.dataset import FetchResult, fetch_dataset

__all__ = ["CATALOGUE", "Archive", "DatasetEntry", "FetchResult", "Licence", "Part", "fetch_dataset", "find_entry"]
