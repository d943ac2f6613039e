"""Blocks with parameters that more than one model family is built from."""
