"""One worker process: takes groups of items from its stdin and writes what became of them to its stdout.

It is started as a program of its own (``converters.running.processes``), so it imports nothing but this module and that
of the function that it applies, and has nothing of its parent: no memory, no threads, no locks.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO, NamedTuple

from converters.errors import ConversionError

EXIT_FAILED = 1


class Outcome(NamedTuple):
    """What became of one item: a value, or what went wrong.

    Attributes:
        value: What the function returned.
        error: The line for the user; empty where the function raised something that it does not name a file for.
            None where nothing went wrong.
        details: The traceback.
        out_of_memory: Whether memory ran out, which no other item can be blamed for.
    """

    value: Any
    error: str | None = None
    details: str = ""
    out_of_memory: bool = False


def apply(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Outcome]:
    """Applies a function to some items; what it raises becomes an outcome."""
    return [_apply(function, item) for item in items]


def _apply(function: Callable[[Any], Any], item: Any) -> Outcome:
    try:
        return Outcome(function(item))
    except ConversionError as error:
        return Outcome(None, str(error), traceback.format_exc())
    except MemoryError:
        return Outcome(None, "", f"{traceback.format_exc()}out of memory; try again with a smaller --nproc", True)
    except Exception:  # the caller knows the file
        return Outcome(None, "", traceback.format_exc())


def main() -> None:
    """Serves the parent process until it closes the pipe, or ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    results = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    with open(os.devnull, "wb") as nothing:
        for stream in (sys.stdout, sys.stderr):  # what libraries print is no result, nor for the user
            os.dup2(nothing.fileno(), stream.fileno())
    requests = sys.stdin.buffer
    try:
        function = pickle.load(requests)
    except EOFError:
        os._exit(EXIT_FAILED)
    except Exception as error:
        _send(results, f"{type(error).__name__}: {error}")
        return
    _send(results, None)
    groups: queue.SimpleQueue[Sequence[Any]] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(requests, groups), daemon=True).start()
    while True:
        _send(results, apply(function, groups.get()))


def _receive(requests: BinaryIO, groups: queue.SimpleQueue[Sequence[Any]]) -> None:
    """Takes groups in while the main thread works, and ends the process at once where its parent has ended."""
    try:
        while True:
            groups.put(pickle.load(requests))
    finally:
        os._exit(EXIT_FAILED)


def _send(results: BinaryIO, message: object) -> None:
    try:
        pickle.dump(message, results, pickle.HIGHEST_PROTOCOL)
        results.flush()
    except BrokenPipeError:
        os._exit(EXIT_FAILED)
