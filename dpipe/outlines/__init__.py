"""Polygons in flat arrays: read, clip, rasterise and write them."""
