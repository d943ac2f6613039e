"""How good detections are: COCO box metrics, and the tables and pictures that show them."""
