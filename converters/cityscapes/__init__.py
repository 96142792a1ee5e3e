"""Cityscapes to COCO JSON."""
