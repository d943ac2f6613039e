"""How fast detectors learn from random weights: recipes of detrkit and peers, under one budget."""
