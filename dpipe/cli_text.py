"""Text of a data set's on a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    """A text whose control characters, but for line ends, are written as escapes: a terminal would obey them."""
    return "".join(
        sign if sign.isprintable() or sign == "\n" else sign.encode("unicode_escape").decode() for sign in text
    )
