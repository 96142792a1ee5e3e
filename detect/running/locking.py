"""One training at a time in a work directory: a lock that the operating system frees when its process ends, however."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dpipe.errors import InputError

LOCK_NAME = "training.lock"
_held: set[int] = set()
"""File descriptors of the locks that this process holds."""


def _leave_to_the_parent() -> None:
    """Closes what a forked child has of its parent's locks, which would outlive the parent with it."""
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_the_parent)


@contextmanager
def locked(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Keeps other trainings out of a work directory, for as long as this process lives at most.

    The lock is ``flock``'s, on a file that is removed at the end. One that a killed process leaves behind locks
    nothing. Programs that this one starts do not inherit it. Windows has no such lock: there nothing is kept out.

    Args:
        folder: Exists and can be written.
        say: Is told where the file system knows no locks; the work goes on without one then.

    Raises:
        InputError: If another process, of this machine or another one that sees the folder, holds the lock.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    path = folder / LOCK_NAME
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # Python closes it in the programs that are started
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(descriptor)
            os.close(descriptor)
            raise InputError(
                f"{folder}: is being trained by another process{holder}; wait for its end, or give another --work-dir"
            ) from None
        except OSError as error:
            os.close(descriptor)
            with contextlib.suppress(OSError):
                path.unlink()
            say(f"{folder}: the file system has no locks ({error.strerror}); see to it that no other run trains there")
            yield
            return
        if _is_at(descriptor, path):
            break
        os.close(descriptor)  # its holder has removed it in between
    _held.add(descriptor)
    try:
        with contextlib.suppress(OSError):  # of a full disk, which others tell
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        if descriptor in _held:  # not so in a forked child
            _held.remove(descriptor)
            with contextlib.suppress(OSError):
                path.unlink()  # before it is freed, so that nobody else's is removed
            os.close(descriptor)


def _holder(descriptor: int) -> str:
    """Who holds a lock, as far as its file tells."""
    process, _, host = os.pread(descriptor, 1000, 0).decode(errors="replace").strip().partition(" ")
    if not process.isdecimal():
        return ""  # it has just been taken
    return f" (pid {process})" if host == socket.gethostname() else f" (pid {process} on {host})"


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one of that path."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
