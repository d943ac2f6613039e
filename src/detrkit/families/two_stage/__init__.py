"""A DETR for little data, whose queries are the most promising tokens of the image itself."""
