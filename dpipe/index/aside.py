"""Work on a second core, for code that holds the interpreter."""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

Arrays = Sequence[NDArray[Any]]


@contextmanager
def computed_aside(work: Callable[[], Arrays]) -> Iterator[Callable[[], Arrays]]:
    """Computes arrays in a forked process while this one goes on.

    The process has all that this one has, at no cost, and gives its arrays back through memory, read-only. Where there
    is no second core, or this process runs other threads of Python, which a fork would leave half-way, or where
    anything goes wrong, the work is done here, when its result is asked for.

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
        return _arrays_in(memory)

    with memory:
        try:
            yield result
        finally:
            if not state:
                with contextlib.suppress(ProcessLookupError, ChildProcessError):
                    os.kill(number, signal.SIGKILL)
                    os.waitpid(number, 0)


def _arrays_in(memory: BinaryIO) -> Arrays:
    """What the process saved, mapped instead of copied."""
    mapped = mmap.mmap(memory.fileno(), 0, access=mmap.ACCESS_READ)
    arrays = []
    memory.seek(0)
    while memory.tell() < len(mapped):
        np.lib.format.read_magic(memory)
        shape, _, dtype = np.lib.format.read_array_header_1_0(memory)
        count = math.prod(shape)
        array = np.frombuffer(mapped, dtype=dtype, count=count, offset=memory.tell() if count else 0)
        arrays.append(array.reshape(shape))
        memory.seek(array.nbytes, os.SEEK_CUR)
    return arrays


def _can_fork() -> bool:
    if not hasattr(os, "memfd_create") or threading.active_count() > 1:
        return False
    return len(os.sched_getaffinity(0)) > 1


def _fork(work: Callable[[], Arrays]) -> tuple[int, BinaryIO] | None:
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
        for array in work():
            np.save(memory, np.asarray(array, order="C"), allow_pickle=False)
        memory.flush()
        status = 0
    finally:
        os._exit(status)  # whatever happened, nothing of the parent's is run or cleaned up here
