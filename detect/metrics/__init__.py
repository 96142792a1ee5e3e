"""Metrics: each kind of evaluation in a module of its own, over detections of a whole data set (``results``).

``evaluating`` runs any of them, ``tables`` prints what they give.
"""
