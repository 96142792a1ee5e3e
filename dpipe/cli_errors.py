"""Turns known errors into one line and an exit code, for the commands of dpipe and detect."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer

from dpipe.errors import InputError

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


@contextmanager
def one_line_errors(debug: bool, *known: type[Exception]) -> Iterator[None]:
    """Runs a command's body: a known error becomes one line on stderr and exit code 2.

    Args:
        debug: Let the traceback through instead.
        known: Error types beside ``InputError`` and ``OSError`` whose message is fit for the user.

    Raises:
        typer.Exit: With code 2 for a known error, 130 for Ctrl-C.
    """
    for_the_user: tuple[type[Exception], ...] = (InputError, *known)
    try:
        yield
    except for_the_user as error:
        if debug:
            raise
        fail(str(error))
    except OSError as error:
        if debug:
            raise
        name = f"{error.filename}: " if error.filename else ""
        fail(f"{name}{error.strerror or error}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise typer.Exit(EXIT_INTERRUPTED) from None


def fail(message: str) -> NoReturn:
    """Prints ``error: message`` on stderr and exits with code 2."""
    print(f"error: {message}", file=sys.stderr)
    raise typer.Exit(EXIT_BAD_INPUT) from None
