"""Classic DETR (arXiv:2005.12872): model, presets, published weights."""
