"""Data sets: finding, reading, augmenting and batching them."""
