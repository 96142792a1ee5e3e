"""The files of a run's data sets that could not be used, each told once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from detect.data import skipped_anywhere

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from detect.running.logs import RunLog
    from dpipe.loader import DetectionLoader


class SkippedFiles:
    """Logs what loaders skip, on any process.

    Args:
        fabric: Launched.
        log: Gets the files, and tells which an earlier part of the run has skipped.
    """

    def __init__(self, fabric: Fabric, log: RunLog) -> None:
        self._fabric, self._log = fabric, log
        self._known: dict[str, dict[str, str]] = {"train": {}, "val": {}}
        for record in log.records:
            if record["kind"] == "skipped":
                self._known[record["set"]] |= record["files"]

    def note(self, data_set: str, loader: DetectionLoader, iteration: int) -> dict[str, str]:
        """Logs those files that were not known, and returns all of this loader; all processes call it together.

        Args:
            data_set: ``train`` or ``val``.
            loader: What has skipped files, each with a reason.
            iteration: Iterations done.
        """
        found, known = skipped_anywhere(loader, self._fabric), self._known[data_set]
        new = {name: reason for name, reason in found.items() if name not in known}
        if new:
            known |= new
            self._log.skipped(data_set, iteration, new)
        return found

    def tell(self) -> None:
        """Says all of them, a line for each."""
        for data_set, files in self._known.items():
            for name, reason in files.items():
                self._log.say(f"skipped in {data_set}: {name}: {reason}")
