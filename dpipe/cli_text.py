"""Text of a data set's on a terminal or in a picture."""

from __future__ import annotations


def printable(text: str) -> str:
    """A text whose control characters, but for line ends, are written as escapes: a terminal would obey them."""
    return "".join(
        sign if sign.isprintable() or sign == "\n" else sign.encode("unicode_escape").decode() for sign in text
    )


def one_line(text: str) -> str:
    """A text without control characters on one line, where there is no room for more."""
    return printable(text).replace("\n", " ")
