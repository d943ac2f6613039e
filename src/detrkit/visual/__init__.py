"""Pictures and pages: boxes drawn on images, plots, self-contained HTML. Knows nothing of data sets or models."""
