"""An ordered map over many files, on several processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from converters.errors import ConversionError
from converters.report import counted
from converters.running.processes import WorkerDiedError, in_processes
from converters.running.progress import progress
from converters.running.worker import Outcome, apply

if TYPE_CHECKING:
    from converters.running.journal import Journal

Item = TypeVar("Item")
Result = TypeVar("Result")
OnError = Literal["fail", "skip"]

# Items are handed out in groups, so that passing them costs little.
ITEMS_PER_GROUP = 8
KILLED = 9  # the number of SIGKILL, which not every system names


class WorkerError(Exception):
    """The traceback of another process, as text: the cause of a ``ConversionError``."""


def map_files(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    name_of: Callable[[Item], str],
    title: str,
    nproc: int | None = None,
    on_error: OnError = "fail",
    show_progress: bool = False,
    group_size: int = ITEMS_PER_GROUP,
    least_per_process: int = ITEMS_PER_GROUP,
    journal: Journal[Item, Result] | None = None,
) -> tuple[list[Result | None], list[str]]:
    """Applies a function to every item and keeps their order, whatever the number of processes.

    Args:
        function: A function of a module's top level (other processes import it), or a ``functools.partial`` of one.
        items: What to work on; passed to other processes, as are the results.
        name_of: The file behind an item, for errors that do not name one themselves.
        title: What is being done, for the progress.
        nproc: Number of processes; by default as many as there are cores.
        on_error: ``"fail"`` ends with the first error, in the order of the items; ``"skip"`` goes on.
        show_progress: Whether to show progress on stderr.
        group_size: How many items are handed out at a time: some milliseconds of work.
        least_per_process: How many items are worth the start of a process, which takes a tenth of a second.
        journal: Has the results of an earlier run, which are taken from there, and takes those of this one.

    Returns:
        The results, with None for a skipped item, and the errors of those.

    Raises:
        ConversionError: An item failed under ``on_error="fail"``, a process died, ran out of memory or could not start,
            or an argument is wrong.
    """
    if nproc is not None and nproc < 1:
        raise ConversionError(f"nproc is {nproc}, expected at least 1")
    if on_error not in ("fail", "skip"):
        raise ConversionError(f"on_error is {on_error!r}, expected 'fail' or 'skip'")
    results: list[Result | None] = [None] * len(items)
    errors: list[str] = []
    left = list(range(len(items)))
    if journal is not None:
        for number in left:
            results[number] = journal.known(items[number])
        left = [number for number in left if results[number] is None]
    groups = [left[i : i + group_size] for i in range(0, len(left), group_size)]
    work = [[items[number] for number in group] for group in groups]
    workers = min(nproc or available_cores(), len(left) // least_per_process)
    outcomes = _outcomes(function, work, workers, name_of)
    with progress(title, len(items), shown=show_progress) as advance, closing(outcomes):
        if len(left) < len(items):
            advance(len(items) - len(left))
        for group, of_group in zip(groups, outcomes, strict=True):
            done = [(items[number], outcome) for number, outcome in zip(group, of_group, strict=True)]
            if journal is not None:
                journal.keep([(item, outcome.value) for item, outcome in done if outcome.error is None])
            for number, (item, outcome) in zip(group, done, strict=True):
                if outcome.error is None:
                    results[number] = outcome.value
                    continue
                error = outcome.error or f"{name_of(item)}: {_last_line(outcome.details)}"
                if on_error == "fail" or outcome.out_of_memory:
                    raise ConversionError(error) from WorkerError(outcome.details)
                errors.append(error)
            advance(len(group))
    return results, errors


def available_cores() -> int:
    """Returns how many cores this process may use, which can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _outcomes(
    function: Callable[[Item], Any], groups: Sequence[Sequence[Item]], workers: int, name_of: Callable[[Item], str]
) -> Generator[list[Outcome], None, None]:
    if workers <= 1:
        for group in groups:
            yield apply(function, group)
        return
    try:
        yield from in_processes(function, groups, workers)
    except WorkerDiedError as death:
        raise ConversionError(_obituary(death, groups, workers, name_of)) from death


def _obituary(
    death: WorkerDiedError, groups: Sequence[Sequence[Item]], workers: int, name_of: Callable[[Item], str]
) -> str:
    """Tells of a process that died, and at which files."""
    if -death.status == KILLED:
        how = "was killed (out of memory?)"
    elif death.status < 0:
        how = f"crashed ({signal.Signals(-death.status).name})"
    else:
        how = f"ended by itself (exit code {death.status})"
    if death.group is None:
        return f"one of {workers} worker processes {how} at its start: try again with a smaller --nproc"
    group = groups[death.group]
    others = f" or on one of the {counted(len(group) - 1, 'file')} after it" if len(group) > 1 else ""
    return (
        f"one of {workers} worker processes {how} while it worked on {name_of(group[0])}{others}: "
        "try again with a smaller --nproc"
    )


def _last_line(details: str) -> str:
    return details.strip().splitlines()[-1]
