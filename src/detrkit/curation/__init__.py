"""What `detrkit data` does: check, fix, fetch, statistics, subsets, conversion, previews."""
