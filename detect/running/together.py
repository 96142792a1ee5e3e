"""Processes of one run end together: when one fails, it tells why, and the others do not wait for it in vain.

A process that fails leaves the others in a collective operation, where they would wait for minutes or for ever: no
exception can reach them there. So each has a thread that looks out for failures, which are announced in a key-value
store apart from the collectives, and that ends its process. The first process holds the store and is the first to end:
its launcher would kill it if another one ended before it, and its exit code is the run's.
"""

from __future__ import annotations

import atexit
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import torch

from dpipe.errors import InputError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

POLL_S = 0.1
GRACE_S = 1.0
"""How long the first process waits for another to print why it failed."""
PATIENCE_S = 10.0
"""How long the others wait for the first process to end."""
FIRST_PROCESS = "DETECT_FIRST_PROCESS"
FAILURE, SEEN = "failure", "seen"


def end_with_first_process(rank: int) -> None:
    """Has processes that Fabric starts end when the first one, their parent, is gone, also where they wait for it.

    A first process that is killed before there is a connection says nothing; the others would try to connect to it for
    as long as PyTorch is willing to, which is half an hour.

    Args:
        rank: This process's number; the first one leaves its id to those that it starts.
    """
    if rank == 0:
        os.environ[FIRST_PROCESS] = str(os.getpid())
        return
    first = int(os.environ.get(FIRST_PROCESS, os.getppid()))

    def look() -> None:
        while os.getppid() == first:
            time.sleep(POLL_S)
        time.sleep(PATIENCE_S)  # in which a process that can end by itself does
        os._exit(1)

    threading.Thread(target=look, name="end-with-first-process", daemon=True).start()


@contextmanager
def failing_together(fabric: Fabric, *regular: type[BaseException]) -> Iterator[None]:
    """Ends all processes when one leaves by an exception; that one alone raises it, with its line or its traceback.

    All processes enter and, unless one fails, leave together.

    Args:
        fabric: Launched.
        *regular: Exceptions that all processes end with, beside a ``SystemExit`` of code 0.
    """
    if fabric.world_size == 1:
        yield
        return
    watch = _Watch(fabric)
    try:
        yield
    except BaseException as error:
        if not isinstance(error, regular) and not (isinstance(error, SystemExit) and not error.code):
            watch.fail(_exit_code(error))
            raise
        fabric.barrier()
        watch.end()
        raise
    fabric.barrier()
    watch.end()


class _Watch:
    """Announces a failure of this process, and ends it at a failure of another."""

    def __init__(self, fabric: Fabric) -> None:
        self.rank, self.world_size = fabric.global_rank, fabric.world_size
        host = os.environ["MASTER_ADDR"]
        server = torch.distributed.TCPStore(host, 0, is_master=True, wait_for_workers=False) if self.rank == 0 else None
        port: int = fabric.broadcast(server.port if server else 0)
        # A connection of its own for the thread: one that another thread waits in is blocked.
        self.server = server
        self.store, self.threads_store = (
            torch.distributed.TCPStore(host, port, is_master=False, wait_for_workers=False) for _ in range(2)
        )
        # Ends with the store, and so with the first process; PyTorch would tell of its own in a page.
        self.link = socket.create_connection((host, port)) if self.rank else None
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._look_out, name="failures-of-others", daemon=True)
        self.thread.start()

    def end(self) -> None:
        """Stops watching."""
        self.ended.set()
        self.thread.join()
        if self.link is not None:
            self.link.close()

    def fail(self, code: int) -> None:
        """Announces that this process fails. If another one failed before, this one ends here, as that one tells why.

        Args:
            code: The exit code of all processes.
        """
        try:
            first = self.store.compare_set(FAILURE, "", f"{self.rank} {code}")
            if int(first.split()[0]) != self.rank:
                self.thread.join()  # which ends the process
            self.ended.set()
            self.thread.join()  # nobody may ask the store any more when the first process has ended
            self._wait_until_seen(self.store)
        except RuntimeError:
            return  # the first process is gone already
        if self.rank:
            atexit.register(self._wait_for_the_first)

    def _look_out(self) -> None:
        code = 1
        try:
            while not self.threads_store.check([FAILURE]):
                if self.ended.wait(POLL_S):
                    return
            rank, code = map(int, self.threads_store.get(FAILURE).split())
            if rank == self.rank:
                return
            self.threads_store.add(SEEN, 1)
        except RuntimeError:  # the first process has ended; so will this one in a moment, if that was regular
            if self.ended.wait(GRACE_S):
                return
        if self.rank == 0:
            self._wait_until_seen(self.threads_store)
            time.sleep(GRACE_S)
        else:
            self._wait_for_the_first()
        if sys.stdout.isatty():
            sys.stdout.write("\x1b[?25h")  # the cursor, which a bar hides
        sys.stdout.flush()
        os._exit(code)  # the main thread may wait where no exception reaches it

    def _wait_until_seen(self, store: torch.distributed.TCPStore) -> None:
        """Returns when all processes but the failing one know of the failure, which on a busy machine takes a while."""
        deadline = time.monotonic() + PATIENCE_S
        while store.add(SEEN, 0) < self.world_size - 1 and time.monotonic() < deadline:
            time.sleep(POLL_S)

    def _wait_for_the_first(self) -> None:
        """Returns when the store is gone, with the process that holds it."""
        assert self.link is not None
        with suppress(OSError):  # it was not ended in an orderly way, or in time
            self.link.settimeout(PATIENCE_S)
            self.link.recv(1)  # nothing is ever sent


def _exit_code(error: BaseException) -> int:
    """The exit code that the command line has for an exception."""
    if isinstance(error, InputError | OSError):
        return 2
    return 130 if isinstance(error, KeyboardInterrupt) else 1
