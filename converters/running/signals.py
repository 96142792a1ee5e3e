"""Ctrl-C and SIGTERM while files and processes must be left in order."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_TERMINATED = 143


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Lets SIGTERM end the process as an exception does, so that clean-up code runs."""

    def leave(signum: int, frame: FrameType | None) -> None:
        raise SystemExit(EXIT_TERMINATED)

    if not _in_main_thread() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield  # signals are the main thread's, and a handler of the caller's is left alone
        return
    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def signals_held_back() -> Iterator[None]:
    """Delays what Ctrl-C and SIGTERM do in Python until the end of the block.

    Processes that are started in the block ignore Ctrl-C from their first moment, where the system can tell them so
    (Windows cannot).
    """
    if not _in_main_thread():
        yield
        return
    arrived: list[int] = []
    handlers = {
        number: signal.signal(number, lambda signum, frame: arrived.append(signum))
        for number in (signal.SIGINT, signal.SIGTERM)
        if callable(signal.getsignal(number))
    }
    # A mask is inherited. It does not replace the handlers above: other threads of this process still take the signal.
    inherits = hasattr(signal, "pthread_sigmask")
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if inherits else None
    try:
        yield
    finally:
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for signum in arrived:
            signal.raise_signal(signum)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
