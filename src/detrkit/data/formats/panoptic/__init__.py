"""COCO panoptic: PNG and JSON."""
