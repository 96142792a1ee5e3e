"""Text on a terminal or in a picture: what a data set says of itself, and tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

UNLIMITED = 10_000  # columns; a table takes no more than it needs
IN_TABLE = 60
"""Letters of a class's name in a table: one of hundreds would push the numbers far away behind a pipe."""


def printable(text: str) -> str:
    """A text whose control characters, but for line ends, are written as escapes: a terminal would obey them."""
    return "".join(
        sign if sign.isprintable() or sign == "\n" else sign.encode("unicode_escape").decode() for sign in text
    )


def one_line(text: str) -> str:
    """A text without control characters on one line, where there is no room for more."""
    return printable(text).replace("\n", " ")


def short(name: str, most: int = 32) -> str:
    """A name on one line, cut where it is too long."""
    name = one_line(name)
    return name if len(name) <= most else f"{name[: most - 1]}…"


def table_console() -> Console:
    """A console for tables on stdout. Only a terminal has a width: grep, behind a pipe, wants whole names."""
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = UNLIMITED
    return console
