"""Adapters to clusters, around the same training."""
