"""The report at the end of a run, whether it came to its end or was stopped."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from detect.running.control import TrainingInterruptedError
from dpipe.errors import InputError


@contextmanager
def report_at_the_end(work_dir: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Makes the report when a run has ended or was interrupted; one that failed has none.

    Args:
        work_dir: The run's.
        say: Is told where the report is.
    """
    try:
        yield
    except TrainingInterruptedError:
        report_of_run(work_dir, say)
        raise
    report_of_run(work_dir, say)


def report_of_run(work_dir: Path, say: Callable[[str], None]) -> None:
    """Makes the report of a run, and tells where it is.

    A report that cannot be made, for whatever reason, is told too, and ends no run: all else is written by then.

    Args:
        work_dir: The run's.
        say: Is told a line.
    """
    try:
        from detect.reporting.report import report  # what draws pictures loads when there is something to draw

        say(f"report: {report(work_dir)}")
    except Exception as error:
        reason = str(error).partition("\n")[0]
        if not isinstance(error, InputError | OSError):  # a fault of the program, whose traceback the command shows
            reason = f"{type(error).__name__}: {reason}"
        say(f"the report cannot be made: {reason}; detect report {shlex.quote(str(work_dir))} tries it again")
