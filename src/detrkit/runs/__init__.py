"""Training runs from a config: data, model and loop put together; where training meets evaluation."""
