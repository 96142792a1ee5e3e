"""Turns known errors into one line and an exit code, for the commands of dpipe and detect."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from dpipe.errors import InputError

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130

USAGE_ERROR: type[Exception] = typer.BadParameter.__bases__[0]  # click's UsageError; Typer may bring its own click


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
        with _interrupts_raised():
            yield
    except for_the_user as error:
        if debug:
            raise
        fail(str(error))
    except BrokenPipeError:  # who reads the output, such as `head`, has enough; Typer ends quietly
        raise
    except OSError as error:
        if debug:
            raise
        name = f"{error.filename}: " if error.filename else ""
        fail(f"{name}{error.strerror or error}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise typer.Exit(EXIT_INTERRUPTED) from None


@contextmanager
def _interrupts_raised() -> Iterator[None]:
    """Lets Ctrl-C raise ``KeyboardInterrupt`` where ``dpipe.starting`` has made it end the program at once."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def fail(message: str) -> NoReturn:
    """Prints ``error: message`` on stderr and exits with code 2."""
    print(f"error: {message}", file=sys.stderr)
    raise typer.Exit(EXIT_BAD_INPUT) from None


class OneLineUsageGroup(TyperGroup):
    """A group of commands that tells a mistake in a command line as other errors: in one line, with exit code 2."""

    def make_context(self, *args: Any, **extra: Any) -> Any:
        """Reads the group's own options."""
        with _one_line_usage_errors():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: Any) -> Any:
        """Reads what follows, and runs the command."""
        with _one_line_usage_errors():
            return super().invoke(ctx)


@contextmanager
def _one_line_usage_errors() -> Iterator[None]:
    try:
        yield
    except USAGE_ERROR as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # nothing was asked for: its message is the help
            raise
        message = " ".join(error.format_message().split()).removesuffix(".")  # type: ignore[attr-defined]
        context = getattr(error, "ctx", None)
        message = message.replace(": Value error, ", ": ", 1)  # pydantic's words in Typer's
        hint = f" (see {context.command_path} --help)" if context is not None else ""
        fail(f"{message[:1].lower()}{message[1:]}{hint}")
