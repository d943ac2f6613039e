"""What a training says of itself: log, TensorBoard, trackers."""
