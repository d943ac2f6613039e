"""Matching predictions to ground truth, and the losses of matched pairs."""
