"""What lies behind the average precision of a data set's detections: curves, confusions, calibration, errors.

``matching`` pairs detections with objects, ``errors``, ``calibration`` and ``confusion`` look at the pairs,
``analyzing`` does all of it, ``comparing`` sets two results against each other; ``tables``, the ``plots`` and
``writing`` show what comes out.
"""
