"""D-FINE (arXiv:2410.13842)."""
