"""Scripts that time detrkit beside its peers in one run."""
