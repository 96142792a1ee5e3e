"""Converters of published data sets into COCO JSON."""
