"""Data pipelines for object detection and instance segmentation, on NVIDIA DALI and on OpenCV."""
