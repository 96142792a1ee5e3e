"""A compact trainer for Cascade Mask R-CNN, Faster R-CNN and their family, from short YAML recipes."""
