"""Work on a second core, for code that holds the interpreter."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = Sequence[NDArray[Any]]


@contextmanager
def computed_aside(work: Callable[[], Arrays]) -> Iterator[Callable[[], Arrays]]:
    """Computes arrays in a forked process while this one goes on.

    The process has all that this one has, at no cost, and gives its arrays back through memory. Where there is no
    second core, or this process runs other threads of Python, which a fork would leave half-way, or where anything
    goes wrong, the work is done here, when its result is asked for.

    Args:
        work: Has no other effect than its result, and starts no threads.

    Yields:
        What gives the result; it raises whatever ``work`` raises.
    """
    child = _fork(work) if _can_fork() else None
    if child is None:
        yield work
        return
    number, memory = child
    state: list[int] = []

    def result() -> Arrays:
        with contextlib.suppress(ChildProcessError):  # somebody else waited for it
            state.append(os.waitpid(number, 0)[1])
        if state != [0]:
            return work()
        memory.seek(0)
        return [np.load(memory, allow_pickle=False) for _ in range(int(np.load(memory)))]

    with memory:
        try:
            yield result
        finally:
            if not state:
                with contextlib.suppress(ProcessLookupError, ChildProcessError):
                    os.kill(number, signal.SIGKILL)
                    os.waitpid(number, 0)


def _can_fork() -> bool:
    if not hasattr(os, "memfd_create") or threading.active_count() > 1:
        return False
    return len(os.sched_getaffinity(0)) > 1


def _fork(work: Callable[[], Arrays]) -> tuple[int, Any] | None:
    """The number of a process that works, and the memory that its arrays will be in."""
    try:
        memory = os.fdopen(os.memfd_create("arrays"), "w+b")
    except OSError:
        return None
    try:
        with warnings.catch_warnings():
            # Python warns of threads of libraries too; these wait for work, and none is given to them.
            warnings.simplefilter("ignore", DeprecationWarning)
            number = os.fork()
    except OSError:
        memory.close()
        return None
    if number:
        return number, memory
    status = 1
    try:
        arrays = work()
        for array in [np.array(len(arrays)), *arrays]:
            np.save(memory, array, allow_pickle=False)
        memory.flush()
        status = 0
    finally:
        os._exit(status)  # whatever happened, nothing of the parent's is run or cleaned up here
