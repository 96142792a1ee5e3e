"""Pascal VOC to COCO JSON."""
