"""Several detectors on the same images, measured by the same evaluator."""
