"""Bundles behind HTTP, without torch: see ``docs/serving.md``."""
