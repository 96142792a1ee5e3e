"""An ordered map over many files, on several processes."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from converters.errors import ConversionError
from converters.progress import progress
from converters.signals import signals_held_back

Item = TypeVar("Item")
Result = TypeVar("Result")
OnError = Literal["fail", "skip"]

# Items are handed out in groups, so that passing them costs little; a process is not worth its start for less than one
# group.
ITEMS_PER_CHUNK = 8


class WorkerError(Exception):
    """The traceback of another process, as text: the cause of a ``ConversionError``."""


@dataclass(frozen=True)
class Outcome(Generic[Result]):
    """What became of one item: a value, or the one line that says what went wrong."""

    value: Result | None
    error: str | None = None
    details: str = ""


def map_files(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    name_of: Callable[[Item], str],
    title: str,
    nproc: int | None = None,
    on_error: OnError = "fail",
    show_progress: bool = False,
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

    Returns:
        The results, with None for a skipped item, and the errors of those.

    Raises:
        ConversionError: An item failed under ``on_error="fail"``, a process died or could not start, or an argument is
            wrong.
    """
    if nproc is not None and nproc < 1:
        raise ConversionError(f"nproc is {nproc}, expected at least 1")
    if on_error not in ("fail", "skip"):
        raise ConversionError(f"on_error is {on_error!r}, expected 'fail' or 'skip'")
    chunks = [items[i : i + ITEMS_PER_CHUNK] for i in range(0, len(items), ITEMS_PER_CHUNK)]
    workers = min(nproc or available_cores(), len(chunks))
    results: list[Result | None] = []
    errors: list[str] = []
    outcomes = (
        _in_processes(function, chunks, workers) if workers > 1 else (_run_chunk(function, chunk) for chunk in chunks)
    )
    with progress(title, len(items), shown=show_progress) as advance, closing(outcomes):
        for chunk, chunk_outcomes in zip(chunks, outcomes, strict=True):
            for item, outcome in zip(chunk, chunk_outcomes, strict=True):
                results.append(outcome.value)
                if outcome.error is None:
                    continue
                error = outcome.error or f"{name_of(item)}: {outcome.details.strip().splitlines()[-1]}"
                if on_error == "fail":
                    raise ConversionError(error) from WorkerError(outcome.details)
                errors.append(error)
            advance(len(chunk))
    return results, errors


def available_cores() -> int:
    """Returns how many cores this process may use, which can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _run_chunk(function: Callable[[Item], Result], chunk: Sequence[Item]) -> list[Outcome[Result]]:
    return [_run_item(function, item) for item in chunk]


def _run_item(function: Callable[[Item], Result], item: Item) -> Outcome[Result]:
    try:
        return Outcome(function(item))
    except ConversionError as error:
        return Outcome(None, str(error), traceback.format_exc())
    except Exception:  # named by the caller, who knows the file
        return Outcome(None, "", traceback.format_exc())


def _in_processes(
    function: Callable[[Item], Result], chunks: Sequence[Sequence[Item]], workers: int
) -> Generator[list[Outcome[Result]], None, None]:
    # Never a plain fork: the caller's process may run threads (a progress bar, OpenCV, torch), which a fork breaks.
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    # Imported once, in the server that the workers are forked from. Not so the main program, which most versions of
    # Python leave out there anyway: one that cannot be imported would end the server instead of a worker.
    context.set_forkserver_preload([_module_of(function)])
    executor = ProcessPoolExecutor(workers, mp_context=context, initializer=_prepare_worker)
    try:
        with signals_held_back():  # a worker that is interrupted at its start, or unknown to its parent, makes a mess
            started = executor.submit(os.getpid)  # first in the queue: it succeeds as soon as a worker is up
            futures = [executor.submit(_run_chunk, function, chunk) for chunk in chunks]
        for future in futures:
            yield future.result()
    except BrokenProcessPool as error:
        if started.exception() is not None:
            raise ConversionError(
                "no worker process could start, as happens where Python cannot import the main program again: call "
                'from a script\'s file, not from stdin, and below `if __name__ == "__main__":`, or with nproc=1'
            ) from error
        raise ConversionError(
            f"one of {workers} worker processes was killed (out of memory?): try again with a smaller --nproc"
        ) from error
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _module_of(function: Callable[..., object]) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    return function.__module__


def _prepare_worker() -> None:
    """Leaves Ctrl-C to the parent process, and ends with it however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
