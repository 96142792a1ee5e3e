"""The error that every converter raises for bad input."""

from __future__ import annotations


class ConversionError(Exception):
    """A mistake in the data set or the arguments: the message is one line with the file, what is wrong and what was expected."""
