"""Model families, one folder each: what they are, and how their models are built, loaded and read."""
