"""Exported models at work, without torch."""
