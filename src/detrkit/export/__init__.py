"""Exporting models: from a network to a bundle that runs without torch."""
