"""Training: the loop, the optimiser, averaged weights, checkpoints and the log."""
