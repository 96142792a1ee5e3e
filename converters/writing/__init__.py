"""COCO JSON files and their masks."""
