"""Worker processes that can be ended at once.

Each worker is a program of its own, ``converters.running.worker``, with a thread here that starts it, hands it groups
of items and takes the results. Python's own pools were no match: they start workers by importing the main program
again, which fails for one that comes from stdin or does not guard its call; their workers finish what they are at when
they are to stop; and they do not tell which items a worker had when it died.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import IO, Any

from converters.errors import ConversionError
from converters.running.signals import signals_held_back
from converters.running.worker import Outcome

# While a worker is busy with one group, the next one waits in its pipe.
GROUPS_AHEAD = 2
# Of Pillow, read when it is imported; what it is good for is told at ``converters.reading.images.memory_kept``.
BLOCKS_KEPT = {"PILLOW_BLOCKS_MAX": "4"}
PROGRAM = "import sys; sys.path[:] = {path!r}; from converters.running.worker import main; main()"


@dataclass(frozen=True)
class WorkerDiedError(Exception):
    """A worker process ended before its work did.

    Attributes:
        group: Number of the group of items that it had; None before its first.
        status: How it ended, as ``subprocess`` tells it: minus a signal's number, or an exit code.
    """

    group: int | None
    status: int


@dataclass(frozen=True)
class _Done:
    group: int
    outcomes: list[Outcome]


@dataclass(frozen=True)
class _Failed:
    error: Exception


def in_processes(
    function: Callable[[Any], Any], groups: Sequence[Sequence[Any]], workers: int
) -> Generator[list[Outcome], None, None]:
    """Applies a function to groups of items, in several processes.

    Args:
        function: A function of a module's top level, or a ``functools.partial`` of one.
        groups: The items, which are pickled, as are the results.
        workers: How many processes.

    Yields:
        The outcomes of each group, in the order of the groups. Where the generator is closed, all processes are killed.

    Raises:
        ConversionError: A process could not be started.
        WorkerDiedError: A process ended before its work did.
    """
    pool = _Pool(function, groups)
    try:
        pool.start(workers)
        arrived: dict[int, list[Outcome]] = {}
        for number in range(len(groups)):
            while number not in arrived:
                event = pool.events.get()
                if isinstance(event, _Failed):
                    raise event.error
                arrived[event.group] = event.outcomes
            yield arrived.pop(number)
    finally:
        pool.stop()


class _Pool:
    """Threads that each look after one process.

    Args:
        function: What the processes apply.
        groups: What to.
    """

    def __init__(self, function: Callable[[Any], Any], groups: Sequence[Sequence[Any]]) -> None:
        self.events: queue.SimpleQueue[_Done | _Failed] = queue.SimpleQueue()
        self._function = pickle.dumps(function)
        self._groups = groups
        self._next = iter(range(len(groups)))
        self._processes: list[subprocess.Popen[bytes]] = []
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._all_started = threading.Event()
        self._stopped = False

    def start(self, workers: int) -> None:
        """Starts the threads, which start the processes."""
        with signals_held_back():  # between a thread's start and its place in the list
            for _ in range(workers):
                thread = threading.Thread(target=self._look_after_one, daemon=True)
                thread.start()
                self._threads.append(thread)
        self._all_started.set()

    def stop(self) -> None:
        """Kills all processes and waits for their ends."""
        self._all_started.set()
        with self._lock:
            self._stopped = True
            for process in self._processes:
                process.kill()
        for thread in self._threads:
            thread.join()

    def _look_after_one(self) -> None:
        self._all_started.wait()  # Python starting 64 times over leaves no time for starting threads
        if self._stopped:
            return
        try:
            process = self._start_process()
        except Exception as error:
            reason = getattr(error, "strerror", None) or error
            self.events.put(_Failed(ConversionError(f"a worker process could not be started ({reason})")))
            return
        with self._lock:
            self._processes.append(process)
            if self._stopped:
                process.kill()
        waiting: deque[int] = deque()
        try:
            with process:
                assert process.stdin is not None
                assert process.stdout is not None
                try:
                    self._serve(process.stdin, process.stdout, waiting)
                finally:
                    process.kill()  # whatever it is at, its results are here or not wanted
        except (EOFError, OSError, pickle.UnpicklingError):
            if not self._stopped:
                self.events.put(_Failed(WorkerDiedError(waiting[0] if waiting else None, process.wait())))
        except Exception as error:
            self.events.put(_Failed(error))

    def _start_process(self) -> subprocess.Popen[bytes]:
        if hasattr(signal, "pthread_sigmask"):
            # Of this thread alone, and inherited: a signal for all processes of a terminal never reaches the worker,
            # not even while Python starts. Its parent ends it.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        program = PROGRAM.format(path=[os.path.abspath(folder) for folder in sys.path])
        return subprocess.Popen(
            [sys.executable, f"-Xutf8={sys.flags.utf8_mode}", "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**BLOCKS_KEPT, **os.environ},
        )

    def _serve(self, requests: IO[bytes], results: IO[bytes], waiting: deque[int]) -> None:
        """Hands groups to a process and takes their outcomes until there are no more.

        Args:
            requests: Its stdin.
            results: Its stdout.
            waiting: Takes the numbers of the groups that it has.
        """
        requests.write(self._function)
        requests.flush()
        if (failure := pickle.load(results)) is not None:
            raise ConversionError(f"a worker process could not be started ({failure})")
        while True:
            while len(waiting) < GROUPS_AHEAD and (number := self._next_group()) is not None:
                waiting.append(number)
                pickle.dump(self._groups[number], requests, pickle.HIGHEST_PROTOCOL)
                requests.flush()
            if not waiting:
                return
            outcomes = pickle.load(results)
            self.events.put(_Done(waiting.popleft(), outcomes))

    def _next_group(self) -> int | None:
        with self._lock:
            return next(self._next, None)
