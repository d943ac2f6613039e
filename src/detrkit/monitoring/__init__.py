"""Watching a model in production: what is sent to it against what it was made for."""
