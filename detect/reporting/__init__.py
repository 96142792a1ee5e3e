"""The report of a training run: ``report.html`` in its work directory, and what the run keeps for it."""
