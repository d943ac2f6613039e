"""From images to detections, and to the pictures and files that show them."""
