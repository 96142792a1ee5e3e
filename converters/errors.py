"""The error that every converter raises for bad input."""

from __future__ import annotations


class ConversionError(Exception):
    """A mistake in the data set or the arguments.

    The message is one line: the file, what is wrong with it, and what was expected.
    """
