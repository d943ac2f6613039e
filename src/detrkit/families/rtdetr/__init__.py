"""RT-DETRv2 (arXiv:2407.17140)."""
