"""Log of a training: metrics.jsonl, TensorBoard, trackers."""
