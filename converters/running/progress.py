"""Progress on stderr: a bar in a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def progress(title: str, total: int, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """Shows how far the work has come.

    Args:
        title: What is being done.
        total: Number of items.
        shown: Whether to show anything.

    Yields:
        A function to be called with the number of items done since its last call.
    """
    if not shown:
        yield lambda count: None
    elif sys.stderr.isatty():
        with _bar(title, total) as advance:
            yield advance
    else:
        yield _lines(title, total)


@contextmanager
def _bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        *(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}")),
        TimeRemainingColumn(),
    )
    began = time.monotonic()
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        bar.update(task, advance=count, rate=_rate(done, began))

    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total, rate="")
        yield advance


def _lines(title: str, total: int) -> Callable[[int], None]:
    done = 0
    began = last_line = time.monotonic()

    def advance(count: int) -> None:
        nonlocal done, last_line
        done += count
        if time.monotonic() - last_line >= SECONDS_BETWEEN_LINES:
            last_line = time.monotonic()
            left = (last_line - began) * (total - done) / done
            print(f"{title}: {done}/{total}, {_rate(done, began)}, {left:.0f} s left", file=sys.stderr)

    return advance


def _rate(done: int, began: float) -> str:
    return f"{done / max(time.monotonic() - began, 1e-9):.1f} images/s"
